//! A watched value that wakes whoever waits in the order in which they came. tokio's own wakes in a
//! random order, to spare a lock.

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

use openraft::{
    OptionalSend, OptionalSync,
    async_runtime::{
        Watch, WatchReceiver, WatchSender,
        watch::{RecvError, SendError},
    },
};

/// The kind of channel.
pub struct SimWatch;

struct Inner<T> {
    slot: Mutex<Slot<T>>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

struct Slot<T> {
    value: T,
    version: u64,
    waiting: Vec<Waker>,
}

impl<T> Inner<T> {
    fn slot(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut self.slot().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Changes the value.
pub struct SimSender<T>(Arc<Inner<T>>);

/// Sees the value.
pub struct SimReceiver<T> {
    inner: Arc<Inner<T>>,
    seen: u64,
}

/// The value, locked.
pub struct SimRef<'a, T>(MutexGuard<'a, Slot<T>>);

impl<T> Deref for SimRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl Watch for SimWatch {
    type Sender<T: OptionalSend + OptionalSync> = SimSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = SimReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = SimRef<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(value: T) -> (SimSender<T>, SimReceiver<T>) {
        let slot = Slot { value, version: 0, waiting: Vec::new() }.into();
        let (senders, receivers) = (AtomicUsize::new(1), AtomicUsize::new(1));
        let inner = Arc::new(Inner { slot, senders, receivers });
        (SimSender(inner.clone()), SimReceiver { inner, seen: 0 })
    }
}

impl<T> Clone for SimSender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for SimSender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.wake();
        }
    }
}

impl<T> Clone for SimReceiver<T> {
    fn clone(&self) -> Self {
        self.inner.receivers.fetch_add(1, Ordering::Relaxed);
        Self { inner: self.inner.clone(), seen: self.seen }
    }
}

impl<T> Drop for SimReceiver<T> {
    fn drop(&mut self) {
        self.inner.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<SimWatch, T> for SimSender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(Ordering::Relaxed) == 0 {
            return Err(SendError(value));
        }
        let mut slot = self.0.slot();
        slot.value = value;
        slot.version += 1;
        drop(slot);
        self.0.wake();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let mut slot = self.0.slot();
        let modified = modify(&mut slot.value);
        slot.version += u64::from(modified);
        drop(slot);
        if modified {
            self.0.wake();
        }
        modified
    }

    fn borrow_watched(&self) -> SimRef<'_, T> {
        SimRef(self.0.slot())
    }

    fn subscribe(&self) -> SimReceiver<T> {
        self.0.receivers.fetch_add(1, Ordering::Relaxed);
        SimReceiver { inner: self.0.clone(), seen: self.0.slot().version }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<SimWatch, T> for SimReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let Self { inner, seen } = self;
        poll_fn(|cx| {
            let mut slot = inner.slot();
            if slot.version != *seen {
                *seen = slot.version;
                return Poll::Ready(Ok(()));
            }
            if inner.senders.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            if !slot.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                slot.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> SimRef<'_, T> {
        SimRef(self.inner.slot())
    }

    fn borrow_and_update(&mut self) -> SimRef<'_, T> {
        let slot = self.inner.slot();
        self.seen = slot.version;
        SimRef(slot)
    }
}
