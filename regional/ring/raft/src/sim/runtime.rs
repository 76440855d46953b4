//! The simulated machine of a member: tasks that can be killed and paused, a clock that runs at its
//! own speed, and randomness from a seed.
//!
//! Everything runs on one thread of one paused tokio runtime, so time advances only when no task
//! can run, and the order of all steps follows from the seed.

use std::{
    future::Future,
    io,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use openraft::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand::{SeedableRng as _, rngs::SmallRng};
use satrap_history::random::Random;
use tokio::{
    task::{AbortHandle, JoinError, JoinHandle},
    time::{self, Timeout},
};

use super::watch::SimWatch;
use crate::platform::Platform;

tokio::task_local! {
    static NODE: Arc<Node>;
}

/// One run of one member's process.
#[derive(Debug)]
pub struct Node {
    started: time::Instant,
    /// The clock's speed in thousandths of true time.
    rate: u64,
    chance: Mutex<Random>,
    tasks: Mutex<Vec<AbortHandle>>,
    dead: AtomicBool,
    /// The wakers of tasks that became ready while the node is paused.
    paused: Mutex<Option<Vec<Waker>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// A process that starts now.
    pub fn new(seed: u64, rate: u64) -> Arc<Self> {
        Arc::new(Self {
            started: time::Instant::now(),
            rate,
            chance: Mutex::new(Random::new(seed)),
            tasks: Mutex::default(),
            dead: AtomicBool::new(false),
            paused: Mutex::default(),
        })
    }

    /// Runs `future` on this node until it ends or the process does.
    #[expect(clippy::disallowed_methods, reason = "this is where simulated tasks come from")]
    pub fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let gated = Gated { node: self.clone(), future: Box::pin(future) };
        let task = tokio::task::spawn(NODE.scope(self.clone(), gated));
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        if self.dead.load(Ordering::Relaxed) {
            task.abort();
        }
        task
    }

    /// Kills the process at once. Returns when no task of it is left.
    pub async fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.resume();
        loop {
            let tasks = lock(&self.tasks).clone();
            if tasks.iter().all(AbortHandle::is_finished) {
                return;
            }
            tasks.iter().for_each(AbortHandle::abort);
            tokio::task::yield_now().await;
        }
    }

    /// Pauses the process, as SIGSTOP does, until [`Node::resume`].
    pub fn pause(&self) {
        lock(&self.paused).get_or_insert_default();
    }

    /// Continues a paused process.
    pub fn resume(&self) {
        let waiting = lock(&self.paused).take();
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    fn now(&self) -> Duration {
        self.local(self.started.elapsed())
    }

    fn local(&self, truly: Duration) -> Duration {
        Duration::from_nanos((truly.as_nanos() * u128::from(self.rate) / 1_000) as u64)
    }

    fn truly(&self, local: Duration) -> Duration {
        Duration::from_nanos((local.as_nanos() * 1_000 / u128::from(self.rate)) as u64)
    }
}

/// A task that makes no progress while its node is paused.
struct Gated<F> {
    node: Arc<Node>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(waiting) = lock(&self.node.paused).as_mut() {
            waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        self.future.as_mut().poll(cx)
    }
}

/// The node of the current task.
fn node() -> Arc<Node> {
    NODE.with(Arc::clone)
}

/// Calls `inside` with the node of the current task, or `outside`: tasks outside of all members
/// measure true time.
fn with_node<T>(inside: impl FnOnce(&Node) -> T, outside: impl FnOnce() -> T) -> T {
    match NODE.try_with(Arc::clone) {
        Ok(node) => inside(&node),
        Err(_) => outside(),
    }
}

/// The simulated platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sim;

impl Platform for Sim {
    type Async = SimAsync;

    fn monotonic() -> Duration {
        node().now()
    }

    fn fill(bytes: &mut [u8]) {
        let node = node();
        let mut chance = lock(&node.chance);
        for byte in bytes {
            *byte = chance.number() as u8;
        }
    }

    async fn off_thread<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let ms = lock(&node().chance).below(4);
        if ms > 0 {
            time::sleep(Duration::from_millis(ms)).await;
        }
        Ok(work())
    }
}

/// The async runtime of openraft.
#[derive(Debug)]
pub struct SimAsync;

/// An instant on the clock of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimInstant(Duration);

impl Instant for SimInstant {
    fn now() -> Self {
        Self(with_node(Node::now, || Duration::ZERO))
    }
}

impl Add<Duration> for SimInstant {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0 + span)
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, span: Duration) {
        self.0 += span;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, span: Duration) {
        self.0 = self.0.saturating_sub(span);
    }
}

impl Sub<Self> for SimInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

fn truly(local: Duration) -> Duration {
    with_node(|node| node.truly(local), || local)
}

fn left(deadline: SimInstant) -> Duration {
    truly(deadline - SimInstant::now())
}

impl AsyncRuntime for SimAsync {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = time::Sleep;
    type Instant = SimInstant;
    type TimeoutError = time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = TokioMpsc;
    type Watch = SimWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        node().spawn(future)
    }

    fn sleep(duration: Duration) -> time::Sleep {
        time::sleep(truly(duration))
    }

    fn sleep_until(deadline: SimInstant) -> time::Sleep {
        time::sleep(left(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        time::timeout(truly(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: SimInstant,
        future: F,
    ) -> Timeout<F> {
        time::timeout(left(deadline), future)
    }

    fn is_panic(error: &JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(lock(&node().chance).number())
    }

    fn new(_threads: usize) -> Self {
        Self
    }

    fn block_on<F, T>(&mut self, _future: F) -> T
    where
        F: Future<Output = T>,
    {
        unreachable!("a simulation has one runtime, which the test drives")
    }
}
