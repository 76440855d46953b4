//! The runtimes that processes run on.
//!
//! An edge takes one thread and a few megabytes beside the workload it serves. A region gives its
//! Raft peers a runtime of their own, so that a flood on the public listener cannot starve
//! heartbeats into an election.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// Name resolution and file reads only; the default of 512 threads is a memory budget by itself.
const BLOCKING_THREADS_MAX: usize = 4;

/// A runtime that runs everything on the calling thread.
///
/// # Errors
///
/// If the operating system refuses the event queue.
pub fn current_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build()
}

/// A runtime with `workers` named threads.
///
/// # Errors
///
/// If the operating system refuses the threads or the event queue.
pub fn multi_thread(name: &str, workers: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name(name)
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
}
