//! This member's Raft, as the other parts of the ring see it: leader, term, membership, and the
//! progress of this member.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{Raft, async_runtime::WatchReceiver as _};
use satrap_ring_core::Keyspace;
use tokio::time::{Instant, timeout_at};

use super::{
    checkpoint::Shared,
    network::Network,
    platform::{Platform, Real},
    setup::Timing,
    state_machine::{Marks, StateMachine},
    types::{self, MemberName, MemberNode, Membership, Types},
};

/// This member's Raft. Clones share it; it works from any runtime.
pub struct Node<P: Platform = Real> {
    /// The consensus library's handle.
    pub(crate) raft: Raft<Types<P>, StateMachine<P>>,
    /// This member.
    pub(crate) name: MemberName,
    /// Raft's clocks.
    pub(crate) timing: Timing,
    /// The applied state.
    pub(crate) shared: Shared,
    /// The index and revision of that state, published after every entry.
    pub(crate) applied: Marks<P>,
    /// The other members.
    pub(crate) network: Network,
}

impl<P: Platform> Clone for Node<P> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            name: self.name.clone(),
            timing: self.timing,
            shared: self.shared.clone(),
            applied: self.applied.clone(),
            network: self.network.clone(),
        }
    }
}

/// The status of the ring, as this member knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingStatus {
    /// The leader, if there is one.
    pub leader: Option<MemberName>,
    /// The current term.
    pub term: u64,
    /// Last entry in the log.
    pub log_index: u64,
    /// Last entry known to be committed.
    pub committed_index: u64,
    /// Last applied entry.
    pub applied_index: u64,
    /// Last entry that a snapshot covers.
    pub snapshot_index: u64,
    /// Last purged entry.
    pub purged_index: u64,
    /// Entries that each other member lacks; only the leader knows.
    pub lag: BTreeMap<MemberName, u64>,
}

/// The awaited change of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leading {
    /// This member becomes the leader.
    Yes,
    /// This member stops being the leader.
    No,
}

impl<P: Platform> Node<P> {
    /// Reads the keyspace as this member has applied it.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        self.shared.read(f)
    }

    /// This member.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        &self.name
    }

    /// Whether this member leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state.is_leader()
    }

    /// This member's current term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    /// The leader, as far as this member knows.
    #[must_use]
    pub fn leader(&self) -> Option<MemberName> {
        self.raft.server_metrics().borrow_watched().current_leader.clone()
    }

    /// Whether this member is in contact with a leader that a quorum follows, itself included.
    #[must_use]
    pub fn in_touch(&self) -> bool {
        // The longest time before a follower starts an election: the lease, and its own timeout.
        let patience = 2 * self.timing.election_max;
        self.network.contact.silence().is_some_and(|silence| silence <= patience)
    }

    /// Completes once this member leads, or stops leading. `false` if Raft has stopped.
    pub async fn until(&self, leading: Leading) -> bool {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leads = metrics.borrow_and_update().state.is_leader();
            if leads == (leading == Leading::Yes) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Completes when another member than `leader` leads, or soon: openraft refuses writes for a
    /// moment without a change of leaders, while it transfers leadership or its lease is over.
    pub async fn until_leader_is_not(&self, leader: Option<MemberName>, deadline: Instant) {
        const SOON: Duration = Duration::from_millis(50);
        let mut metrics = self.raft.server_metrics();
        let changed = async {
            while metrics.borrow_and_update().current_leader == leader {
                if metrics.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let refusing = leader.is_none() || leader.as_ref() == Some(&self.name);
        let patience = if refusing { deadline.min(Instant::now() + SOON) } else { deadline };
        let _ = timeout_at(patience, changed).await;
    }

    /// Completes once the status is as wanted. `false` if Raft has stopped.
    pub async fn until_status(&self, wanted: impl Fn(&RingStatus) -> bool) -> bool {
        let mut metrics = self.raft.metrics();
        loop {
            drop(metrics.borrow_and_update());
            if wanted(&self.status()) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// The status of the ring, as this member knows it.
    #[must_use]
    pub fn status(&self) -> RingStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<types::LogId>| id.map_or(0, |id| id.index);
        let log_index = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.iter().flatten();
        let lag = replication
            .filter(|(name, _)| **name != self.name)
            .map(|(name, matched)| (name.clone(), log_index.saturating_sub(index(matched))));
        RingStatus {
            leader: metrics.current_leader.clone(),
            term: metrics.current_term,
            log_index,
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            purged_index: index(&metrics.purged),
            lag: lag.collect(),
        }
    }

    /// The newest membership in the log.
    pub fn membership(&self) -> Arc<Membership> {
        self.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    /// The members in the newest membership.
    #[must_use]
    pub fn nodes(&self) -> Vec<(MemberName, MemberNode)> {
        let membership = self.membership();
        membership.nodes().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// The member with that id.
    #[must_use]
    pub fn member_with_id(&self, id: u64) -> Option<(MemberName, MemberNode)> {
        self.nodes().into_iter().find(|(_, node)| node.id == id)
    }

    /// The id of this member, once the ring has added it.
    #[must_use]
    pub fn own_id(&self) -> Option<u64> {
        self.nodes().into_iter().find(|(name, _)| *name == self.name).map(|(_, node)| node.id)
    }

    /// The voters of the newest membership.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<MemberName> {
        self.membership().voter_ids().collect()
    }
}
