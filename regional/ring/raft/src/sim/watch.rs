//! openraft's `Watch` channel for the simulation. It wakes receivers in the order in which they began
//! to wait, so that a run depends only on its seed; tokio's channel spreads its waiters at random.

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

/// The channel type.
pub struct SimWatch;

struct Inner<T> {
    shared: Mutex<Shared<T>>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

struct Shared<T> {
    value: T,
    version: u64,
    waiting: Vec<Waker>,
}

impl<T> Inner<T> {
    fn shared(&self) -> MutexGuard<'_, Shared<T>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut self.shared().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Sends values.
pub struct SimSender<T>(Arc<Inner<T>>);

/// Receives the newest value.
pub struct SimReceiver<T> {
    inner: Arc<Inner<T>>,
    seen: u64,
}

/// A locked reference to the value.
pub struct SimRef<'a, T>(MutexGuard<'a, Shared<T>>);

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
        let shared = Shared { value, version: 0, waiting: Vec::new() }.into();
        let (senders, receivers) = (AtomicUsize::new(1), AtomicUsize::new(1));
        let inner = Arc::new(Inner { shared, senders, receivers });
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
        let mut shared = self.0.shared();
        shared.value = value;
        shared.version += 1;
        drop(shared);
        self.0.wake();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let mut shared = self.0.shared();
        let modified = modify(&mut shared.value);
        shared.version += u64::from(modified);
        drop(shared);
        if modified {
            self.0.wake();
        }
        modified
    }

    fn borrow_watched(&self) -> SimRef<'_, T> {
        SimRef(self.0.shared())
    }

    fn subscribe(&self) -> SimReceiver<T> {
        self.0.receivers.fetch_add(1, Ordering::Relaxed);
        SimReceiver { inner: self.0.clone(), seen: self.0.shared().version }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<SimWatch, T> for SimReceiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let Self { inner, seen } = self;
        poll_fn(|cx| {
            let mut shared = inner.shared();
            if shared.version != *seen {
                *seen = shared.version;
                return Poll::Ready(Ok(()));
            }
            if inner.senders.load(Ordering::Relaxed) == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            if !shared.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                shared.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> SimRef<'_, T> {
        SimRef(self.inner.shared())
    }

    fn borrow_and_update(&mut self) -> SimRef<'_, T> {
        let shared = self.inner.shared();
        self.seen = shared.version;
        SimRef(shared)
    }
}
