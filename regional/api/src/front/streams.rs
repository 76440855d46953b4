//! How many requests and streams may be open: on one connection, and on all together.
//!
//! # Invariants
//!
//! - **L4** One stream over a bound is refused; the others on its connection go on. HTTP/2's own bound
//!   would make clients wait in silence.
//! - **L5** Memory is counted for as long as a stream is open, its headers included.

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::StreamBytes;
use crate::backend::Unavailable;
use crate::limits::STREAM_BYTES;

/// What one permit stands for.
const UNIT_BYTES: usize = 1024;

/// The streams of all connections. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    all: Arc<Semaphore>,
    connection_units: usize,
}

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct ConnectionStreams {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// One open stream.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

impl Streams {
    pub(super) fn new(bytes: StreamBytes) -> Self {
        let all = Arc::new(Semaphore::new(bytes.all_max / UNIT_BYTES));
        Self { all, connection_units: bytes.connection_max / UNIT_BYTES }
    }

    pub(super) fn connection(&self) -> ConnectionStreams {
        let own = Arc::new(Semaphore::new(self.connection_units));
        ConnectionStreams { all: self.all.clone(), own }
    }
}

impl ConnectionStreams {
    /// A place for one more stream.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(super) fn open(&self, headers: &HeaderMap) -> Result<Place, Unavailable> {
        let header_bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let bytes = STREAM_BYTES + header_bytes.sum::<usize>();
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let take = |from: &Arc<Semaphore>| {
            let taken = from.clone().try_acquire_many_owned(units);
            taken.map_err(|_| Unavailable::TooManyRequests)
        };
        Ok(Place([take(&self.own)?, take(&self.all)?]))
    }
}
