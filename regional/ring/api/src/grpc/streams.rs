//! How many requests and streams may be open: on one connection, and on all together.
//!
//! # Invariants
//!
//! - **STREAMS-4** One stream over a bound is refused; the others on its connection go on. HTTP/2's own bound
//!   would make clients wait in silence.
//! - **STREAMS-5** Memory is counted until HTTP/2 has written the end of a stream: its headers, the message that
//!   it holds, whole or in part, and its answer. A refusal counts as one of those that a connection may
//!   leave unread.

use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::calls::Unavailable;
use crate::limits::{REFUSALS_UNREAD_MAX, StreamBytes};

/// The bytes of one permit.
const UNIT_BYTES: usize = 1024;

/// The streams of all connections. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    all: Arc<Semaphore>,
    connection_units: usize,
}

/// The streams of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionStreams {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

/// Memory that one open stream has reserved, of its connection's share and of the total.
#[derive(Debug)]
pub struct Reservation([OwnedSemaphorePermit; 2]);

impl Reservation {
    /// Another reservation for the same stream, empty yet.
    pub(crate) fn sibling(&self) -> Self {
        let none = |permit: &OwnedSemaphorePermit| {
            let semaphore = permit.semaphore().clone();
            semaphore.try_acquire_many_owned(0).expect("BUG: none are always left")
        };
        Self(self.0.each_ref().map(none))
    }

    /// Grows or shrinks this reservation to `bytes`, rounded down to whole units.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`] without that much memory; the reservation is unchanged then.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), Unavailable> {
        let units = bytes / UNIT_BYTES;
        let held = self.0[0].num_permits();
        if units <= held {
            self.shrink(units);
            return Ok(());
        }
        let [own, all] = self.0.each_ref().map(|permit| take(permit.semaphore(), units - held));
        let (own, all) = (own?, all?);
        self.0[0].merge(own);
        self.0[1].merge(all);
        Ok(())
    }

    /// Shrinks this reservation to nothing.
    pub(crate) fn release(&mut self) {
        self.shrink(0);
    }

    fn shrink(&mut self, units: usize) {
        for permit in &mut self.0 {
            let excess = permit.num_permits() - units;
            if excess > 0 {
                drop(permit.split(excess));
            }
        }
    }
}

impl Streams {
    pub(crate) fn new(bytes: StreamBytes) -> Self {
        let all = Arc::new(Semaphore::new(bytes.all_max / UNIT_BYTES));
        Self { all, connection_units: bytes.connection_max / UNIT_BYTES }
    }

    pub(crate) fn connection(&self) -> ConnectionStreams {
        let own = Arc::new(Semaphore::new(self.connection_units));
        let refusals = Arc::new(Semaphore::new(REFUSALS_UNREAD_MAX));
        ConnectionStreams { all: self.all.clone(), own, refusals }
    }
}

impl ConnectionStreams {
    /// Reserves memory for one more stream, which takes `stream_bytes` besides its headers.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`].
    pub(crate) fn open(
        &self,
        stream_bytes: usize,
        headers: &HeaderMap,
    ) -> Result<Reservation, Unavailable> {
        let header_bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let bytes = stream_bytes + header_bytes.sum::<usize>();
        let units = bytes.div_ceil(UNIT_BYTES);
        Ok(Reservation([take(&self.own, units)?, take(&self.all, units)?]))
    }

    /// A permit to hold until the client has read a refusal; `None` if it has left too many unread.
    pub(crate) fn refusal(&self) -> Option<OwnedSemaphorePermit> {
        self.refusals.clone().try_acquire_owned().ok()
    }
}

fn take(from: &Arc<Semaphore>, units: usize) -> Result<OwnedSemaphorePermit, Unavailable> {
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let taken = from.clone().try_acquire_many_owned(units);
    taken.map_err(|_| Unavailable::TooManyRequests)
}
