//! The state that all services of a member share, and their only way to the ring.
//!
//! An [`Api`] identifies callers (`admit`), commits requests (`propose`), and refuses reads of a state that is known to be
//! corrupt. Services on HTTP/2 and those behind tonic use the same one.

mod admit;
mod propose;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use satrap_pressure::Rate;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::backend::Backend;
use crate::grpc::{BUDGET_UNIT_BYTES, LongAnswers};
use crate::limits::{
    CONNECTION_RATE, CONNECTION_STREAMS_BYTES_MAX, LONG_ANSWERS_BYTES_MAX, LONG_MESSAGES_BYTES_MAX,
    LONG_READS_MAX, RequestLimits, STREAMS_BYTES_MAX, StreamBytes, WatchSettings,
};
use crate::meters::Meters;
pub use propose::Answered;
pub(crate) use propose::{mismatch, raise_no_space};

/// The services of one member; shared by all connections.
#[derive(Debug)]
pub struct Api {
    /// The way to the ring.
    pub backend: Backend,
    /// The budget of all long messages, in units of [`BUDGET_UNIT_BYTES`] (FRAME-3).
    pub long_messages: Arc<Semaphore>,
    /// The budget of all long answers that clients have not read (FRAME-5).
    pub long_answers: LongAnswers,
    /// The settings of watch streams.
    pub watching: WatchSettings,
    /// Bounds of one request.
    pub requests: RequestLimits,
    /// The rate of requests of one connection; a stream counts once.
    pub connection_rate: Rate,
    /// The memory that open requests and streams may reserve (STREAMS-5).
    pub stream_bytes: StreamBytes,
    /// The metrics of these services.
    pub meters: Meters,
    /// The metrics of the ring, which `/metrics` appends to those of the services.
    pub ring_metrics: Option<RingMetrics>,
    long_reads: Semaphore,
    client_listener_ended: AtomicBool,
}

/// Collects metrics in the text format of Prometheus.
#[derive(Clone)]
pub struct RingMetrics(pub Arc<dyn Fn() -> String + Send + Sync>);

impl std::fmt::Debug for RingMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RingMetrics")
    }
}

impl Api {
    /// Serves what `backend` reaches.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        let long_messages = Arc::new(Semaphore::new(LONG_MESSAGES_BYTES_MAX / BUDGET_UNIT_BYTES));
        let long_reads = Semaphore::new(LONG_READS_MAX);
        Self {
            backend,
            long_messages,
            long_answers: LongAnswers::of(LONG_ANSWERS_BYTES_MAX),
            watching: Default::default(),
            requests: RequestLimits::default(),
            connection_rate: CONNECTION_RATE,
            stream_bytes: StreamBytes {
                all_max: STREAMS_BYTES_MAX,
                connection_max: CONNECTION_STREAMS_BYTES_MAX,
            },
            meters: Meters::default(),
            ring_metrics: None,
            long_reads,
            client_listener_ended: AtomicBool::new(false),
        }
    }

    /// Whether the client listener ended before it was asked to, so that this member is not healthy.
    #[must_use]
    pub fn client_listener_ended(&self) -> bool {
        self.client_listener_ended.load(Relaxed)
    }

    pub(crate) fn end_client_listener(&self) {
        self.client_listener_ended.store(true, Relaxed);
    }

    /// Waits until fewer than [`LONG_READS_MAX`] long reads are running.
    pub async fn turn_to_read(&self) -> SemaphorePermit<'_> {
        self.long_reads.acquire().await.expect("BUG: the semaphore was closed")
    }
}
