//! State that all services of one member share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use satrap_regional_core::Refusal;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;

use crate::backend::Backend;
use crate::grpc::{BUDGET_UNIT_BYTES, LongAnswers};
use crate::limits::{
    CONNECTION_RATE, CONNECTION_STREAMS_BYTES_MAX, LONG_ANSWERS_BYTES_MAX, LONG_MESSAGES_BYTES_MAX,
    LONG_READS_MAX, REQUEST_BYTES_MAX, REQUEST_OVERHEAD_BYTES_MAX, STREAMS_BYTES_MAX, TXN_OPS_MAX,
};
use crate::meters::Meters;
use crate::status::refused;

/// How many requests are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_s: u32,
    /// At once.
    pub burst: u32,
}

/// How much memory open requests and streams may hold; each counts for
/// [`STREAM_BYTES`](crate::limits::STREAM_BYTES) or
/// [`GENERIC_STREAM_BYTES`](crate::limits::GENERIC_STREAM_BYTES), for its headers, and for the messages
/// that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBytes {
    /// Of all connections.
    pub all_max: usize,
    /// Of one connection.
    pub connection_max: usize,
}

/// Bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Of the entry that it becomes; as etcd's `--max-request-bytes`.
    pub bytes_max: usize,
    /// Operations of one list of a transaction; as etcd's `--max-txn-ops`.
    pub txn_ops_max: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { bytes_max: REQUEST_BYTES_MAX, txn_ops_max: TXN_OPS_MAX }
    }
}

impl RequestLimits {
    /// Of a message, in bytes. A longer one is refused before it is read.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        self.bytes_max + REQUEST_OVERHEAD_BYTES_MAX
    }
}

/// The services of one member; shared by all connections.
#[derive(Debug)]
pub struct Api {
    /// The way to the ring.
    pub backend: Backend,
    /// For messages that do not fit into a window; in units of [`BUDGET_UNIT_BYTES`].
    pub long_messages: Arc<Semaphore>,
    /// For answers that clients have not read.
    pub long_answers: LongAnswers,
    /// How watch streams are carried.
    pub watching: crate::watch::Settings,
    /// Bounds of one request.
    pub requests: RequestLimits,
    /// How many requests one connection may make; a stream counts once.
    pub connection_rate: Rate,
    /// How much memory open requests and streams may hold.
    pub stream_bytes: StreamBytes,
    /// Figures of these services.
    pub meters: Meters,
    /// Figures of the ring, as Prometheus reads them; they follow those of the services.
    pub ring_metrics: Option<RingMetrics>,
    long_reads: Semaphore,
    front_ended: AtomicBool,
}

/// Makes a text for Prometheus.
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
            front_ended: AtomicBool::new(false),
        }
    }

    /// Whether the listener for clients ended before it was asked to, so that this member is not healthy.
    #[must_use]
    pub fn front_ended(&self) -> bool {
        self.front_ended.load(Relaxed)
    }

    pub(crate) fn end_front(&self) {
        self.front_ended.store(true, Relaxed);
    }

    /// Waits until one more long read may go on.
    pub async fn turn_to_read(&self) -> SemaphorePermit<'_> {
        self.long_reads.acquire().await.expect("BUG: the semaphore was closed")
    }

    /// Whether this member has no vote.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        let me = self.backend.identity().member_id;
        self.backend.status().members.iter().any(|member| member.id == me && member.is_learner)
    }

    /// Refuses what a learner does not serve.
    ///
    /// # Errors
    ///
    /// As etcd.
    pub fn check_voter(&self) -> Result<(), Status> {
        match self.is_learner() {
            true => Err(refused(&Refusal::NotSupportedForLearner)),
            false => Ok(()),
        }
    }
}
