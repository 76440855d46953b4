//! One watch stream: requests in, frames out, as fast as the client reads.
//!
//! HTTP/2 has one chunk of a stream at a time. What it has of a chunk that is not small counts for the hub
//! until it is written (H1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use satrap_regional_core::watch::StreamId;
use tonic::Status;

use super::bell::Rope;
use super::store::Mirroring;
use crate::exchange::{Exchange, requires_leader};
use crate::grpc::{Gone, Replies, Requests, held};
use crate::peer::Credentials;

/// Small frames are joined up to here, so that a thousand watches of one stream do not become a
/// thousand writes.
const JOIN_BYTES_MAX: usize = 16 * 1024;
/// Asked of the window at a time.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// A chunk up to here is part of what the stream counts for.
const SMALL_CHUNK_BYTES_MAX: usize = 1024;

/// One stream.
#[derive(Debug)]
pub(super) struct Line {
    /// The hub's name for it.
    pub(super) stream: StreamId,
    pub(super) credentials: Credentials,
    pub(super) needs_leader: bool,
    /// What a stream of the store's own protocol is doing.
    pub(super) mirroring: Option<Box<Mirroring>>,
    /// In the list of those that have something to send.
    pub(super) is_dirty: bool,
    pub(super) rope: Rope,
    /// `None` after the client's last request.
    requests: Option<Requests>,
    replies: Replies,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    chunk: Arc<Chunk>,
    /// What the hub counts for the chunk that HTTP/2 has.
    chunk_cost: usize,
}

/// Where the chunk is that a stream sent last.
#[derive(Debug, Default)]
struct Chunk(AtomicU8);

impl Chunk {
    const WRITTEN: u8 = 0;
    const SENT: u8 = 1;
    /// Somebody waits until it is written.
    const AWAITED: u8 = 2;

    /// Whether it is written; if not, the rope rings then.
    fn is_written(&self) -> bool {
        let awaited =
            self.0.compare_exchange(Self::SENT, Self::AWAITED, Ordering::AcqRel, Ordering::Acquire);
        awaited == Err(Self::WRITTEN)
    }
}

/// Is dropped when HTTP/2 has written a chunk.
struct Writing {
    chunk: Arc<Chunk>,
    rope: Rope,
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.chunk.0.swap(Chunk::WRITTEN, Ordering::AcqRel) == Chunk::AWAITED {
            self.rope.ring();
        }
    }
}

#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    /// What the hub counts for it, when all of it was sent.
    cost: usize,
}

/// What came in.
pub(super) enum Incoming {
    Message(Bytes),
    Nothing,
    Broken(Status),
    Gone,
}

impl Line {
    /// Takes a stream over and tells the client that it is open.
    pub(super) fn new(exchange: Exchange, stream: StreamId, rope: Rope) -> Result<Self, Gone> {
        let credentials = exchange.credentials();
        let needs_leader = requires_leader(&exchange.headers);
        let mut replies = exchange.replies;
        replies.start()?;
        Ok(Self {
            stream,
            credentials,
            needs_leader,
            mirroring: None,
            is_dirty: false,
            rope,
            requests: Some(exchange.requests),
            replies,
            queue: VecDeque::new(),
            queued_bytes: 0,
            chunk: Arc::default(),
            chunk_cost: 0,
        })
    }

    /// The next request, if it is there. After the last one the stream stays open, as in etcd, until
    /// the client drops it.
    pub(super) fn receive(&mut self) -> Incoming {
        let waker = self.rope.waker();
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

    /// Whether the client has taken everything.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends what the client has room for; returns what of the hub's count left.
    pub(super) fn write(&mut self) -> Result<usize, Gone> {
        let waker = self.rope.waker();
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
            let writing = Writing { chunk: self.chunk.clone(), rope: self.rope.clone() };
            let stream = self.replies.stream().ok_or(Gone)?;
            stream.send_data(held(bytes, writing), false).map_err(|_| Gone)?;
        }
        Ok(sent)
    }

    /// Up to `room` bytes off the queue, and the cost of the frames that end in them.
    fn take(&mut self, room: usize) -> (Bytes, usize) {
        let first = self.queue.front_mut().expect("asked only if there is something");
        if first.bytes.len() > room {
            self.queued_bytes -= room;
            return (first.bytes.split_to(room), 0);
        }
        let Frame { bytes, mut cost } = self.queue.pop_front().expect("seen above");
        self.queued_bytes -= bytes.len();
        let limit = room.min(JOIN_BYTES_MAX);
        let fits = |line: &Self, len: usize| {
            line.queue.front().is_some_and(|next| len + next.bytes.len() <= limit)
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

    /// Ends the stream from our side. What waits is dropped: the client will come back.
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
