//! The loop that carries all watch streams of a member.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use satrap_host::meters::Gauge;
use satrap_regional_core::Caller;
use satrap_regional_core::watch::{Hub, Open, Reason, StreamId, View};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until};
use tonic::Status;

use super::bell::{Bells, Rope};
use super::command::{Command, parse};
use super::frames::Frames;
use super::limits::{
    ANSWERS_WAITING_BYTES_MAX, REQUESTS_AT_ONCE, RESYNCS_MAX, STREAMS_WAITING_MAX,
};
use super::line::{Incoming, Line};
use super::store::{Mirroring, Next, Work};
use super::{Dialect, Settings};
use crate::backend::{AppliedMark, Backend, RingView, Unavailable};
use crate::exchange::Exchange;
use crate::status::unavailable;

/// See the module. To be run once, on the front's runtime.
#[derive(Debug)]
pub struct Service {
    backend: Backend,
    settings: Settings,
    watchers: Arc<Gauge>,
    arrivals: mpsc::Receiver<(Exchange, Dialect)>,
    hub: Hub,
    /// By [`StreamId`].
    lines: Vec<Option<Line>>,
    bells: Arc<Bells>,
    /// Lines that have something to send.
    dirty: Vec<u32>,
    resyncs: Resyncs,
    started: Instant,
    leaderless_since: Option<Instant>,
    opened: u64,
    /// There is work that waits for nothing.
    more: bool,
}

/// Who brings a mirror up to date, and who waits for a turn: the keys of one may take much memory.
#[derive(Debug, Default)]
struct Resyncs {
    active: Vec<(u32, Instant)>,
    queue: VecDeque<u32>,
}

/// A request of a stream whose caller is known.
enum Judged {
    Open(Result<Caller, Status>, Open),
    Cancel(i64),
    Progress,
}

impl Service {
    pub(super) fn new(
        backend: Backend,
        settings: Settings,
        watchers: Arc<Gauge>,
        arrivals: mpsc::Receiver<(Exchange, Dialect)>,
    ) -> Self {
        let revision = backend.read(View::revision);
        Self {
            backend,
            settings,
            watchers,
            arrivals,
            hub: Hub::new(revision),
            lines: Vec::new(),
            bells: Arc::default(),
            dirty: Vec::new(),
            resyncs: Resyncs::default(),
            started: Instant::now(),
            leaderless_since: None,
            opened: 0,
            more: false,
        }
    }

    /// Carries streams until `shutdown` completes, then ends them.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut applied = self.backend.applied();
        let mut ring = self.backend.ring();
        tokio::pin!(shutdown);
        loop {
            let arrived = tokio::select! {
                () = &mut shutdown => break,
                arrived = self.wait(&mut applied, &mut ring) => arrived,
            };
            if let Some((exchange, dialect)) = arrived {
                self.arrive(exchange, dialect);
                for _ in 0..STREAMS_WAITING_MAX {
                    let Ok((exchange, dialect)) = self.arrivals.try_recv() else { break };
                    self.arrive(exchange, dialect);
                }
            }
            for line in self.bells.take() {
                self.listen(line).await;
            }
            self.hub.tick(self.now_ms());
            self.pump().await;
            self.resync().await;
            // Before a client hears of a change.
            self.watchers.set(self.hub.watchers() as u64);
            self.write();
            self.mind_the_leader().await;
            // Everybody else on this thread first, however much there is to do (H1).
            tokio::task::yield_now().await;
        }
        let status = unavailable(Unavailable::Stopped);
        for at in 0..self.lines.len() {
            self.end(u32::try_from(at).unwrap_or(u32::MAX), &status).await;
        }
    }

    /// Until there is anything to do; gives a new stream if that is it.
    async fn wait(
        &mut self,
        applied: &mut watch::Receiver<AppliedMark>,
        ring: &mut watch::Receiver<Arc<RingView>>,
    ) -> Option<(Exchange, Dialect)> {
        if self.more {
            return self.arrivals.try_recv().ok();
        }
        let next = self.next_deadline();
        tokio::select! {
            Some(arrived) = self.arrivals.recv() => return Some(arrived),
            () = poll_fn(|cx| self.bells.poll_rung(cx)) => {}
            Ok(()) = applied.changed() => {}
            Ok(()) = ring.changed() => {}
            () = sleep_until(next) => {}
        }
        None
    }

    fn next_deadline(&self) -> Instant {
        let tick = self.hub.next_tick().map(|ms| self.started + Duration::from_millis(ms));
        let leader = self.leaderless_since.map(|since| since + self.settings.leaderless_max);
        let answers = self.resyncs.active.iter().map(|(_, deadline)| *deadline);
        let soonest = answers.chain(tick).chain(leader).min();
        soonest.unwrap_or_else(|| Instant::now() + self.settings.progress_interval)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn arrive(&mut self, exchange: Exchange, dialect: Dialect) {
        // Spread over a tenth by a fixed stride, so that equal streams do not speak together.
        self.opened = self.opened.wrapping_add(1);
        let spread = u32::try_from(self.opened.wrapping_mul(61) % 100).unwrap_or(0);
        let interval = self.settings.progress_interval * (1_000 + spread) / 1_000;
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let stream = self.hub.open_stream(Caller::default(), self.now_ms(), interval_ms);
        let rope = Rope::new(stream.0, &self.bells);
        let Ok(mut line) = Line::new(exchange, stream, rope) else {
            return self.hub.close_stream(stream);
        };
        if dialect == Dialect::Store {
            line.mirroring = Some(Mirroring::new());
        }
        line.rope.ring();
        let at = stream.0 as usize;
        if self.lines.len() <= at {
            self.lines.resize_with(at + 1, || None);
        }
        self.lines[at] = Some(line);
    }

    /// A stream can go on: takes what the client asks (H3), and what it has room for goes out.
    async fn listen(&mut self, at: u32) {
        let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else { return };
        line.rope.heard();
        mark(&mut self.dirty, line);
        let mut judged = Vec::new();
        // A client that asks and never reads is not asked for more; writing rings again.
        while !is_crowded(&self.hub, line) {
            if judged.len() == REQUESTS_AT_ONCE {
                line.rope.ring();
                break;
            }
            let message = match line.receive() {
                Incoming::Message(message) => message,
                Incoming::Nothing => break,
                Incoming::Gone => return self.forget(at),
                Incoming::Broken(status) => return self.end(at, &status).await,
            };
            if line.mirroring.is_some() {
                return self.mirror_asks(at, message).await;
            }
            judged.push(match parse(message) {
                Ok(Command::Open(open)) => {
                    Judged::Open(line.credentials.caller(&self.backend), open)
                }
                Ok(Command::Cancel(watch_id)) => Judged::Cancel(watch_id),
                Ok(Command::Progress) => Judged::Progress,
                Ok(Command::Unknown) => continue,
                Err(status) => return self.end(at, &status).await,
            });
        }
        self.obey(at, judged);
    }

    fn obey(&mut self, at: u32, judged: Vec<Judged>) {
        if judged.is_empty() {
            return;
        }
        let (hub, stream) = (&mut self.hub, StreamId(at));
        self.backend.read(|keyspace| {
            for request in judged {
                match request {
                    // etcd looks at the start before it looks at the caller.
                    Judged::Open(Err(_), open) if open.start < 0 => {
                        hub.refuse(stream, Reason::NegativeStart, keyspace.revision());
                    }
                    Judged::Open(Ok(caller), open) => hub.open(keyspace, stream, caller, open),
                    Judged::Open(Err(_), _) => {
                        let denied = satrap_regional_core::Refusal::InvalidAuthToken;
                        hub.refuse(stream, Reason::Denied(denied), keyspace.revision());
                    }
                    Judged::Cancel(watch_id) => hub.cancel(keyspace, stream, watch_id),
                    Judged::Progress => hub.ask_progress(keyspace, stream),
                }
            }
        });
    }

    /// One step of the hub under the lock (H2), then its messages to their lines.
    async fn pump(&mut self) {
        let hub = &mut self.hub;
        self.more = self.backend.read(|keyspace| hub.step(keyspace));
        let mut outbox = self.hub.take_outbox();
        let mut encoder = Frames::new(&self.backend, self.settings.fragment_bytes);
        let mut frames = Vec::new();
        let mut ended = Vec::new();
        for (stream, message) in outbox.drain(..) {
            let at = stream.0;
            let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else {
                continue;
            };
            match &mut line.mirroring {
                None => encoder.encode(&message, &mut frames),
                Some(mirroring) => match mirroring.tell(&self.backend, &message, &mut frames) {
                    Ok(Next::Resync) => {
                        self.resyncs.queue.push_back(at);
                        self.more = true;
                    }
                    Ok(_) => {}
                    Err(status) => ended.push((at, status)),
                },
            }
            deliver(&mut self.hub, &mut self.dirty, line, &mut frames, message.cost());
        }
        self.hub.reuse_outbox(outbox);
        for (at, status) in ended {
            self.end(at, &status).await;
        }
    }

    /// Sends what clients have room for.
    fn write(&mut self) {
        for at in std::mem::take(&mut self.dirty) {
            let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else {
                continue;
            };
            line.is_dirty = false;
            match line.write() {
                Ok(cost) => {
                    self.more |= line.mirroring.is_some() && line.is_drained();
                    let was_crowded = is_crowded(&self.hub, line);
                    self.hub.sent(line.stream, cost);
                    if was_crowded && !is_crowded(&self.hub, line) {
                        // Its requests may have been left unread.
                        line.rope.ring();
                    }
                    self.more |= self.hub.has_lagging();
                }
                Err(_gone) => self.forget(at),
            }
        }
    }

    async fn mirror_asks(&mut self, at: u32, message: Bytes) {
        let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let Some(mirroring) = &mut line.mirroring else { return };
        // There may be another request behind this one.
        line.rope.ring();
        match mirroring.receive(&self.backend, &line.credentials, message) {
            Ok(Next::Nothing) => {}
            Ok(Next::Work) => self.more = true,
            Ok(Next::Resync) => self.resyncs.queue.push_back(at),
            Ok(Next::Watch(caller, open)) => self.watch(at, caller, *open),
            Err(status) => self.end(at, &status).await,
        }
    }

    fn watch(&mut self, at: u32, caller: Caller, open: Open) {
        let (hub, stream) = (&mut self.hub, StreamId(at));
        self.backend.read(|keyspace| {
            // The only id this dialect uses; of a watch that was compacted it may still be taken.
            hub.cancel(keyspace, stream, MIRROR_WATCH);
            hub.open(keyspace, stream, caller, Open { watch_id: MIRROR_WATCH, ..open });
        });
        self.more = true;
    }

    /// A slice of every resync that has something to do.
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
        let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let Some(mirroring) = &mut line.mirroring else { return };
        match mirroring.begin(&self.backend, &line.credentials) {
            Ok(frame) => {
                line.push(frame, 0);
                mark(&mut self.dirty, line);
                let deadline = Instant::now() + self.settings.resync_answer_max;
                self.resyncs.active.push((at, deadline));
                self.more = true;
            }
            Err(status) => self.end(at, &status).await,
        }
    }

    async fn work(&mut self, at: u32, deadline: Instant) {
        let Some(line) = self.lines.get_mut(at as usize).and_then(Option::as_mut) else { return };
        if Instant::now() >= deadline {
            let status = Status::deadline_exceeded("satrap: the mirror did not answer in time");
            return self.end(at, &status).await;
        }
        if !line.is_drained() {
            // The client takes what there is before more is read for it; writing rings.
            return;
        }
        let Some(mirroring) = &mut line.mirroring else { return };
        let mut frames = Vec::new();
        let work = mirroring.work(&self.backend, &line.credentials, &mut frames);
        if !frames.is_empty() {
            let deadline = Instant::now() + self.settings.resync_answer_max;
            let mut active = self.resyncs.active.iter_mut();
            active.find(|(active, _)| *active == at).expect("it is active").1 = deadline;
            deliver(&mut self.hub, &mut self.dirty, line, &mut frames, 0);
        }
        match work {
            Ok(Work::More) => self.more = true,
            Ok(Work::Wait) => {}
            Ok(Work::Done(caller, open)) => {
                self.resyncs.active.retain(|(active, _)| *active != at);
                self.more |= !self.resyncs.queue.is_empty();
                self.watch(at, caller, *open);
            }
            Err(status) => self.end(at, &status).await,
        }
    }

    /// Ends streams that need a leader when there has been none for a while, as etcd does.
    async fn mind_the_leader(&mut self) {
        if self.backend.status().leader != 0 {
            self.leaderless_since = None;
            return;
        }
        let since = *self.leaderless_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.settings.leaderless_max {
            return;
        }
        self.leaderless_since = Some(Instant::now());
        let status = unavailable(Unavailable::NoLeader);
        for at in 0..self.lines.len() {
            if self.lines[at].as_ref().is_some_and(|line| line.needs_leader) {
                self.end(u32::try_from(at).unwrap_or(u32::MAX), &status).await;
            }
        }
    }

    async fn end(&mut self, at: u32, status: &Status) {
        let line = self.lines.get_mut(at as usize).and_then(Option::take);
        self.forget(at);
        if let Some(line) = line {
            line.finish(status).await;
        }
    }

    fn forget(&mut self, at: u32) {
        self.hub.close_stream(StreamId(at));
        self.resyncs.active.retain(|(active, _)| *active != at);
        self.resyncs.queue.retain(|queued| *queued != at);
        self.more |= !self.resyncs.queue.is_empty();
        if let Some(line) = self.lines.get_mut(at as usize) {
            *line = None;
        }
    }
}

/// The id of the one watch of a stream of the store's own protocol.
const MIRROR_WATCH: i64 = 1;

/// Whether a client has so much to read that it is not asked for more.
fn is_crowded(hub: &Hub, line: &Line) -> bool {
    hub.buffered(line.stream) > ANSWERS_WAITING_BYTES_MAX
}

fn mark(dirty: &mut Vec<u32>, line: &mut Line) {
    if !line.is_dirty {
        line.is_dirty = true;
        dirty.push(line.stream.0);
    }
}

/// Queues frames that together have a cost; the last one carries it.
fn deliver(
    hub: &mut Hub,
    dirty: &mut Vec<u32>,
    line: &mut Line,
    frames: &mut Vec<Bytes>,
    cost: usize,
) {
    if frames.is_empty() {
        hub.sent(line.stream, cost);
        return;
    }
    let last = frames.len() - 1;
    for (at, frame) in frames.drain(..).enumerate() {
        line.push(frame, if at == last { cost } else { 0 });
    }
    mark(dirty, line);
}
