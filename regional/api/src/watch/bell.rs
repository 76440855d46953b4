//! Tells the loop which of its many streams can go on, without a task for each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Streams that can go on, in the order in which they rang.
#[derive(Debug, Default)]
pub(super) struct Bells {
    rung: Mutex<Vec<u32>>,
    listener: AtomicWaker,
}

/// The waker of one stream.
struct Bell {
    line: u32,
    /// In `rung` already.
    waiting: AtomicBool,
    bells: Arc<Bells>,
}

/// Rings for one stream, and can be told that it was heard.
#[derive(Clone)]
pub(super) struct Rope(Arc<Bell>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.waiting.swap(true, Ordering::AcqRel) {
            self.bells.rung.lock().unwrap_or_else(PoisonError::into_inner).push(self.line);
            self.bells.listener.wake();
        }
    }
}

impl Rope {
    pub(super) fn new(line: u32, bells: &Arc<Bells>) -> Self {
        Self(Arc::new(Bell { line, waiting: AtomicBool::new(false), bells: bells.clone() }))
    }

    /// To be called before the stream is polled, so that what happens meanwhile rings again.
    pub(super) fn heard(&self) {
        self.0.waiting.store(false, Ordering::Release);
    }

    pub(super) fn ring(&self) {
        self.0.wake_by_ref();
    }

    pub(super) fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }
}

impl std::fmt::Debug for Rope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rope of line {}", self.0.line)
    }
}

impl Bells {
    /// Ready once a stream rang; nothing is taken.
    pub(super) fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.listener.register(cx.waker());
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if rung.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Those that rang.
    pub(super) fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
