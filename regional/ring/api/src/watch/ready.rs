//! The ready queue of the watch loop: one waker per stream, so that the loop polls only streams that were woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// The streams that were woken, in that order.
#[derive(Debug, Default)]
pub(super) struct ReadyQueue {
    streams: Mutex<Vec<u32>>,
    listener: AtomicWaker,
}

/// The waker of one stream.
struct Wakeup {
    stream: u32,
    /// Whether the stream is in the queue already.
    waiting: AtomicBool,
    ready: Arc<ReadyQueue>,
}

/// Puts one stream into the ready queue and wakes the loop; does nothing while the stream is in the queue.
#[derive(Clone)]
pub(super) struct StreamWaker(Arc<Wakeup>);

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.waiting.swap(true, Ordering::AcqRel) {
            self.ready.streams.lock().unwrap_or_else(PoisonError::into_inner).push(self.stream);
            self.ready.listener.wake();
        }
    }
}

impl StreamWaker {
    pub(super) fn new(stream: u32, ready: &Arc<ReadyQueue>) -> Self {
        Self(Arc::new(Wakeup { stream, waiting: AtomicBool::new(false), ready: ready.clone() }))
    }

    /// Allows the next wake-up. Call it before polling the stream, or an event during the poll would be lost.
    pub(super) fn reset(&self) {
        self.0.waiting.store(false, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        self.0.wake_by_ref();
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }
}

impl std::fmt::Debug for StreamWaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waker of stream {}", self.0.stream)
    }
}

impl ReadyQueue {
    /// Ready when the queue is not empty. Takes nothing from it.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.listener.register(cx.waker());
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Takes all streams from the queue.
    pub(super) fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
