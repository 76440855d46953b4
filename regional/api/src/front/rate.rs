//! How much of this member's time one connection may take.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use satrap_host::clock;
use satrap_pressure::TokenBucket;

use crate::api::Rate;
use crate::backend::Unavailable;
use crate::limits::INFLATED_BYTES_PER_REQUEST;

/// The requests that one connection has left. Clones are for the same one.
#[derive(Clone, Debug)]
pub struct ConnectionRate(Arc<Mutex<TokenBucket>>);

impl ConnectionRate {
    pub(super) fn new(rate: Rate) -> Self {
        let bucket = TokenBucket::new(rate.burst, rate.per_s, clock::monotonic());
        Self(Arc::new(Mutex::new(bucket)))
    }

    /// Takes one request.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(super) fn request(&self) -> Result<(), Unavailable> {
        self.take(1)
    }

    /// Refuses a connection that owes for what it had decompressed.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(crate) fn check(&self) -> Result<(), Unavailable> {
        self.take(0)
    }

    /// Charges for bytes that were decompressed: few bytes of a client can take long.
    pub(crate) fn charge_inflated(&self, bytes: usize) {
        let tokens = u32::try_from(bytes / INFLATED_BYTES_PER_REQUEST).unwrap_or(u32::MAX);
        self.bucket().owe(tokens, clock::monotonic());
    }

    fn take(&self, tokens: u32) -> Result<(), Unavailable> {
        let taken = self.bucket().take(tokens, clock::monotonic());
        taken.map_err(|_| Unavailable::TooManyRequests)
    }

    fn bucket(&self) -> MutexGuard<'_, TokenBucket> {
        // Each change is whole, also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
