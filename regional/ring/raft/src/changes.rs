//! Changes the membership of the ring.
//!
//! ```text
//!   `member add` ──▶ invited ── joins with its certificate ──▶ learner ── caught up ──▶ voter
//!        voter ── `member remove` ──▶ removed, and forgotten by its peers
//! ```
//!
//! Only the leader changes the membership; other members forward requests to it.
//!
//! # Invariants
//!
//! - **CHANGES-1** A member counts for the quorum only after it has joined itself.
//! - **CHANGES-2** The leader refuses a removal that would leave too few living voters.
//! - **CHANGES-3** The leader promotes a learner to voter once the learner has caught up.
//! - **CHANGES-4** The membership names a member's disk. A member that lost its disk is replaced
//!   like one that is gone: removed, and invited anew, perhaps under the same name.
//! - **CHANGES-5** No membership lies between the one that a joining member's `since` was taken
//!   from and the one that adds it. So every member can tell whether the membership it knows is
//!   older than the new member.
//! - **CHANGES-6** A leader first completes a change that an earlier leader left incomplete: with
//!   the next change on top, a voter that was being removed would stay.
//! - **CHANGES-7** A leader that is being removed makes no more changes, although it leads until
//!   its removal is known: further changes are for the remaining members to decide.

pub mod messages;
mod rules;

use std::{collections::BTreeSet, time::Duration};

use openraft::{
    ChangeMembers, Instant as _,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::Precondition,
};
use satrap_proto::{fault, v1::FaultKind};
use satrap_ring_api::backend::{Failure, Member, Unavailable};
use satrap_ring_core::{
    Refusal, Request,
    members::{Invitation, MemberRequest},
};
use satrap_ring_storage::InstanceId;
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};
use tonic::Status;

use self::rules::Join;
pub use self::{
    messages::{ChangeReply, MemberChange},
    rules::Fault,
};
use super::{
    members::Members,
    platform::{Platform, draw},
    types::{MemberName, MemberNode, Types},
};
use crate::limits::{LEARNER_LAG_MAX, MEMBERS_MAX};

/// Time limit of a change of the ring.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of a join; the joining member soon tries again.
const INTRODUCE_TIMEOUT: Duration = Duration::from_secs(1);
/// A voter that was silent for this many election timeouts does not count as living.
const SILENT_ELECTIONS: u32 = 4;

impl<P: Platform> Members<P> {
    /// Asks the leader to change the ring.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn request(&self, change: &MemberChange) -> Result<ChangeReply, Failure> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let leader = self.node.leader();
            let ask = async {
                match &leader {
                    Some(name) if *name == self.node.name => self.execute(change.clone()).await,
                    Some(name) => {
                        let sender = self.node.network.sender(name.clone());
                        let asked = sender.change_members(change, CHANGE_TIMEOUT).await;
                        asked.unwrap_or_else(|status| unanswered(&status))
                    }
                    None => ChangeReply::NotLeading,
                }
            };
            match timeout_at(deadline, ask).await {
                Ok(ChangeReply::Refused(fault)) => return Err(fault.into()),
                Ok(ChangeReply::NotLeading) if Instant::now() < deadline => {
                    self.node.until_leader_is_not(leader, deadline).await;
                }
                Ok(ChangeReply::NotLeading) => return Err(Unavailable::NoLeader.into()),
                Ok(ChangeReply::Unknown) | Err(_) => return Err(Unavailable::Timeout.into()),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// Forwards a join to the leader: the leader may have come after the joining member's
    /// configuration was written, so the joining member need not know it.
    pub async fn forward_join(&self, change: MemberChange) -> ChangeReply {
        match self.node.leader() {
            Some(name) if name != self.node.name => {
                let passed_on =
                    self.node.network.sender(name).change_members(&change, INTRODUCE_TIMEOUT).await;
                passed_on.unwrap_or(ChangeReply::Unknown)
            }
            _ => self.execute(change).await,
        }
    }

    /// Executes a change, if this member leads.
    pub async fn execute(&self, change: MemberChange) -> ChangeReply {
        if !self.node.leads() {
            return ChangeReply::NotLeading;
        }
        let done = match change {
            MemberChange::Invite { peer_urls, learner } => self.invite(peer_urls, learner).await,
            MemberChange::Join { name, url, instance } => {
                self.add_member(name, url, instance).await
            }
            MemberChange::Promote(id) => self.promote(id).await,
            MemberChange::Remove(id) => self.remove(id).await,
            MemberChange::Update { id, peer_urls } => self.update(id, peer_urls).await,
            MemberChange::Lead(id) => self.move_leader(id).await,
        };
        done.unwrap_or_else(|reply| reply)
    }

    async fn invite(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> Result<ChangeReply, ChangeReply> {
        let _turn = self.turn().await?;
        self.check_urls(&peer_urls, None)?;
        if self.list().len() >= MEMBERS_MAX {
            return Err(ChangeReply::Refused(Fault::TooMany));
        }
        let id = draw::<P>();
        let invitation = Invitation { peer_urls, learner };
        self.record(MemberRequest::Invite { id, invitation }).await?;
        Ok(ChangeReply::Invited(id))
    }

    fn check_urls(&self, urls: &[String], except: Option<u64>) -> Result<(), ChangeReply> {
        if urls.is_empty() || urls.iter().any(|url| satrap_identity::mtls::check_url(url).is_err())
        {
            return Err(ChangeReply::Refused(Fault::BadUrls));
        }
        let taken = |member: &Member| {
            Some(member.id) != except && member.peer_urls.iter().any(|url| urls.contains(url))
        };
        if self.list().iter().any(taken) {
            return Err(ChangeReply::Refused(Fault::UrlExists));
        }
        Ok(())
    }

    /// CHANGES-1
    async fn add_member(
        &self,
        name: MemberName,
        url: String,
        instance: InstanceId,
    ) -> Result<ChangeReply, ChangeReply> {
        let _turn = self.turn().await?;
        let before = *self.node.membership().log_id();
        let nodes = self.node.nodes();
        let judged = self.node.shared.read(|keyspace| {
            let newcomer = rules::Newcomer { name: &name, url: &url, instance: &instance };
            rules::join(&nodes, keyspace.members().invited(), newcomer)
        });
        let (id, learner) = match judged.map_err(ChangeReply::Refused)? {
            Join::IsMember => return Ok(ChangeReply::Done),
            Join::Invited { id, learner } => (id, learner),
        };
        tracing::info!(member = %name, url, "adding an invited member");
        let since = before.map_or(0, |id| id.index) + 1;
        let node = MemberNode { id, url, learner, instance, since };
        let added = ChangeMembers::AddNodes([(name, node)].into());
        // CHANGES-5
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: before };
        outcome(self.node.raft.change_membership_if(added, true, [unchanged]).await)?;
        self.record(MemberRequest::Forget { id }).await?;
        Ok(ChangeReply::Done)
    }

    /// Gives a learner that has caught up its vote.
    ///
    /// # Errors
    ///
    /// The answer to give instead of [`ChangeReply::Done`].
    pub async fn promote(&self, id: u64) -> Result<ChangeReply, ChangeReply> {
        let Some((name, node)) = self.node.member_with_id(id) else {
            let invited = self.list().iter().any(|member| member.id == id);
            let fault = if invited { Fault::NotReady } else { Fault::NotFound };
            return Err(ChangeReply::Refused(fault));
        };
        let _turn = self.turn().await?;
        if self.node.voters().contains(&name) {
            // The automatic promotion came first (CHANGES-3).
            let fault = ChangeReply::Refused(Fault::NotLearner);
            return if node.learner { Ok(ChangeReply::Done) } else { Err(fault) };
        }
        if !self.caught_up(&name) {
            return Err(ChangeReply::Refused(Fault::NotReady));
        }
        let promoted = ChangeMembers::AddVoterIds(BTreeSet::from([name]));
        outcome(self.node.raft.change_membership(promoted, true).await)
    }

    async fn remove(&self, id: u64) -> Result<ChangeReply, ChangeReply> {
        let _turn = self.turn().await?;
        let Some((name, _)) = self.node.member_with_id(id) else {
            if !self.list().iter().any(|member| member.id == id) {
                return Err(ChangeReply::Refused(Fault::NotFound));
            }
            return self.record(MemberRequest::Forget { id }).await;
        };
        let voters = self.node.voters();
        if voters.contains(&name) {
            self.check_living(&voters, &name)?;
            // Record it while this member surely leads: it may be the one to remove.
            self.record(MemberRequest::Forget { id }).await?;
            let removed = ChangeMembers::RemoveVoters(BTreeSet::from([name]));
            return outcome(self.node.raft.change_membership(removed, false).await);
        }
        self.record(MemberRequest::Forget { id }).await?;
        let removed = ChangeMembers::RemoveNodes(BTreeSet::from([name]));
        outcome(self.node.raft.change_membership(removed, false).await)
    }

    /// CHANGES-2
    fn check_living(
        &self,
        voters: &BTreeSet<MemberName>,
        without: &MemberName,
    ) -> Result<(), ChangeReply> {
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let patience = self.node.timing.election_max * SILENT_ELECTIONS;
        let lives = |name: &MemberName| {
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(name)).copied();
            *name == self.node.name || heard.flatten().is_some_and(|at| at.elapsed() < patience)
        };
        let living = voters.iter().filter(|name| lives(name)).cloned().collect();
        rules::remove(voters, &living, without).map_err(ChangeReply::Refused)
    }

    async fn update(&self, id: u64, peer_urls: Vec<String>) -> Result<ChangeReply, ChangeReply> {
        let _turn = self.turn().await?;
        // As in etcd, the error of an unknown member takes precedence over that of a bad address.
        if !self.list().iter().any(|member| member.id == id) {
            return Err(ChangeReply::Refused(Fault::NotFound));
        }
        self.check_urls(&peer_urls, Some(id))?;
        let Some((name, node)) = self.node.member_with_id(id) else {
            let learner = self.node.shared.read(|keyspace| {
                let mut invited = keyspace.members().invited();
                invited.find(|(known, _)| *known == id).map(|(_, invitation)| invitation.learner)
            });
            let learner = learner.ok_or(ChangeReply::Refused(Fault::NotFound))?;
            self.record(MemberRequest::Forget { id }).await?;
            let invitation = Invitation { peer_urls, learner };
            return self.record(MemberRequest::Invite { id, invitation }).await;
        };
        let url = peer_urls.into_iter().next().ok_or(ChangeReply::Refused(Fault::BadUrls))?;
        let moved = ChangeMembers::SetNodes([(name, MemberNode { url, ..node })].into());
        outcome(self.node.raft.change_membership(moved, true).await)
    }

    async fn move_leader(&self, id: u64) -> Result<ChangeReply, ChangeReply> {
        let successor = self
            .node
            .member_with_id(id)
            .map(|(name, _)| name)
            .filter(|name| self.node.voters().contains(name));
        let successor = successor.ok_or(ChangeReply::Refused(Fault::BadTransferee))?;
        if successor == self.node.name {
            return Ok(ChangeReply::Done);
        }
        self.node
            .raft
            .trigger()
            .transfer_leader(successor.clone())
            .await
            .map_err(|_| ChangeReply::Unknown)?;
        let wait = self.node.raft.wait(Some(CHANGE_TIMEOUT));
        let taken =
            wait.metrics(move |m| m.current_leader.as_ref() == Some(&successor), "it leads");
        taken.await.map(|_| ChangeReply::Done).map_err(|_| ChangeReply::Unknown)
    }

    /// Enforces CHANGES-6 and CHANGES-7; no other task changes the membership while the guard is
    /// held.
    pub(super) async fn turn(&self) -> Result<OwnedMutexGuard<()>, ChangeReply> {
        let turn = self.changing.clone().lock_owned().await;
        if self.node.membership().membership().get_joint_config().len() > 1 {
            tracing::info!("completing a membership change that an earlier leader left incomplete");
            let nothing_else = ChangeMembers::AddVoterIds(BTreeSet::new());
            outcome(self.node.raft.change_membership(nothing_else, false).await)?;
        }
        // CHANGES-7
        if !self.node.voters().contains(&self.node.name) {
            return Err(ChangeReply::NotLeading);
        }
        Ok(turn)
    }

    /// Completes a change that an earlier leader left incomplete, if there is one (CHANGES-6).
    ///
    /// # Errors
    ///
    /// The reason why the change could not be completed.
    pub async fn complete_change(&self) -> Result<(), ChangeReply> {
        self.turn().await.map(drop)
    }

    /// Proposes a member request.
    async fn record(&self, request: MemberRequest) -> Result<ChangeReply, ChangeReply> {
        match self.proposer.ask(Request::Member(request)).await {
            Ok(Ok(_)) => Ok(ChangeReply::Done),
            Ok(Err(Refusal::PeerUrlExists)) => Err(ChangeReply::Refused(Fault::UrlExists)),
            Ok(Err(_)) => Err(ChangeReply::Refused(Fault::TooMany)),
            Err(_) => Err(ChangeReply::Unknown),
        }
    }

    /// Whether a learner has caught up enough to become a voter (CHANGES-3).
    pub fn caught_up(&self, name: &MemberName) -> bool {
        self.node.status().lag.get(name).is_some_and(|lag| *lag <= LEARNER_LAG_MAX)
    }
}

/// The reply for a leader that gave none. One that cannot be asked any more, because it was removed, or
/// that did not let this member in, has done nothing; another may lead soon.
fn unanswered(status: &Status) -> ChangeReply {
    match fault::Fault::of(status).kind() {
        FaultKind::Undecided | FaultKind::Internal => ChangeReply::Unknown,
        _ => ChangeReply::NotLeading,
    }
}

pub(super) fn outcome<P: Platform, T>(
    result: Result<T, RaftError<Types<P>, ClientWriteError<Types<P>>>>,
) -> Result<ChangeReply, ChangeReply> {
    match result {
        Ok(_) => Ok(ChangeReply::Done),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            Err(ChangeReply::NotLeading)
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
            tracing::warn!(%error, "membership change failed; the membership is unchanged");
            Err(ChangeReply::Refused(match error {
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_)
                | ChangeMembershipError::NodeMetadataChanged(_)
                | ChangeMembershipError::UnsupportedMembershipTransition(_) => Fault::Busy,
                ChangeMembershipError::EmptyMembership(_) => Fault::NotEnoughStarted,
                ChangeMembershipError::LearnerNotFound(_) => Fault::NotFound,
            }))
        }
        Err(RaftError::APIError(ClientWriteError::PreconditionFailed(_))) => {
            Err(ChangeReply::Refused(Fault::Busy))
        }
        Err(error) => {
            tracing::warn!(%error, "membership change failed; its outcome is unknown");
            Err(ChangeReply::Unknown)
        }
    }
}
