//! One watch stream: requests in, frames out, as fast as the client reads.
//!
//! A stream hands HTTP/2 one chunk at a time, and the next one when that chunk was written. The hub counts the bytes
//! of a large chunk as buffered until then (WATCHSTREAM-1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use satrap_ring_core::watch::StreamId;
use tonic::Status;

use super::ready::StreamWaker;
use super::store::StoreWatch;
use crate::exchange::{Exchange, requires_leader};
use crate::grpc::{Gone, Replies, Requests, held};
use crate::peer::Credentials;

/// Small frames are joined into chunks of up to this size, so that a thousand watches of one stream do not cause a
/// thousand writes.
const JOIN_BYTES_MAX: usize = 16 * 1024;
/// The most bytes of the flow-control window that are requested at a time.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// A chunk of up to this size is covered by the memory that the stream has reserved.
const SMALL_CHUNK_BYTES_MAX: usize = 1024;

/// One watch stream.
#[derive(Debug)]
pub(super) struct WatchStream {
    /// The id that the hub knows the stream by.
    pub(super) id: StreamId,
    pub(super) credentials: Credentials,
    pub(super) needs_leader: bool,
    /// The state of a `satrap.v1.StoreWatch` stream; `None` for etcd's dialect.
    pub(super) store_watch: Option<Box<StoreWatch>>,
    /// Whether the watch loop has listed the stream for writing.
    pub(super) is_dirty: bool,
    pub(super) waker: StreamWaker,
    /// `None` after the client's last request.
    requests: Option<Requests>,
    replies: Replies,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    chunk: Arc<Chunk>,
    /// The bytes that the hub counts as buffered for the chunk that HTTP/2 has.
    chunk_cost: usize,
}

/// The state of the last chunk of a stream.
#[derive(Debug, Default)]
struct Chunk(AtomicU8);

impl Chunk {
    const WRITTEN: u8 = 0;
    const SENT: u8 = 1;
    /// Sent, and the watch loop waits until it is written.
    const AWAITED: u8 = 2;

    /// Whether the chunk is written. If not, [`Writing`] wakes the loop when it is.
    fn is_written(&self) -> bool {
        let awaited =
            self.0.compare_exchange(Self::SENT, Self::AWAITED, Ordering::AcqRel, Ordering::Acquire);
        awaited == Err(Self::WRITTEN)
    }
}

/// Attached to a chunk, and dropped with it when HTTP/2 has written the chunk.
struct Writing {
    chunk: Arc<Chunk>,
    waker: StreamWaker,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.chunk.0.swap(Chunk::WRITTEN, Ordering::AcqRel) == Chunk::AWAITED {
            self.waker.wake();
        }
    }
}

#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    /// The bytes that the hub counts as buffered until the whole frame was sent.
    cost: usize,
}

/// The next request of a stream, or its end.
pub(super) enum Incoming {
    Message(Bytes),
    Nothing,
    Broken(Status),
    Gone,
}

impl WatchStream {
    /// Starts a stream: sends its headers, so that the client knows that it is open.
    pub(super) fn new(exchange: Exchange, id: StreamId, waker: StreamWaker) -> Result<Self, Gone> {
        let credentials = exchange.credentials();
        let needs_leader = requires_leader(&exchange.headers);
        let mut replies = exchange.replies;
        replies.start()?;
        Ok(Self {
            id,
            credentials,
            needs_leader,
            store_watch: None,
            is_dirty: false,
            waker,
            requests: Some(exchange.requests),
            replies,
            queue: VecDeque::new(),
            queued_bytes: 0,
            chunk: Arc::default(),
            chunk_cost: 0,
        })
    }

    /// The next request, if one has arrived. After the last request the stream stays open, as in etcd, until the
    /// client resets it.
    pub(super) fn receive(&mut self) -> Incoming {
        let waker = self.waker.waker();
        let mut cx = Context::from_waker(&waker);
        if let Some(requests) = &mut self.requests {
            match requests.poll_next(&mut cx) {
                Poll::Ready(Ok(Some(message))) => return Incoming::Message(message),
                Poll::Ready(Ok(None)) => self.requests = None,
                Poll::Ready(Err(status)) => return Incoming::Broken(status),
                Poll::Pending => {}
            }
        }
        match self.replies.poll_gone(&mut cx) {
            Poll::Ready(_) => Incoming::Gone,
            Poll::Pending => Incoming::Nothing,
        }
    }

    pub(super) fn push(&mut self, bytes: Bytes, cost: usize) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Frame { bytes, cost });
    }

    /// Whether no frame is queued.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends as much as the flow-control window allows. Returns the bytes that the hub no longer counts as buffered.
    pub(super) fn write(&mut self) -> Result<usize, Gone> {
        let waker = self.waker.waker();
        let mut cx = Context::from_waker(&waker);
        let mut sent = 0;
        loop {
            if self.chunk_cost > 0 || !self.queue.is_empty() {
                if !self.chunk.is_written() {
                    break;
                }
                sent += std::mem::take(&mut self.chunk_cost);
            }
            if self.queue.is_empty() {
                break;
            }
            let wanted = self.queued_bytes.min(CHUNK_BYTES_MAX);
            let stream = self.replies.stream().ok_or(Gone)?;
            let Poll::Ready(room) = poll_room(stream, wanted, &mut cx)? else { break };
            let (bytes, cost) = self.take(room);
            match bytes.len() <= SMALL_CHUNK_BYTES_MAX {
                true => sent += cost,
                false => self.chunk_cost = cost,
            }
            self.chunk.0.store(Chunk::SENT, Ordering::Release);
            let writing = Writing { chunk: self.chunk.clone(), waker: self.waker.clone() };
            let stream = self.replies.stream().ok_or(Gone)?;
            stream.send_data(held(bytes, writing), false).map_err(|_| Gone)?;
        }
        Ok(sent)
    }

    /// Takes up to `room` bytes off the queue, with the cost of the frames that end in them.
    fn take(&mut self, room: usize) -> (Bytes, usize) {
        let first = self.queue.front_mut().expect("BUG: the queue is empty");
        if first.bytes.len() > room {
            self.queued_bytes -= room;
            return (first.bytes.split_to(room), 0);
        }
        let Frame { bytes, mut cost } = self.queue.pop_front().expect("seen above");
        self.queued_bytes -= bytes.len();
        let limit = room.min(JOIN_BYTES_MAX);
        let fits = |stream: &Self, len: usize| {
            stream.queue.front().is_some_and(|next| len + next.bytes.len() <= limit)
        };
        if !fits(self, bytes.len()) {
            return (bytes, cost);
        }
        let mut joined = BytesMut::with_capacity(limit.min(bytes.len() + self.queued_bytes));
        joined.put_slice(&bytes);
        while fits(self, joined.len()) {
            let next = self.queue.pop_front().expect("seen by fits");
            self.queued_bytes -= next.bytes.len();
            cost += next.cost;
            joined.put_slice(&next.bytes);
        }
        (joined.freeze(), cost)
    }

    /// Ends the stream with a status. Queued frames are dropped: the client opens its watches again.
    pub(super) async fn finish(self, status: &Status) {
        // With `Gone` there is no client to answer.
        let _: Result<(), Gone> = self.replies.finish(status);
    }
}

fn poll_room(
    stream: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Result<Poll<usize>, Gone> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Ok(Poll::Ready(room));
        }
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_)) | None) => return Err(Gone),
            Poll::Pending => return Ok(Poll::Pending),
        }
    }
}
