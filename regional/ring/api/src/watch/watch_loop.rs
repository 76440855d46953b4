//! The watch loop: serves all watch streams of a member in one task.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use satrap_ring_core::Caller;
use satrap_ring_core::watch::{Hub, Open, Reason, StreamId, View};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until};
use tonic::Status;

use super::Dialect;
use super::command::{Command, parse};
use super::frames::Frames;
use super::limits::{
    ANSWERS_WAITING_BYTES_MAX, REQUESTS_AT_ONCE, RESYNCS_MAX, STREAMS_WAITING_MAX,
};
use super::ready::{ReadyQueue, StreamWaker};
use super::store::{Next, StoreWatch, Work};
use super::stream::{Incoming, WatchStream};
use crate::api::Api;
use crate::calls::{Failure, Unavailable};
use crate::exchange::Exchange;
use crate::members::{AppliedMark, RingView};
use crate::status::unavailable;

/// All watch streams of a member, and the hub that feeds them. Run it once, on the runtime of the client listener.
#[derive(Debug)]
pub struct WatchLoop {
    api: Arc<Api>,
    arrivals: mpsc::Receiver<(Exchange, Dialect)>,
    hub: Hub,
    /// Indexed by [`StreamId`].
    streams: Vec<Option<WatchStream>>,
    ready: Arc<ReadyQueue>,
    /// Streams that have frames to send, and each of them once.
    dirty: Vec<u32>,
    resyncs: Resyncs,
    started: Instant,
    leaderless_since: Option<Instant>,
    opened: u64,
    /// Whether there is work that need not wait for an event.
    has_work: bool,
}

/// The streams that resync a mirror, and those that wait for their turn. The number of active ones is bounded, because
/// the keys of one mirror may take much memory.
#[derive(Debug, Default)]
struct Resyncs {
    active: Vec<(u32, Instant)>,
    queue: VecDeque<u32>,
}

/// A request of a stream, with its authenticated caller.
enum Judged {
    Open(Result<Caller, Failure>, Open),
    Cancel(i64),
    Progress,
}

impl WatchLoop {
    pub(super) fn new(api: Arc<Api>, arrivals: mpsc::Receiver<(Exchange, Dialect)>) -> Self {
        let revision = api.backend.inspect(View::revision);
        Self {
            api,
            arrivals,
            hub: Hub::new(revision),
            streams: Vec::new(),
            ready: Arc::default(),
            dirty: Vec::new(),
            resyncs: Resyncs::default(),
            started: Instant::now(),
            leaderless_since: None,
            opened: 0,
            has_work: false,
        }
    }

    /// Serves streams until `shutdown` completes, then ends them.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut applied = self.api.backend.applied();
        let mut ring = self.api.backend.ring();
        tokio::pin!(shutdown);
        loop {
            let arrived = tokio::select! {
                () = &mut shutdown => break,
                arrived = self.wait(&mut applied, &mut ring) => arrived,
            };
            if let Some((exchange, dialect)) = arrived {
                self.accept(exchange, dialect);
                for _ in 0..STREAMS_WAITING_MAX {
                    let Ok((exchange, dialect)) = self.arrivals.try_recv() else { break };
                    self.accept(exchange, dialect);
                }
            }
            for stream in self.ready.take() {
                self.receive(stream).await;
            }
            self.hub.tick(self.now_ms());
            self.pump().await;
            self.resync().await;
            // Before a client can see a change, so that the metric is never behind what clients see.
            self.api.meters.watchers.set(self.hub.watchers() as u64);
            self.write();
            self.end_leaderless_streams().await;
            // Let all other tasks of this thread run, however much work there is here (WATCHSTREAM-1).
            tokio::task::yield_now().await;
        }
        let status = unavailable(Unavailable::Stopped);
        for at in 0..self.streams.len() {
            self.end(u32::try_from(at).unwrap_or(u32::MAX), &status).await;
        }
    }

    /// Waits until there is work. Returns a new stream if one arrived.
    async fn wait(
        &mut self,
        applied: &mut watch::Receiver<AppliedMark>,
        ring: &mut watch::Receiver<Arc<RingView>>,
    ) -> Option<(Exchange, Dialect)> {
        if self.has_work {
            return self.arrivals.try_recv().ok();
        }
        let next = self.next_deadline();
        // Without a stream, applied entries do not wake this thread. The hub catches up when a stream arrives.
        let has_streams = self.streams.iter().any(Option::is_some);
        tokio::select! {
            Some(arrived) = self.arrivals.recv() => {
                if !has_streams {
                    self.pump().await;
                }
                return Some(arrived);
            }
            () = poll_fn(|cx| self.ready.poll_ready(cx)) => {}
            Ok(()) = applied.changed(), if has_streams => {}
            Ok(()) = ring.changed() => {}
            () = sleep_until(next) => {}
        }
        None
    }

    fn next_deadline(&self) -> Instant {
        let tick = self.hub.next_tick().map(|ms| self.started + Duration::from_millis(ms));
        let leader = self.leaderless_since.map(|since| since + self.api.watching.leaderless_max);
        let answers = self.resyncs.active.iter().map(|(_, deadline)| *deadline);
        let soonest = answers.chain(tick).chain(leader).min();
        soonest.unwrap_or_else(|| Instant::now() + self.api.watching.progress_interval)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn accept(&mut self, exchange: Exchange, dialect: Dialect) {
        // Spread intervals over a tenth by a fixed stride, so that streams that were opened together do not all send
        // progress at the same time.
        self.opened = self.opened.wrapping_add(1);
        let spread = u32::try_from(self.opened.wrapping_mul(61) % 100).unwrap_or(0);
        let interval = self.api.watching.progress_interval * (1_000 + spread) / 1_000;
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let id = self.hub.open_stream(Caller::default(), self.now_ms(), interval_ms);
        let waker = StreamWaker::new(id.0, &self.ready);
        let Ok(mut stream) = WatchStream::new(exchange, id, waker) else {
            return self.hub.close_stream(id);
        };
        if dialect == Dialect::Store {
            stream.store_watch = Some(StoreWatch::new());
        }
        stream.waker.wake();
        let at = id.0 as usize;
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, || None);
        }
        self.streams[at] = Some(stream);
    }

    /// Takes the requests of a stream that was woken (WATCHSTREAM-3), and marks it for writing.
    async fn receive(&mut self, at: u32) {
        let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        stream.waker.reset();
        mark(&mut self.dirty, stream);
        let mut judged = Vec::new();
        // Do not read requests of a client that leaves its answers unread. `write` wakes the stream again.
        while !is_backlogged(&self.hub, stream) {
            if judged.len() == REQUESTS_AT_ONCE {
                stream.waker.wake();
                break;
            }
            let message = match stream.receive() {
                Incoming::Message(message) => message,
                Incoming::Nothing => break,
                Incoming::Gone => return self.remove(at),
                Incoming::Broken(status) => return self.end(at, &status).await,
            };
            if stream.store_watch.is_some() {
                return self.receive_of_store_watch(at, message).await;
            }
            judged.push(match parse(message) {
                Ok(Command::Open(open)) => {
                    Judged::Open(self.api.identify(&stream.credentials), open)
                }
                Ok(Command::Cancel(watch_id)) => Judged::Cancel(watch_id),
                Ok(Command::Progress) => Judged::Progress,
                Ok(Command::Unknown) => continue,
                Err(status) => return self.end(at, &status).await,
            });
        }
        self.perform(at, judged);
    }

    fn perform(&mut self, at: u32, judged: Vec<Judged>) {
        if judged.is_empty() {
            return;
        }
        let (hub, stream) = (&mut self.hub, StreamId(at));
        self.api.backend.inspect(|keyspace| {
            for request in judged {
                match request {
                    // etcd checks the start revision before the caller.
                    Judged::Open(Err(_), open) if open.start < 0 => {
                        hub.refuse(stream, Reason::NegativeStart, keyspace.revision());
                    }
                    Judged::Open(Ok(caller), open) => hub.open(keyspace, stream, caller, open),
                    Judged::Open(Err(_), _) => {
                        let denied = satrap_ring_core::Refusal::InvalidAuthToken;
                        hub.refuse(stream, Reason::Denied(denied), keyspace.revision());
                    }
                    Judged::Cancel(watch_id) => hub.cancel(keyspace, stream, watch_id),
                    Judged::Progress => hub.ask_progress(keyspace, stream),
                }
            }
        });
    }

    /// Runs one step of the hub under the lock (WATCHSTREAM-2), then queues its messages on their streams.
    async fn pump(&mut self) {
        let hub = &mut self.hub;
        self.has_work = self.api.backend.inspect(|keyspace| hub.step(keyspace));
        let mut outbox = self.hub.take_outbox();
        let mut encoder = Frames::new(&self.api.backend, self.api.watching.fragment_bytes);
        let mut frames = Vec::new();
        let mut ended = Vec::new();
        for (stream, message) in outbox.drain(..) {
            let at = stream.0;
            let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
                continue;
            };
            match &mut stream.store_watch {
                None => encoder.encode(&message, &mut frames),
                Some(watch) => match watch.forward(&self.api.backend, &message, &mut frames) {
                    Ok(Next::Resync) => {
                        self.resyncs.queue.push_back(at);
                        self.has_work = true;
                    }
                    Ok(_) => {}
                    Err(status) => ended.push((at, status)),
                },
            }
            enqueue(&mut self.hub, &mut self.dirty, stream, &mut frames, message.cost());
        }
        self.hub.reuse_outbox(outbox);
        for (at, status) in ended {
            self.end(at, &status).await;
        }
    }

    /// Sends as much as the clients' flow-control windows allow.
    fn write(&mut self) {
        for at in std::mem::take(&mut self.dirty) {
            let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
                continue;
            };
            stream.is_dirty = false;
            match stream.write() {
                Ok(cost) => {
                    self.has_work |= stream.store_watch.is_some() && stream.is_drained();
                    let was_backlogged = is_backlogged(&self.hub, stream);
                    self.hub.sent(stream.id, cost);
                    if was_backlogged && !is_backlogged(&self.hub, stream) {
                        // Requests may have been left unread meanwhile.
                        stream.waker.wake();
                    }
                    self.has_work |= self.hub.has_lagging();
                }
                Err(_gone) => self.remove(at),
            }
        }
    }

    async fn receive_of_store_watch(&mut self, at: u32, message: Bytes) {
        let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(store_watch) = &mut stream.store_watch else { return };
        // Another request may follow this one.
        stream.waker.wake();
        match store_watch.receive(&self.api, &stream.credentials, message) {
            Ok(Next::Nothing) => {}
            Ok(Next::Work) => self.has_work = true,
            Ok(Next::Resync) => self.resyncs.queue.push_back(at),
            Ok(Next::Watch(caller, open)) => self.watch(at, caller, *open),
            Err(status) => self.end(at, &status).await,
        }
    }

    fn watch(&mut self, at: u32, caller: Caller, open: Open) {
        let (hub, stream) = (&mut self.hub, StreamId(at));
        self.api.backend.inspect(|keyspace| {
            // This dialect uses one id only. A watch that ended by compaction may still hold it.
            hub.cancel(keyspace, stream, STORE_WATCH_ID);
            hub.open(keyspace, stream, caller, Open { watch_id: STORE_WATCH_ID, ..open });
        });
        self.has_work = true;
    }

    /// Starts resyncs that wait for their turn, and runs one slice of every active one.
    async fn resync(&mut self) {
        while self.resyncs.active.len() < RESYNCS_MAX
            && let Some(at) = self.resyncs.queue.pop_front()
        {
            self.begin_resync(at).await;
        }
        for (at, deadline) in self.resyncs.active.clone() {
            self.work(at, deadline).await;
        }
    }

    async fn begin_resync(&mut self, at: u32) {
        let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(store_watch) = &mut stream.store_watch else { return };
        match store_watch.begin(&self.api, &stream.credentials) {
            Ok(frame) => {
                stream.push(frame, 0);
                mark(&mut self.dirty, stream);
                let deadline = Instant::now() + self.api.watching.resync_answer_max;
                self.resyncs.active.push((at, deadline));
                self.has_work = true;
            }
            Err(status) => self.end(at, &status).await,
        }
    }

    async fn work(&mut self, at: u32, deadline: Instant) {
        let Some(stream) = self.streams.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        if Instant::now() >= deadline {
            let status = Status::deadline_exceeded("satrap: the mirror did not answer in time");
            return self.end(at, &status).await;
        }
        if !stream.is_drained() {
            // The client takes the queued frames before more is read for it. `write` sets `has_work` then.
            return;
        }
        let Some(store_watch) = &mut stream.store_watch else { return };
        let mut frames = Vec::new();
        let work = store_watch.work(&self.api, &stream.credentials, &mut frames);
        if !frames.is_empty() {
            let deadline = Instant::now() + self.api.watching.resync_answer_max;
            let mut active = self.resyncs.active.iter_mut();
            active.find(|(active, _)| *active == at).expect("it is active").1 = deadline;
            enqueue(&mut self.hub, &mut self.dirty, stream, &mut frames, 0);
        }
        match work {
            Ok(Work::More) => self.has_work = true,
            Ok(Work::Wait) => {}
            Ok(Work::Done(caller, open)) => {
                self.resyncs.active.retain(|(active, _)| *active != at);
                self.has_work |= !self.resyncs.queue.is_empty();
                self.watch(at, caller, *open);
            }
            Err(status) => self.end(at, &status).await,
        }
    }

    /// Ends streams that need a leader when there has been none for a while, as etcd does.
    async fn end_leaderless_streams(&mut self) {
        if self.api.backend.status().leader != 0 {
            self.leaderless_since = None;
            return;
        }
        let since = *self.leaderless_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.api.watching.leaderless_max {
            return;
        }
        self.leaderless_since = Some(Instant::now());
        let status = unavailable(Unavailable::NoLeader);
        for at in 0..self.streams.len() {
            if self.streams[at].as_ref().is_some_and(|stream| stream.needs_leader) {
                self.end(u32::try_from(at).unwrap_or(u32::MAX), &status).await;
            }
        }
    }

    async fn end(&mut self, at: u32, status: &Status) {
        let stream = self.streams.get_mut(at as usize).and_then(Option::take);
        self.remove(at);
        if let Some(stream) = stream {
            stream.finish(status).await;
        }
    }

    fn remove(&mut self, at: u32) {
        self.hub.close_stream(StreamId(at));
        self.resyncs.active.retain(|(active, _)| *active != at);
        self.resyncs.queue.retain(|queued| *queued != at);
        self.has_work |= !self.resyncs.queue.is_empty();
        if let Some(stream) = self.streams.get_mut(at as usize) {
            *stream = None;
        }
    }
}

/// The id of the one watch of a `satrap.v1.StoreWatch` stream.
const STORE_WATCH_ID: i64 = 1;

/// Whether a client has left so many answers unread that its requests are not read.
fn is_backlogged(hub: &Hub, stream: &WatchStream) -> bool {
    hub.buffered(stream.id) > ANSWERS_WAITING_BYTES_MAX
}

fn mark(dirty: &mut Vec<u32>, stream: &mut WatchStream) {
    if !stream.is_dirty {
        stream.is_dirty = true;
        dirty.push(stream.id.0);
    }
}

/// Queues frames, whose cost is charged until the last of them is sent.
fn enqueue(
    hub: &mut Hub,
    dirty: &mut Vec<u32>,
    stream: &mut WatchStream,
    frames: &mut Vec<Bytes>,
    cost: usize,
) {
    if frames.is_empty() {
        hub.sent(stream.id, cost);
        return;
    }
    let last = frames.len() - 1;
    for (at, frame) in frames.drain(..).enumerate() {
        stream.push(frame, if at == last { cost } else { 0 });
    }
    mark(dirty, stream);
}
