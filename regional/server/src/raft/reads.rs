//! Makes the local state fresh enough to be read.
//!
//! A member must not answer from what it has: it may have been cut off an hour ago. So the leader
//! shows that it still leads, by a round to a quorum or by the lease such a round gave it, and names
//! the index that everything acknowledged so far is at or below; a member that has applied that much
//! may answer. All reads that wait share one round.
//!
//! # Invariants
//!
//! - **R1** The proof begins after the read arrived. A round that is under way serves nobody new.
//! - **R2** The lease counts for less than it says: openraft takes the whole lease, and clocks that
//!   run at different speeds would make two leaders believe in theirs.

use std::time::Duration;

use openraft::{
    ReadPolicy,
    async_runtime::WatchReceiver as _,
    errors::{LinearizableReadError, RaftError},
    raft::linearizable_read::LinearizerOption,
};
use satrap_regional_api::backend::{Delivery, ReadMode, ReadPoint, Served, Unavailable};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Ring,
    frames::{ReadIndexReply, ReadProof},
    lock,
    meters::SLOW_READ_INDEX,
    platform::Platform,
    state_machine::Marks,
    types::MemberName,
};
use crate::limits::PROPOSAL_TIMEOUT;

/// R2: this much of the leader's lease is believed.
const LEASE_SHARE: f64 = 0.7;
/// How long one question to the leader may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Where one reader's answer goes.
pub type Reader = oneshot::Sender<Result<ReadPoint, Unavailable>>;

fn proof(mode: ReadMode) -> ReadProof {
    match mode {
        ReadMode::Linearizable => ReadProof::Quorum,
        ReadMode::Lease => ReadProof::Lease,
    }
}

impl<P: Platform> Ring<P> {
    /// Answers all `readers` with one proof (R1).
    pub async fn freshen(self, mode: ReadMode, readers: Vec<Reader>) {
        let deadline = Instant::now() + PROPOSAL_TIMEOUT;
        let began = P::monotonic();
        let fresh = timeout_at(deadline, self.until_fresh(mode, deadline)).await;
        let meters = &self.shared.meters;
        if P::monotonic().saturating_sub(began) > SLOW_READ_INDEX {
            meters.slow_read_indexes.add_one();
        }
        if !matches!(fresh, Ok(Ok(_))) {
            meters.read_indexes_failed.add_one();
        }
        let point = fresh.unwrap_or(Err(Unavailable::Timeout));
        let answers = readers.into_iter().map(|reader| Delivery::Read(reader, point));
        self.waiters.deliveries().deliver(answers.collect());
    }

    async fn until_fresh(
        &self,
        mode: ReadMode,
        deadline: Instant,
    ) -> Result<ReadPoint, Unavailable> {
        let (index, began) = loop {
            let (leader, began) = (self.leader(), P::monotonic());
            match self.ask_index(leader.clone(), proof(mode)).await {
                ReadIndexReply::Index(index) => break (index, began),
                ReadIndexReply::NotLeading => self.until_leader_is_not(leader, deadline).await,
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
        Ok(ReadPoint { served, stale_ms_max: Some(0), term: self.term() })
    }

    async fn ask_index(&self, leader: Option<MemberName>, proof: ReadProof) -> ReadIndexReply {
        match leader {
            Some(name) if name == self.name => self.read_index(proof).await,
            Some(name) => {
                let sender = self.network.sender(name.clone());
                let reply = tokio::select! {
                    biased;
                    reply = sender.read_index(proof, ASK_TIMEOUT) => reply,
                    () = self.until_leader_is_not(Some(name), Instant::now() + ASK_TIMEOUT) => {
                        return ReadIndexReply::NotLeading;
                    }
                };
                reply.unwrap_or(ReadIndexReply::NotLeading)
            }
            None => ReadIndexReply::NotLeading,
        }
    }

    /// Shows that this member leads, and says how far a reader must have applied.
    pub async fn read_index(&self, proof: ReadProof) -> ReadIndexReply {
        let option = match proof {
            ReadProof::Quorum => LinearizerOption::from(ReadPolicy::ReadIndex),
            ReadProof::Lease => {
                LinearizerOption::new(Some(self.timing.election_max.mul_f64(LEASE_SHARE)), true)
            }
        };
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => ReadIndexReply::Index(Some(linearizer.read_log_id().index())),
            Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_)
                | LinearizableReadError::QuorumNotEnough(_),
            )) => ReadIndexReply::NotLeading,
            Err(error) => {
                tracing::info!(%error, "no read index");
                ReadIndexReply::NotLeading
            }
        }
    }

    async fn until_applied(&self, index: Option<u64>) -> Result<(), Unavailable> {
        let mut applied: Marks<P> = self.applied.clone();
        let reached = applied.wait_until(|mark| Some(mark.index) >= index);
        reached.await.map(|_| ()).map_err(|_| Unavailable::Stopped)
    }
}
