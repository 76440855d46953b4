//! Limits the rate of requests of one connection, and so the CPU time that it takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use satrap_pressure::{Rate, TokenBucket};
use satrap_runtime::clock;

use crate::calls::Unavailable;
use crate::limits::INFLATED_BYTES_PER_REQUEST;

/// The token bucket of one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct ConnectionRate(Arc<Mutex<TokenBucket>>);

impl ConnectionRate {
    pub(crate) fn new(rate: Rate) -> Self {
        let bucket = TokenBucket::new(rate.burst, rate.per_s, clock::monotonic());
        Self(Arc::new(Mutex::new(bucket)))
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(crate) fn request(&self) -> Result<(), Unavailable> {
        self.take(1)
    }

    /// Refuses a connection whose bucket is in debt after a decompression.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(crate) fn check(&self) -> Result<(), Unavailable> {
        self.take(0)
    }

    /// Charges for decompressed bytes: a few compressed bytes can take much CPU time.
    pub(crate) fn charge_inflated(&self, bytes: usize) {
        let tokens = u32::try_from(bytes / INFLATED_BYTES_PER_REQUEST).unwrap_or(u32::MAX);
        self.bucket().owe(tokens, clock::monotonic());
    }

    fn take(&self, tokens: u32) -> Result<(), Unavailable> {
        let taken = self.bucket().take(tokens, clock::monotonic());
        taken.map_err(|_| Unavailable::TooManyRequests)
    }

    fn bucket(&self) -> MutexGuard<'_, TokenBucket> {
        // Each change is atomic, so the bucket is valid even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
