//! Locking of the state that the tasks of one member share.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Critical sections only move values, so the state is valid even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
