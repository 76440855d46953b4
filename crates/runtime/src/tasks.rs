//! Decides when a process stops: as soon as anything that should run forever no longer does.
//!
//! A task that dies unnoticed leaves a process that looks alive and does half its work. So every
//! task and thread has a name and belongs to a [`TaskGroup`]; the first that ends unasked, fails or
//! panics stops the group, and its name is the reason the process gives for exiting.
//!
//! ```text
//!   running ──── signal, or a task ended, failed or panicked ────▶ draining
//!   running ──── SIGHUP ────▶ running, tasks that subscribed read their files again
//!   draining ─── everything ended ────────▶ stopped
//!   draining ─── deadline ──── abort ─────▶ stopped, the stragglers are named
//! ```
//!
//! # Invariants
//!
//! - **TASKS-1** Every way a task can end is seen: the report is made by a drop guard, which also runs
//!   when the task panics or is aborted.
//! - **TASKS-2** The reported cause is the first one. A task that fails while draining is only logged.
//!
//! # Deliberately absent
//!
//! No restarts: the state of a task that failed is not to be trusted. The supervisor of the process
//! restarts it from what is on disk.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

mod reload;
mod signals;

pub use signals::{Hangup, RunUntil};

/// Tells tasks that the process is stopping, and lets any of them ask for it.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Shutdown {
    /// Asks every holder of this token to stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether a stop was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes once a stop was requested. Owns its state, so it fits `serve_with_..._shutdown`.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut requests = self.0.subscribe();
        let keep_open = self.clone();
        async move {
            requests.wait_for(|asked| *asked).await.expect("`keep_open` holds a sender");
            drop(keep_open);
        }
    }
}

/// Why a group did not stop cleanly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A task that should run until shutdown returned.
    #[error("task `{0}` ended before it was asked to stop")]
    Ended(Arc<str>),
    /// A task returned an error.
    #[error("task `{name}` failed: {error}")]
    Failed {
        /// The task.
        name: Arc<str>,
        /// Its error.
        error: String,
    },
    /// A task panicked.
    #[error("task `{0}` panicked")]
    Panicked(Arc<str>),
    /// A task was aborted from outside the group, or its runtime was dropped.
    #[error("task `{0}` was cut off before it ended")]
    Cut(Arc<str>),
    /// Tasks ignored the request to stop until the deadline.
    #[error("did not stop in time: {}", .0.join(", "))]
    Stuck(Vec<Arc<str>>),
}

/// The named tasks and threads of one process. Clones are handles to the same group.
#[derive(Clone, Default)]
pub struct TaskGroup(Arc<Shared>);

#[derive(Default)]
struct Shared {
    shutdown: Shutdown,
    reloads: watch::Sender<()>,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    spawned: u64,
    running: BTreeMap<u64, Running>,
    cause: Option<Failure>,
}

struct Running {
    name: Arc<str>,
    abort: Option<AbortHandle>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Process,
    Transient,
}

impl TaskGroup {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is requested when this group stops.
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.0.shutdown.clone()
    }

    /// Spawns a task that runs until shutdown; if it ends earlier, the group stops.
    pub fn spawn<E: Display>(
        &self,
        name: impl Into<Arc<str>>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn_task(name.into(), Lifetime::Process, task);
    }

    /// Spawns a task that may end well at any time; if it fails or panics, the group stops.
    pub fn spawn_transient<E: Display>(
        &self,
        name: impl Into<Arc<str>>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn_task(name.into(), Lifetime::Transient, task);
    }

    /// Starts an operating system thread that runs until shutdown; if it ends earlier, the group
    /// stops. Unlike a task it cannot be aborted, so it must watch the token or a closed channel.
    ///
    /// # Errors
    ///
    /// If the operating system refuses the thread.
    pub fn spawn_thread<E: Display>(
        &self,
        name: impl Into<Arc<str>>,
        body: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<()> {
        let name = name.into();
        let thread = std::thread::Builder::new().name(name.to_string());
        let guard = self.enroll(&mut self.0.lock(), name, Lifetime::Process);
        // If the thread is refused, dropping the guard stops the group: a part of it is missing.
        thread.spawn(move || guard.finish(body()))?;
        Ok(())
    }

    /// Changes each time the process is to read its files again.
    #[must_use]
    fn reloads(&self) -> watch::Receiver<()> {
        self.0.reloads.subscribe()
    }

    /// Runs what `start` starts until the group stops.
    ///
    /// # Errors
    ///
    /// That of `start`, after everything that was started before it failed has ended, or the first
    /// [`Failure`].
    pub async fn serve<E: From<Failure>>(
        self,
        drain: Duration,
        start: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        if let Err(error) = start.await {
            self.shutdown().request();
            // Failures while draining have been logged, and are not why the start failed (TASKS-2).
            let _ = self.run(drain).await;
            return Err(error);
        }
        Ok(self.run(drain).await?)
    }

    /// Waits for shutdown, then lets tasks finish for at most `drain`, then aborts the rest.
    ///
    /// # Errors
    ///
    /// The first [`Failure`] (TASKS-2).
    pub async fn run(self, drain: Duration) -> Result<(), Failure> {
        self.0.shutdown.requested().await;
        let drained = tokio::time::timeout(drain, self.all_ended()).await;
        let mut state = self.0.lock();
        if drained.is_err() {
            let names = state.running.values().map(|task| task.name.clone()).collect();
            let stuck = Failure::Stuck(names);
            tracing::error!("{stuck}");
            state.cause.get_or_insert(stuck);
            for abort in state.running.values().filter_map(|task| task.abort.as_ref()) {
                abort.abort();
            }
        }
        state.cause.take().map_or(Ok(()), Err)
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.0.lock().running.is_empty() {
                return;
            }
            ended.await;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that spawns; TASKS-1 watches the task"
    )]
    fn spawn_task<E: Display>(
        &self,
        name: Arc<str>,
        lifetime: Lifetime,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        // Held across the spawn, so that the task cannot end before its handle is recorded.
        let mut state = self.0.lock();
        let guard = self.enroll(&mut state, name, lifetime);
        let id = guard.id;
        let handle = tokio::spawn(async move { guard.finish(task.await) });
        state.running.entry(id).and_modify(|entry| entry.abort = Some(handle.abort_handle()));
    }

    fn enroll(&self, state: &mut State, name: Arc<str>, lifetime: Lifetime) -> Guard {
        let id = state.spawned;
        state.spawned += 1;
        state.running.insert(id, Running { name: name.clone(), abort: None });
        Guard { shared: self.0.clone(), id, name, lifetime, outcome: None }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section is a few moves, so the state is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// TASKS-1: reports how one task ended when it is dropped.
struct Guard {
    shared: Arc<Shared>,
    id: u64,
    name: Arc<str>,
    lifetime: Lifetime,
    outcome: Option<Result<(), String>>,
}

impl Guard {
    fn finish<E: Display>(mut self, outcome: Result<(), E>) {
        self.outcome = Some(outcome.map_err(|error| error.to_string()));
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let stopping = self.shared.shutdown.is_requested();
        let name = self.name.clone();
        let failure = match self.outcome.take() {
            Some(Ok(())) if stopping || self.lifetime == Lifetime::Transient => None,
            Some(Ok(())) => Some(Failure::Ended(name)),
            Some(Err(error)) => Some(Failure::Failed { name, error }),
            None if std::thread::panicking() => Some(Failure::Panicked(name)),
            None if stopping => None,
            None => Some(Failure::Cut(name)),
        };
        let mut state = self.shared.lock();
        state.running.remove(&self.id);
        if let Some(failure) = failure {
            tracing::error!("{failure}");
            state.cause.get_or_insert(failure);
            self.shared.shutdown.request();
        }
        drop(state);
        self.shared.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::pending;

    const DRAIN: Duration = Duration::from_secs(10);

    /// Spawns what `fill` says beside a well-behaved task, and returns how the group stopped.
    fn outcome(drain: Duration, fill: impl FnOnce(&TaskGroup)) -> Result<(), Failure> {
        crate::runtime::current_thread().unwrap().block_on(async {
            let group = TaskGroup::new();
            let stop = group.shutdown().requested();
            group.spawn("polite", async move {
                stop.await;
                Ok::<_, Infallible>(())
            });
            fill(&group);
            group.run(drain).await
        })
    }

    #[test]
    fn each_way_to_end_stops_the_group_and_is_named() {
        let ended = outcome(DRAIN, |group| group.spawn("brief", async { Ok::<_, Infallible>(()) }));
        assert_eq!(ended, Err(Failure::Ended("brief".into())));
        let failed = outcome(DRAIN, |group| group.spawn("flaky", async { Err("disk full") }));
        assert_eq!(failed.unwrap_err().to_string(), "task `flaky` failed: disk full");
        let panicked = outcome(DRAIN, |group| {
            group.spawn::<Infallible>("buggy", async { panic!("on purpose") });
        });
        assert_eq!(panicked, Err(Failure::Panicked("buggy".into())));
    }

    #[test]
    fn threads_count_like_tasks() {
        let ended = outcome(DRAIN, |group| {
            group.spawn_thread("writer", || Err("fsync failed")).unwrap();
        });
        assert_eq!(ended.unwrap_err().to_string(), "task `writer` failed: fsync failed");
        let panicked = outcome(DRAIN, |group| {
            group.spawn_thread::<Infallible>("writer", || panic!("on purpose")).unwrap();
        });
        assert_eq!(panicked, Err(Failure::Panicked("writer".into())));
    }

    #[test]
    fn a_transient_task_may_end_but_not_fail() {
        let asked = outcome(DRAIN, |group| {
            let shutdown = group.shutdown();
            group.spawn_transient("once", async { Ok::<_, Infallible>(()) });
            group.spawn_transient("asks", async move {
                // By now `once` has ended, because a single thread runs tasks in spawn order.
                assert!(!shutdown.is_requested());
                shutdown.request();
                Ok::<_, Infallible>(())
            });
        });
        assert_eq!(asked, Ok(()));
        let failed = outcome(DRAIN, |group| group.spawn_transient("once", async { Err("no") }));
        assert_eq!(failed.unwrap_err().to_string(), "task `once` failed: no");
    }

    #[test]
    fn stragglers_are_aborted_and_named() {
        let (alive, dropped) = std::sync::mpsc::channel::<()>();
        let stuck = outcome(Duration::from_millis(20), |group| {
            group.spawn("deaf", async move {
                let _alive = alive;
                pending::<Result<(), Infallible>>().await
            });
            group.shutdown().request();
        });
        assert_eq!(stuck.unwrap_err().to_string(), "did not stop in time: deaf");
        assert!(dropped.recv().is_err(), "the aborted task was dropped");
    }

    #[test]
    fn a_failed_start_is_the_only_cause() {
        let failed = crate::runtime::current_thread().unwrap().block_on(async {
            let group = TaskGroup::new();
            group.handle_signals(Hangup::Reloads).unwrap();
            let stop = group.shutdown().requested();
            group.spawn("second", async move {
                stop.await;
                Err("lost my peer")
            });
            group.serve(DRAIN, async { Err(Failure::Ended("start".into())) }).await
        });
        assert_eq!(failed, Err(Failure::Ended("start".into())));
    }

    #[test]
    fn a_task_that_is_cut_off_is_not_called_a_panic() {
        let group = TaskGroup::new();
        crate::runtime::current_thread().unwrap().block_on(async {
            group.spawn("cut", pending::<Result<(), Infallible>>());
        });
        assert_eq!(group.0.lock().cause, Some(Failure::Cut("cut".into())));
    }

    #[test]
    fn the_first_failure_is_the_cause() {
        let cause = outcome(DRAIN, |group| {
            let stop = group.shutdown().requested();
            group.spawn("second", async move {
                stop.await;
                Err("lost my peer")
            });
            group.spawn("first", async { Err("disk full") });
        });
        assert_eq!(cause.unwrap_err().to_string(), "task `first` failed: disk full");
    }
}
