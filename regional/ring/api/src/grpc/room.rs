//! Memory for answers. A client may ask for much and read nothing, on as many streams as it may open.
//!
//! HTTP/2 holds an answer until the client's window and its socket take it. So what an answer counts for
//! travels with its bytes, and with the headers that end its stream.
//!
//! # Invariants
//!
//! - **FRAME-5** An answer is charged before it is encoded, and until HTTP/2 has written it or has dropped it with
//!   its stream: a short one to the reservation of its stream, a long one to a budget that all streams share.
//! - **FRAME-6** A client takes a long answer in a time that follows from its length, or its stream is reset.
//!   A stream that has nothing to say is never reset.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::streams::Reservation;
use super::{BUDGET_UNIT_BYTES, Gone, PREFIX_BYTES, frame, send_data};
use crate::calls::Unavailable;
use crate::limits::{ANSWER_BYTES_PER_S_MIN, ANSWER_TIMEOUT};

/// An answer up to here is short.
pub(crate) const SHORT_ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The budget of all long answers. Clones share it.
#[derive(Clone, Debug)]
pub struct LongAnswers {
    budget: Arc<Semaphore>,
    units_max: u32,
}

impl LongAnswers {
    /// A budget of `bytes`. An answer that is longer waits until it has all of it.
    #[must_use]
    pub fn of(bytes: usize) -> Self {
        let units_max = units(bytes);
        Self { budget: Arc::new(Semaphore::new(units_max as usize)), units_max }
    }

    /// The bytes that are left.
    #[must_use]
    pub fn available_bytes(&self) -> usize {
        self.budget.available_permits() * BUDGET_UNIT_BYTES
    }

    /// Charges `bytes`, which no HTTP/2 stream holds, to this budget if they are longer than a short answer. `None`
    /// over the budget.
    pub(crate) fn try_charge(&self, bytes: Bytes) -> Option<Bytes> {
        if bytes.len() <= SHORT_ANSWER_BYTES_MAX {
            return Some(bytes);
        }
        self.try_take(bytes.len()).map(|taken| held(bytes, taken))
    }

    /// Takes room for an answer; `None` without it.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.budget.clone().try_acquire_many_owned(units(bytes).min(self.units_max)).ok()
    }

    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let taken = self.budget.clone().acquire_many_owned(units(bytes).min(self.units_max));
        taken.await.expect("BUG: the budget was closed")
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// The memory that a stream and its answer count for (FRAME-5).
#[derive(Debug)]
pub struct Room {
    stream: Reservation,
    /// For a short answer, for a long one that waits, and for what the generic stack keeps.
    answer: Reservation,
    kept_bytes: usize,
    long: LongAnswers,
}

impl Room {
    /// The room of a stream with this reservation.
    #[must_use]
    pub fn new(stream: Reservation, long: LongAnswers) -> Self {
        Self { answer: stream.sibling(), stream, kept_bytes: 0, long }
    }

    /// Another reservation for the same stream, empty yet.
    pub(crate) fn sibling(&self) -> Reservation {
        self.stream.sibling()
    }

    /// Encodes an answer, with its prefix, once there is room for it. The answer before it counts no
    /// more. `answer` is called again after a wait, so that nothing but what it is made of is held
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`Unavailable::TooManyRequests`] if the streams of this connection, or all, hold too much.
    pub async fn frame<M: Message>(
        &mut self,
        answer: impl Fn() -> M,
    ) -> Result<Bytes, Unavailable> {
        let message = answer();
        let bytes = PREFIX_BYTES + message.encoded_len();
        if bytes <= SHORT_ANSWER_BYTES_MAX {
            self.answer.resize(bytes)?;
            return Ok(frame(&message));
        }
        if let Some(taken) = self.long.try_take(bytes) {
            self.answer.release();
            return Ok(held(frame(&message), taken));
        }
        drop(message);
        // More than the references to keys and values of one step of a read take.
        self.answer.resize(SHORT_ANSWER_BYTES_MAX)?;
        let taken = Box::pin(self.long.take(bytes)).await;
        self.answer.release();
        Ok(held(frame(&answer()), taken))
    }

    /// Charges an answer that the tonic stack has encoded. The stack keeps the buffer of its longest answer while
    /// the stream is open, so that size stays charged to the reservation. A long answer is charged to the budget as
    /// well, until it is written.
    ///
    /// # Errors
    ///
    /// As [`Self::frame`].
    pub async fn count(&mut self, bytes: Bytes) -> Result<Bytes, Unavailable> {
        self.kept_bytes = self.kept_bytes.max(bytes.len());
        self.answer.resize(self.kept_bytes)?;
        if bytes.len() <= SHORT_ANSWER_BYTES_MAX {
            return Ok(bytes);
        }
        let taken = Box::pin(self.long.take(bytes.len())).await;
        Ok(held(bytes, taken))
    }
}

/// Something that ends with the bytes that it is held for.
struct Held<B, H> {
    bytes: B,
    _held: H,
}

impl<B: AsRef<[u8]>, H> AsRef<[u8]> for Held<B, H> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// The same bytes, which drop `held` with the last reference to them.
pub(crate) fn held(bytes: impl AsRef<[u8]> + Send + 'static, held: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Held { bytes, _held: held })
}

/// Drops `held` when HTTP/2 has written these headers, or has dropped them with their stream.
pub(crate) fn hold_until_written(headers: &mut HeaderMap, value: impl Send + 'static) {
    let Some(first) = headers.values_mut().next() else { return };
    let text = std::mem::replace(first, HeaderValue::from_static(""));
    *first = HeaderValue::from_maybe_shared(held(text, value)).expect("it was a header before");
    // The encoder's table would keep it.
    first.set_sensitive(true);
}

/// Sends all of `data`, and waits until HTTP/2 has written it (FRAME-6).
///
/// # Errors
///
/// [`Gone`], also if the client took too long.
pub(crate) async fn deliver(stream: &mut SendStream<Bytes>, data: Bytes) -> Result<(), Gone> {
    let bytes = data.len();
    let sent = async {
        let (writing, written) = oneshot::channel::<()>();
        send_data(stream, held(data, writing)).await?;
        // Nothing is ever sent through it: it ends with the data.
        drop(written.await);
        Ok(())
    };
    if bytes <= SHORT_ANSWER_BYTES_MAX {
        return sent.await;
    }
    match timeout(time_to_take(bytes), sent).await {
        Ok(sent) => sent,
        Err(_elapsed) => {
            tracing::debug!(bytes, "reset a stream whose client did not read its answer in time");
            stream.send_reset(Reason::ENHANCE_YOUR_CALM);
            Err(Gone)
        }
    }
}

fn time_to_take(bytes: usize) -> Duration {
    ANSWER_TIMEOUT + Duration::from_secs((bytes / ANSWER_BYTES_PER_S_MIN) as u64)
}
