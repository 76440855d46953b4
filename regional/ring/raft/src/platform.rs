//! The platform of a member: clock, randomness and threads, which a simulation replaces.
//!
//! All other inputs are arguments: files, connections, and the addresses of peers.

use std::{fmt::Debug, io, time::Duration};

use openraft::AsyncRuntime;
use openraft_rt_tokio::TokioRuntime;
use satrap_runtime::{clock, rng};
use tokio::task;

/// Clocks, chance and threads.
pub trait Platform:
    Copy + Debug + Default + Eq + Ord + PartialEq + PartialOrd + Send + Sync + 'static
{
    /// The async runtime of openraft.
    type Async: AsyncRuntime;

    /// Time since an arbitrary moment; never decreases.
    fn monotonic() -> Duration;

    /// Fills `bytes` with randomness.
    fn fill(bytes: &mut [u8]);

    /// Runs blocking `work` on a thread where no task waits behind it.
    ///
    /// # Errors
    ///
    /// If `work` panicked.
    fn off_thread<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + Send;
}

/// The real platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Real;

impl Platform for Real {
    type Async = TokioRuntime;

    fn monotonic() -> Duration {
        clock::monotonic()
    }

    fn fill(bytes: &mut [u8]) {
        rng::fill(bytes);
    }

    async fn off_thread<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        task::spawn_blocking(work).await.map_err(io::Error::other)
    }
}

/// A random number that is not zero: zero means "none" everywhere.
pub fn draw<P: Platform>() -> u64 {
    let mut bytes = [0; 8];
    P::fill(&mut bytes);
    u64::from_be_bytes(bytes).max(1)
}
