//! Changes who belongs to the ring.
//!
//! ```text
//!   `member add` ──▶ invited ── it comes, with a certificate ──▶ learner ── caught up ──▶ voter
//!        voter ── `member remove` ──▶ gone, and forgotten by its peers
//! ```
//!
//! Only the leader changes anything; other members pass orders on to it.
//!
//! # Invariants
//!
//! - **H1** A member that nobody has seen never counts for the quorum.
//! - **H2** A removal that would leave too few living voters is refused.
//! - **H3** A member gets its vote by itself once it lacks next to nothing.
//! - **H4** The membership names a member's disk. One that lost it is replaced like one that is gone:
//!   removed, and taken in anew, perhaps under the same name.
//! - **H5** Between the membership that a newcomer's `since` was taken from and the one that takes it
//!   in, there is none. So everybody can tell whether what it knows is older than the newcomer.
//! - **H6** What a leader left half done is completed as it was meant before anything else changes:
//!   with the next change on top, a voter that was being removed would stay.
//! - **H7** A leader that is removed changes nothing more, although it leads until its removal is
//!   known: what it would append is for those that stay to decide.

use std::{collections::BTreeSet, fmt, time::Duration};

use openraft::{
    ChangeMembers, Instant as _,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::Precondition,
};
use satrap_regional_api::backend::{Failure, Member, Unavailable};
use satrap_regional_core::{
    Refusal, Request,
    members::{Invitation, MemberRequest},
};
use satrap_regional_storage::InstanceId;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout_at},
};

use super::{
    Ring,
    frames::ANY_INSTANCE,
    platform::{Platform, draw},
    types::{MemberName, MemberNode, Types},
};
use crate::limits::{LEARNER_LAG_MAX, MEMBERS_MAX};

/// How long an operation on the ring may take.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever wants to join asks again soon.
const INTRODUCE_TIMEOUT: Duration = Duration::from_secs(1);
/// A voter that was not heard of for this many election timeouts does not count as living.
const SILENT_ELECTIONS: u32 = 4;

/// What the leader is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Expect a member at this address.
    Invite {
        /// Where its peers will reach it.
        peer_urls: Vec<String>,
        /// See [`Invitation::learner`].
        learner: bool,
    },
    /// Whoever was invited is here.
    Join {
        /// Its name, as its certificate says.
        name: MemberName,
        /// Where it listens for its peers.
        url: String,
        /// Its disk.
        instance: InstanceId,
    },
    /// Give a learner its vote.
    Promote(u64),
    /// Drop a member or an invitation.
    Remove(u64),
    /// Change where a member is reached.
    Update {
        /// Which.
        id: u64,
        /// From now on.
        peer_urls: Vec<String>,
    },
    /// Take over leadership.
    Lead(u64),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderReply {
    /// It is done.
    Done,
    /// This member is expected.
    Invited(u64),
    /// It cannot be done.
    Refused(Fault),
    /// The member that was asked does not lead.
    NotLeading,
    /// It may or may not have been done.
    Unknown,
}

impl fmt::Display for OrderReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done | Self::Invited(_) => write!(f, "done"),
            Self::Refused(fault) => write!(f, "refused: {}", Failure::from(*fault)),
            Self::NotLeading => write!(f, "no leader is known"),
            Self::Unknown => write!(f, "no answer in time; it may have been done"),
        }
    }
}

/// Why an order is refused. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// No such member.
    NotFound,
    /// It has its vote.
    NotLearner,
    /// It lacks too much, or never came.
    NotReady,
    /// Somebody has that address.
    UrlExists,
    /// No address, or not one.
    BadUrls,
    /// H2
    NotEnoughStarted,
    /// It does not vote, or is not there.
    BadTransferee,
    /// Nobody expects it.
    NotInvited,
    /// There are enough.
    TooMany,
    /// Another change is under way.
    Busy,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Refused(match fault {
            Fault::NotFound | Fault::NotInvited => Refusal::MemberNotFound,
            Fault::NotLearner => Refusal::MemberNotLearner,
            Fault::NotReady => Refusal::LearnerNotReady,
            Fault::UrlExists => Refusal::PeerUrlExists,
            Fault::BadUrls => Refusal::MemberBadUrls,
            Fault::NotEnoughStarted => Refusal::MemberNotEnoughStarted,
            Fault::BadTransferee => Refusal::BadLeaderTransferee,
            Fault::TooMany => Refusal::TooManyLearners,
            Fault::Busy => return Self::Unavailable(Unavailable::TooManyRequests),
        })
    }
}

impl<P: Platform> Ring<P> {
    /// Has the leader do it, whoever leads.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn order(&self, order: &Order) -> Result<OrderReply, Failure> {
        let deadline = Instant::now() + ORDER_TIMEOUT;
        loop {
            let leader = self.leader();
            let ask = async {
                match &leader {
                    Some(name) if *name == self.name => self.execute(order.clone()).await,
                    Some(name) => {
                        let sender = self.network.sender(name.clone());
                        sender.order(order, ORDER_TIMEOUT).await.unwrap_or(OrderReply::Unknown)
                    }
                    None => OrderReply::NotLeading,
                }
            };
            match timeout_at(deadline, ask).await {
                Ok(OrderReply::Refused(fault)) => return Err(fault.into()),
                Ok(OrderReply::NotLeading) if Instant::now() < deadline => {
                    self.until_leader_is_not(leader, deadline).await;
                }
                Ok(OrderReply::NotLeading) => return Err(Unavailable::NoLeader.into()),
                Ok(OrderReply::Unknown) | Err(_) => return Err(Unavailable::Timeout.into()),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// Has the leader let in who came to this member: a newcomer need not know of a leader that came
    /// after its configuration was written.
    pub async fn introduce(&self, order: Order) -> OrderReply {
        match self.leader() {
            Some(name) if name != self.name => {
                let passed_on = self.network.sender(name).order(&order, INTRODUCE_TIMEOUT).await;
                passed_on.unwrap_or(OrderReply::Unknown)
            }
            _ => self.execute(order).await,
        }
    }

    /// Does it, if this member leads.
    pub async fn execute(&self, order: Order) -> OrderReply {
        if !self.leads() {
            return OrderReply::NotLeading;
        }
        let done = match order {
            Order::Invite { peer_urls, learner } => self.invite(peer_urls, learner).await,
            Order::Join { name, url, instance } => self.let_in(name, url, instance).await,
            Order::Promote(id) => self.promote(id).await,
            Order::Remove(id) => self.remove(id).await,
            Order::Update { id, peer_urls } => self.update(id, peer_urls).await,
            Order::Lead(id) => self.move_leader(id).await,
        };
        done.unwrap_or_else(|reply| reply)
    }

    async fn invite(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> Result<OrderReply, OrderReply> {
        self.check_urls(&peer_urls, None)?;
        if self.members().len() >= MEMBERS_MAX {
            return Err(OrderReply::Refused(Fault::TooMany));
        }
        let id = draw::<P>();
        let invitation = Invitation { peer_urls, learner };
        self.record(MemberRequest::Invite { id, invitation }).await?;
        Ok(OrderReply::Invited(id))
    }

    fn check_urls(&self, urls: &[String], except: Option<u64>) -> Result<(), OrderReply> {
        if urls.is_empty() || urls.iter().any(|url| satrap_host::mtls::check_url(url).is_err()) {
            return Err(OrderReply::Refused(Fault::BadUrls));
        }
        let taken = |member: &Member| {
            Some(member.id) != except && member.peer_urls.iter().any(|url| urls.contains(url))
        };
        if self.members().iter().any(taken) {
            return Err(OrderReply::Refused(Fault::UrlExists));
        }
        Ok(())
    }

    /// H1
    async fn let_in(
        &self,
        name: MemberName,
        url: String,
        instance: InstanceId,
    ) -> Result<OrderReply, OrderReply> {
        let _turn = self.turn().await?;
        let before = *self.membership().log_id();
        if let Some((_, node)) = self.nodes().into_iter().find(|(known, _)| *known == name) {
            let other = OrderReply::Refused(Fault::NotInvited);
            let expected = node.instance == instance || node.instance == ANY_INSTANCE;
            return if expected { Ok(OrderReply::Done) } else { Err(other) };
        }
        let invited = self.shared.read(|keyspace| {
            let mut invited = keyspace.members().invited();
            invited
                .find(|(_, invitation)| invitation.peer_urls.contains(&url))
                .map(|(id, invitation)| (id, invitation.learner))
        });
        let (id, learner) = invited.ok_or(OrderReply::Refused(Fault::NotInvited))?;
        tracing::info!(member = %name, url, "lets in a member that was invited");
        let since = before.map_or(0, |id| id.index) + 1;
        let node = MemberNode { id, url, learner, instance, since };
        let added = ChangeMembers::AddNodes([(name, node)].into());
        // H5
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: before };
        change(self.raft.change_membership_if(added, true, [unchanged]).await)?;
        self.record(MemberRequest::Forget { id }).await?;
        Ok(OrderReply::Done)
    }

    /// Gives a learner that has caught up its vote.
    ///
    /// # Errors
    ///
    /// What is to be answered instead of [`OrderReply::Done`].
    pub async fn promote(&self, id: u64) -> Result<OrderReply, OrderReply> {
        let Some((name, node)) = self.node(id) else {
            let invited = self.members().iter().any(|member| member.id == id);
            let fault = if invited { Fault::NotReady } else { Fault::NotFound };
            return Err(OrderReply::Refused(fault));
        };
        let _turn = self.turn().await?;
        if self.voters().contains(&name) {
            // It was faster than the operator (H3).
            let fault = OrderReply::Refused(Fault::NotLearner);
            return if node.learner { Ok(OrderReply::Done) } else { Err(fault) };
        }
        if !self.caught_up(&name) {
            return Err(OrderReply::Refused(Fault::NotReady));
        }
        let promoted = ChangeMembers::AddVoterIds(BTreeSet::from([name]));
        change(self.raft.change_membership(promoted, true).await)
    }

    async fn remove(&self, id: u64) -> Result<OrderReply, OrderReply> {
        let Some((name, _)) = self.node(id) else {
            if !self.members().iter().any(|member| member.id == id) {
                return Err(OrderReply::Refused(Fault::NotFound));
            }
            return self.record(MemberRequest::Forget { id }).await;
        };
        let _turn = self.turn().await?;
        let voters = self.voters();
        if voters.contains(&name) {
            self.check_living(&voters, &name)?;
            // Recorded while this member surely leads: it may be the one that goes.
            self.record(MemberRequest::Forget { id }).await?;
            let removed = ChangeMembers::RemoveVoters(BTreeSet::from([name]));
            return change(self.raft.change_membership(removed, false).await);
        }
        self.record(MemberRequest::Forget { id }).await?;
        let removed = ChangeMembers::RemoveNodes(BTreeSet::from([name]));
        change(self.raft.change_membership(removed, false).await)
    }

    /// H2
    fn check_living(
        &self,
        voters: &BTreeSet<MemberName>,
        without: &MemberName,
    ) -> Result<(), OrderReply> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let patience = self.timing.election_max * SILENT_ELECTIONS;
        let lives = |name: &&MemberName| {
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(*name)).copied();
            **name == self.name || heard.flatten().is_some_and(|at| at.elapsed() < patience)
        };
        let stay = || voters.iter().filter(|name| *name != without);
        if stay().filter(lives).count() * 2 > stay().count() {
            return Ok(());
        }
        Err(OrderReply::Refused(Fault::NotEnoughStarted))
    }

    async fn update(&self, id: u64, peer_urls: Vec<String>) -> Result<OrderReply, OrderReply> {
        // As in etcd, a member that does not exist is told before an address that is not one.
        if !self.members().iter().any(|member| member.id == id) {
            return Err(OrderReply::Refused(Fault::NotFound));
        }
        self.check_urls(&peer_urls, Some(id))?;
        let Some((name, node)) = self.node(id) else {
            let learner = self.shared.read(|keyspace| {
                let mut invited = keyspace.members().invited();
                invited.find(|(known, _)| *known == id).map(|(_, invitation)| invitation.learner)
            });
            let learner = learner.ok_or(OrderReply::Refused(Fault::NotFound))?;
            self.record(MemberRequest::Forget { id }).await?;
            let invitation = Invitation { peer_urls, learner };
            return self.record(MemberRequest::Invite { id, invitation }).await;
        };
        let url = peer_urls.into_iter().next().ok_or(OrderReply::Refused(Fault::BadUrls))?;
        let _turn = self.turn().await?;
        let moved = ChangeMembers::SetNodes([(name, MemberNode { url, ..node })].into());
        change(self.raft.change_membership(moved, true).await)
    }

    async fn move_leader(&self, id: u64) -> Result<OrderReply, OrderReply> {
        let heir = self.node(id).map(|(name, _)| name).filter(|name| self.voters().contains(name));
        let heir = heir.ok_or(OrderReply::Refused(Fault::BadTransferee))?;
        if heir == self.name {
            return Ok(OrderReply::Done);
        }
        self.raft.trigger().transfer_leader(heir.clone()).await.map_err(|_| OrderReply::Unknown)?;
        let wait = self.raft.wait(Some(ORDER_TIMEOUT));
        let taken = wait.metrics(move |m| m.current_leader.as_ref() == Some(&heir), "it leads");
        taken.await.map(|_| OrderReply::Done).map_err(|_| OrderReply::Unknown)
    }

    /// H6, H7; nobody else changes the membership as long as this is held.
    pub(super) async fn turn(&self) -> Result<OwnedMutexGuard<()>, OrderReply> {
        let turn = self.changing.clone().lock_owned().await;
        if self.membership().membership().get_joint_config().len() > 1 {
            tracing::info!("completes a change of members that was left half done");
            let nothing_else = ChangeMembers::AddVoterIds(BTreeSet::new());
            change(self.raft.change_membership(nothing_else, false).await)?;
        }
        // H7
        if !self.voters().contains(&self.name) {
            return Err(OrderReply::NotLeading);
        }
        Ok(turn)
    }

    /// Completes a change that was left half done, if there is one (H6).
    ///
    /// # Errors
    ///
    /// What came of it instead.
    pub async fn complete_change(&self) -> Result<(), OrderReply> {
        self.turn().await.map(drop)
    }

    /// Puts a member request through the log.
    async fn record(&self, request: MemberRequest) -> Result<OrderReply, OrderReply> {
        match self.ask(Request::Member(request)).await {
            Ok(Ok(_)) => Ok(OrderReply::Done),
            Ok(Err(Refusal::PeerUrlExists)) => Err(OrderReply::Refused(Fault::UrlExists)),
            Ok(Err(_)) => Err(OrderReply::Refused(Fault::TooMany)),
            Err(_) => Err(OrderReply::Unknown),
        }
    }

    /// What a voter needs: next to nothing (H3).
    pub fn caught_up(&self, name: &MemberName) -> bool {
        self.status().lag.get(name).is_some_and(|lag| *lag <= LEARNER_LAG_MAX)
    }
}

pub(super) fn change<P: Platform, T>(
    result: Result<T, RaftError<Types<P>, ClientWriteError<Types<P>>>>,
) -> Result<OrderReply, OrderReply> {
    match result {
        Ok(_) => Ok(OrderReply::Done),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            Err(OrderReply::NotLeading)
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
            tracing::warn!(%error, "the ring was not changed");
            Err(OrderReply::Refused(match error {
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_)
                | ChangeMembershipError::NodeMetadataChanged(_)
                | ChangeMembershipError::UnsupportedMembershipTransition(_) => Fault::Busy,
                ChangeMembershipError::EmptyMembership(_) => Fault::NotEnoughStarted,
                ChangeMembershipError::LearnerNotFound(_) => Fault::NotFound,
            }))
        }
        Err(RaftError::APIError(ClientWriteError::PreconditionFailed(_))) => {
            Err(OrderReply::Refused(Fault::Busy))
        }
        Err(error) => {
            tracing::warn!(%error, "it is not known whether the ring was changed");
            Err(OrderReply::Unknown)
        }
    }
}
