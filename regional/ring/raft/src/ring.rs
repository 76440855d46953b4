//! [`Ring`]: a running member of the ring, as other crates use it.

use std::sync::Arc;

use openraft::async_runtime::WatchReceiver as _;
use satrap_ring_api::backend::{Member, MemberIdentity, RingView, Unavailable};
use satrap_ring_core::{Extensions, Keyspace, Request, alarm::AlarmKind};
use satrap_ring_storage::{StorageError, files::Files};
use tokio::sync::{mpsc, watch};

use crate::{
    checkpoint::Checkpoints,
    frames::ANY_INSTANCE,
    health::Health,
    inbox::DiskAlarm,
    log_store::LogStore,
    members::{Members, cluster_id},
    node::{Leading, Node, RingStatus},
    peers::Peers,
    platform::{Platform, Real},
    proposals::{ProposeError, Proposer},
    reads::Reads,
    setup::RingSetup,
    types::{MemberName, MemberNode, Reply},
};

/// A handle to a running member of the ring. Clones share it; it works from any runtime.
pub struct Ring<P: Platform = Real> {
    pub(crate) node: Node<P>,
    pub(crate) proposer: Proposer<P>,
    pub(crate) reads: Reads<P>,
    pub(crate) members: Members<P>,
    pub(crate) health: Health<P>,
    pub(crate) views: watch::Receiver<Arc<Extensions>>,
    pub(crate) checkpoints: Checkpoints,
}

impl<P: Platform> Clone for Ring<P> {
    fn clone(&self) -> Self {
        Self {
            node: self.node.clone(),
            proposer: self.proposer.clone(),
            reads: self.reads.clone(),
            members: self.members.clone(),
            health: self.health.clone(),
            views: self.views.clone(),
            checkpoints: self.checkpoints.clone(),
        }
    }
}

/// The parts of a member; [`crate::serve`] drives them, so that the [`Ring`] works.
pub struct RingParts<P: Platform = Real> {
    pub(crate) ring: Ring<P>,
    pub(crate) log: LogStore<P>,
    pub(crate) peers: Peers,
    pub(crate) files: Arc<dyn Files>,
    pub(crate) setup: RingSetup,
    pub(crate) disk_alarm: DiskAlarm,
    pub(crate) disk_failures: mpsc::Receiver<StorageError>,
}

impl<P: Platform> RingParts<P> {
    /// The handle for other crates.
    #[must_use]
    pub fn ring(&self) -> Ring<P> {
        self.ring.clone()
    }
}

impl<P: Platform> Ring<P> {
    /// The extensions of the applied state, published after every change.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<Extensions>> {
        self.views.clone()
    }

    /// The current extensions of the applied state.
    #[must_use]
    pub fn extensions(&self) -> Arc<Extensions> {
        self.views.borrow().clone()
    }

    /// This member's identity for clients. Waits until the ring has added this member and recorded
    /// its disk: from then on, no member with another disk can pass for it.
    pub async fn identity(&self) -> MemberIdentity {
        let mut metrics = self.node.raft.server_metrics();
        loop {
            drop(metrics.borrow_and_update());
            let own = self.nodes().into_iter().find(|(name, _)| *name == self.node.name);
            let recorded = own.filter(|(_, node)| node.instance != ANY_INSTANCE);
            if let Some((name, node)) = recorded {
                let cluster_id = cluster_id(&self.members.ring);
                return MemberIdentity { cluster_id, member_id: node.id, name: name.to_string() };
            }
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The view of the ring for services.
    #[must_use]
    pub fn view(&self, checkpoints: &Checkpoints) -> RingView {
        let status = self.status();
        let members = self.members();
        let leader = status.leader.as_ref().filter(|_| self.in_touch()).and_then(|leader| {
            members.iter().find(|member| member.name == leader.as_str()).map(|member| member.id)
        });
        let size = checkpoints.state().size().unwrap_or_default();
        let mut errors = self.node.shared.faults();
        if leader.is_none() {
            errors.push(Unavailable::NoLeader.to_string());
        }
        RingView {
            leader: leader.unwrap_or(0),
            term: status.term,
            log_index: status.log_index,
            members,
            disk_bytes: size.file_bytes,
            disk_bytes_used: size.used_bytes,
            fresh_at: self.reads.fresh_at(),
            errors,
        }
    }

    /// Reads the keyspace as this member has applied it.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        self.node.read(f)
    }

    /// This member.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        self.node.name()
    }

    /// Whether this member is in contact with a leader that a quorum follows, itself included.
    #[must_use]
    pub fn in_touch(&self) -> bool {
        self.node.in_touch()
    }

    /// The status of the ring, as this member knows it.
    #[must_use]
    pub fn status(&self) -> RingStatus {
        self.node.status()
    }

    /// The members in the newest membership.
    #[must_use]
    pub fn nodes(&self) -> Vec<(MemberName, MemberNode)> {
        self.node.nodes()
    }

    /// The members as clients see them, invited ones included.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.members.list()
    }

    /// The alarms of the ring, each with the name of the member that it is about.
    #[must_use]
    pub fn alarms(&self) -> Vec<(AlarmKind, String)> {
        self.members.alarms()
    }

    /// Completes once this member leads, or stops leading. `false` if Raft has stopped.
    pub async fn until(&self, leading: Leading) -> bool {
        self.node.until(leading).await
    }

    /// Completes once the status is as wanted. `false` if Raft has stopped.
    pub async fn until_status(&self, wanted: impl Fn(&RingStatus) -> bool) -> bool {
        self.node.until_status(wanted).await
    }

    /// Proposes a command for an extension, as `Command::encode_for` makes it, and waits until this
    /// member has applied it. Leader only.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]. After a change of leaders the command may still be applied.
    pub async fn propose(&self, command: &[u8]) -> Result<Reply, ProposeError> {
        self.proposer.propose(command).await
    }

    /// Proposes one request of the ring itself.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn ask(&self, request: Request) -> Result<satrap_ring_core::Reply, Unavailable> {
        self.proposer.ask(request).await
    }

    /// Sets or clears a fault of this member, which operators see in its status.
    pub fn report_fault(&self, about: &'static str, why: Option<&str>) {
        let _ = self.node.shared.report_fault(about, why);
    }

    /// The faults of this member that need an operator.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.node.shared.faults()
    }
}
