//! Linearizable reads (ReadIndex): makes the local state recent enough to be read.
//!
//! A member must not answer from its local state without a proof, because it may be isolated. So
//! the leader proves that it still leads, by a round to a quorum or by the lease from such a round,
//! and names an index at or above every acknowledged write; a member that has applied that index
//! may answer. All waiting reads share one round.
//!
//! # Invariants
//!
//! - **READ-1** The proof begins after the read arrived. A round in progress serves no new reader.
//! - **READ-2** Only a part of the lease counts: openraft uses the whole lease, and with clocks of
//!   different speeds two leaders would believe in theirs.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::{
    ReadPolicy,
    async_runtime::WatchReceiver as _,
    errors::{LinearizableReadError, RaftError},
    raft::linearizable_read::LinearizerOption,
};
use satrap_ring_api::backend::{PendingAnswer, ReadMode, ReadPoint, Served, Unavailable};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    frames::{ReadIndexReply, ReadProof},
    locks::lock,
    meters::SLOW_READ_INDEX,
    node::Node,
    platform::{Platform, Real},
    state_machine::Marks,
    types::MemberName,
    waiters::Waiters,
};
use crate::limits::PROPOSAL_TIMEOUT;

/// READ-2: the share of the leader's lease that counts.
const LEASE_SHARE: f64 = 0.7;
/// Time limit of one request to the leader.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The channel of one reader's answer.
pub type Reader = oneshot::Sender<Result<ReadPoint, Unavailable>>;

fn proof(mode: ReadMode) -> ReadProof {
    match mode {
        ReadMode::Linearizable => ReadProof::Quorum,
        ReadMode::Lease => ReadProof::Lease,
    }
}

/// Serves the reads of one member.
pub struct Reads<P: Platform = Real> {
    node: Node<P>,
    /// Holds the queue on which answers reach the readers.
    waiters: Waiters,
    /// The start of the last proof that this member's state was the newest.
    fresh_at: Arc<Mutex<Option<Duration>>>,
}

impl<P: Platform> Clone for Reads<P> {
    fn clone(&self) -> Self {
        let Self { node, waiters, fresh_at } = self;
        Self { node: node.clone(), waiters: waiters.clone(), fresh_at: fresh_at.clone() }
    }
}

impl<P: Platform> Reads<P> {
    /// The reads of `node`; answers go the way of those of `waiters`.
    #[must_use]
    pub fn new(node: Node<P>, waiters: Waiters) -> Self {
        Self { node, waiters, fresh_at: Arc::default() }
    }

    /// The last time ([`Platform::monotonic`]) at which this member's state was known to be the
    /// ring's newest.
    #[must_use]
    pub fn fresh_at(&self) -> Option<Duration> {
        *lock(&self.fresh_at)
    }

    /// Answers all `readers` with one proof (READ-1).
    pub async fn serve(self, mode: ReadMode, readers: Vec<Reader>) {
        let deadline = Instant::now() + PROPOSAL_TIMEOUT;
        let began = P::monotonic();
        let fresh = timeout_at(deadline, self.until_confirmed(mode, deadline)).await;
        let meters = &self.node.shared.meters;
        if P::monotonic().saturating_sub(began) > SLOW_READ_INDEX {
            meters.slow_read_indexes.add_one();
        }
        if !matches!(fresh, Ok(Ok(_))) {
            meters.read_indexes_failed.add_one();
        }
        let point = fresh.unwrap_or(Err(Unavailable::Timeout));
        let answers = readers.into_iter().map(|reader| PendingAnswer::Read(reader, point));
        self.waiters.answers().send(answers.collect());
    }

    async fn until_confirmed(
        &self,
        mode: ReadMode,
        deadline: Instant,
    ) -> Result<ReadPoint, Unavailable> {
        let (index, began) = loop {
            let (leader, began) = (self.node.leader(), P::monotonic());
            match self.ask_index(leader.clone(), proof(mode)).await {
                ReadIndexReply::Index(index) => break (index, began),
                ReadIndexReply::NotLeading => self.node.until_leader_is_not(leader, deadline).await,
            }
        };
        self.until_applied(index).await?;
        let mut fresh_at = lock(&self.fresh_at);
        *fresh_at = (*fresh_at).max(Some(began));
        drop(fresh_at);
        let served = match mode {
            ReadMode::Linearizable => Served::Quorum,
            ReadMode::Lease => Served::Lease,
        };
        Ok(ReadPoint { served, stale_ms_max: Some(0), term: self.node.term() })
    }

    async fn ask_index(&self, leader: Option<MemberName>, proof: ReadProof) -> ReadIndexReply {
        match leader {
            Some(name) if name == self.node.name => self.read_index(proof).await,
            Some(name) => {
                let sender = self.node.network.sender(name.clone());
                let reply = tokio::select! {
                    biased;
                    reply = sender.read_index(proof, ASK_TIMEOUT) => reply,
                    () = self.node.until_leader_is_not(Some(name), Instant::now() + ASK_TIMEOUT) => {
                        return ReadIndexReply::NotLeading;
                    }
                };
                reply.unwrap_or(ReadIndexReply::NotLeading)
            }
            None => ReadIndexReply::NotLeading,
        }
    }

    /// Proves that this member leads, and returns the index that readers must have applied.
    pub async fn read_index(&self, proof: ReadProof) -> ReadIndexReply {
        let option = match proof {
            ReadProof::Quorum => LinearizerOption::from(ReadPolicy::ReadIndex),
            ReadProof::Lease => LinearizerOption::new(
                Some(self.node.timing.election_max.mul_f64(LEASE_SHARE)),
                true,
            ),
        };
        match self.node.raft.get_read_linearizer(option).await {
            Ok(linearizer) => ReadIndexReply::Index(Some(linearizer.read_log_id().index())),
            Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_)
                | LinearizableReadError::QuorumNotEnough(_),
            )) => ReadIndexReply::NotLeading,
            Err(error) => {
                tracing::info!(%error, "ReadIndex failed");
                ReadIndexReply::NotLeading
            }
        }
    }

    async fn until_applied(&self, index: Option<u64>) -> Result<(), Unavailable> {
        let mut applied: Marks<P> = self.node.applied.clone();
        let reached = applied.wait_until(|mark| Some(mark.index) >= index);
        reached.await.map(|_| ()).map_err(|_| Unavailable::Stopped)
    }
}
