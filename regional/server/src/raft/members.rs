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
//! - **H4** A member that left is forgotten with its instance, so a new one may come under its name.

use std::{collections::BTreeSet, time::Duration};

use openraft::{
    ChangeMembers, Instant as _,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use satrap_host::{clock, rng};
use satrap_regional_api::backend::{
    AdminReply, AdminRequest, Failure, Member, RingView, SnapshotStream, Unavailable,
};
use satrap_regional_core::{
    Caller, Proposal, Refusal, Request,
    members::{Invitation, MemberRequest, Published},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Ring,
    checkpoint::Checkpoints,
    lock,
    proposals::Queue,
    types::{MemberName, MemberNode, Types},
    waiters::Answer,
};
use crate::limits::{LEARNER_LAG_MAX, MEMBERS_MAX, SNAPSHOT_CHUNKS_MAX};

/// How long an operation on the ring may take.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// The sender is here.
    Join {
        /// Its name, as its certificate says.
        name: MemberName,
        /// Where it listens for its peers.
        url: String,
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

/// The number of a member that founded its ring.
#[must_use]
pub fn founder_id(ring: &[u8; 32], name: &MemberName) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("satrap 2026 member id");
    hasher.update(ring);
    hasher.update(name.as_str().as_bytes());
    first_u64(hasher.finalize().as_bytes())
}

/// The number of a ring.
#[must_use]
pub fn cluster_id(ring: &[u8; 32]) -> u64 {
    first_u64(ring)
}

fn first_u64(bytes: &[u8; 32]) -> u64 {
    let (first, _) = bytes.split_first_chunk::<8>().expect("32 bytes begin with 8");
    // Zero means "none" to etcd's clients.
    u64::from_be_bytes(*first).max(1)
}

impl Ring {
    /// Does what a service asks about the ring as a whole.
    ///
    /// # Errors
    ///
    /// [`Failure`] says whose fault it is.
    pub async fn administer(&self, request: AdminRequest) -> Result<AdminReply, Failure> {
        let order = match request {
            AdminRequest::Defragment => return self.defragment().await,
            AdminRequest::Snapshot => return self.snapshot().await,
            AdminRequest::AddMember { peer_urls, is_learner } => {
                Order::Invite { peer_urls, learner: is_learner }
            }
            AdminRequest::PromoteMember(id) => Order::Promote(id),
            AdminRequest::RemoveMember(id) => Order::Remove(id),
            AdminRequest::UpdateMember { id, peer_urls } => Order::Update { id, peer_urls },
            AdminRequest::MoveLeader(id) => {
                self.order(&Order::Lead(id)).await?;
                return Ok(AdminReply::Done);
            }
        };
        match self.order(&order).await? {
            OrderReply::Invited(id) => {
                let members = self.members();
                let added = members.iter().find(|member| member.id == id).cloned();
                let added = added.ok_or(Unavailable::Timeout)?;
                Ok(AdminReply::Added(added, members))
            }
            _ => Ok(AdminReply::Members(self.members())),
        }
    }

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

    /// Does it, if this member leads.
    pub async fn execute(&self, order: Order) -> OrderReply {
        if !self.leads() {
            return OrderReply::NotLeading;
        }
        let done = match order {
            Order::Invite { peer_urls, learner } => self.invite(peer_urls, learner).await,
            Order::Join { name, url } => self.let_in(name, url).await,
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
        let mut bytes = [0; 8];
        rng::fill(&mut bytes);
        let id = u64::from_be_bytes(bytes).max(1);
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
    async fn let_in(&self, name: MemberName, url: String) -> Result<OrderReply, OrderReply> {
        if self.nodes().iter().any(|(known, _)| *known == name) {
            return Ok(OrderReply::Done);
        }
        let invited = self.shared.read(|keyspace| {
            let mut invited = keyspace.members().invited();
            invited
                .find(|(_, invitation)| invitation.peer_urls.contains(&url))
                .map(|(id, invitation)| (id, invitation.learner))
        });
        let (id, learner) = invited.ok_or(OrderReply::Refused(Fault::NotInvited))?;
        tracing::info!(member = %name, url, "lets in a member that was invited");
        let node = MemberNode { id, url, learner };
        change(self.raft.add_learner(name, node, false).await)?;
        self.record(MemberRequest::Forget { id }).await?;
        Ok(OrderReply::Done)
    }

    async fn promote(&self, id: u64) -> Result<OrderReply, OrderReply> {
        let Some((name, node)) = self.node(id) else {
            let invited = self.members().iter().any(|member| member.id == id);
            let fault = if invited { Fault::NotReady } else { Fault::NotFound };
            return Err(OrderReply::Refused(fault));
        };
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

    /// Puts a member request through the log.
    async fn record(&self, request: MemberRequest) -> Result<OrderReply, OrderReply> {
        match self.ask(Request::Member(request)).await {
            Ok(Ok(_)) => Ok(OrderReply::Done),
            Ok(Err(Refusal::PeerUrlExists)) => Err(OrderReply::Refused(Fault::UrlExists)),
            Ok(Err(_)) => Err(OrderReply::Refused(Fault::TooMany)),
            Err(_) => Err(OrderReply::Unknown),
        }
    }

    /// Puts one request of the ring itself through the log.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn ask(&self, request: Request) -> Result<satrap_regional_core::Reply, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let mut queue = Queue::default();
        queue.push(vec![Proposal { caller: Caller::default(), request }], Answer::One(reply));
        if let Some(group) = self.group(&mut queue)
            && let Some(group) = self.clone().submit(group).await
        {
            self.clone().answer(group).await;
        }
        answer.await.unwrap_or(Err(Unavailable::Stopped)).map(|applied| applied.reply)
    }

    /// What a voter needs: next to nothing (H3).
    fn caught_up(&self, name: &MemberName) -> bool {
        self.status().lag.get(name).is_some_and(|lag| *lag <= LEARNER_LAG_MAX)
    }

    /// The members as Raft has them.
    #[must_use]
    pub fn nodes(&self) -> Vec<(MemberName, MemberNode)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    fn node(&self, id: u64) -> Option<(MemberName, MemberNode)> {
        self.nodes().into_iter().find(|(_, node)| node.id == id)
    }

    fn voters(&self) -> BTreeSet<MemberName> {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().membership_config.voter_ids().collect()
    }

    /// The members as clients see them, those that are expected included.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let (nodes, voters) = (self.nodes(), self.voters());
        let mut members = self.shared.read(|keyspace| {
            let known = keyspace.members();
            let there = nodes.into_iter().map(|(name, node)| Member {
                id: node.id,
                name: name.to_string(),
                peer_urls: vec![node.url],
                client_urls: known
                    .published(node.id)
                    .map_or_else(Vec::new, |p| p.client_urls.clone()),
                is_learner: !voters.contains(&name),
            });
            let expected = known.invited().map(|(id, invitation)| Member {
                id,
                peer_urls: invitation.peer_urls.clone(),
                is_learner: invitation.learner,
                ..Member::default()
            });
            there.chain(expected).collect::<Vec<_>>()
        });
        members.sort_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
        members
    }

    /// The ring as services see it.
    #[must_use]
    pub fn view(&self, checkpoints: &Checkpoints) -> RingView {
        let status = self.status();
        let members = self.members();
        let leader = status.leader.as_ref().and_then(|leader| {
            members.iter().find(|member| member.name == leader.as_str()).map(|member| member.id)
        });
        let size = checkpoints.state().size().unwrap_or_default();
        RingView {
            leader: leader.unwrap_or(0),
            term: status.term,
            log_index: status.log_index,
            members,
            disk_bytes: size.file_bytes,
            disk_bytes_used: size.used_bytes,
            fresh_at: *lock(&self.fresh_at),
            errors: Vec::new(),
        }
    }

    /// Gives learners that caught up their vote (H3), and says where clients reach this member.
    /// Never ends.
    pub async fn tend(&self, client_urls: &[String]) {
        loop {
            sleep(self.timing.election_max).await;
            if self.leads() {
                let voters = self.voters();
                let ready = |(name, _): &(MemberName, MemberNode)| {
                    !voters.contains(name) && self.caught_up(name)
                };
                if let Some((name, node)) = self.nodes().into_iter().find(ready) {
                    tracing::info!(member = %name, "has caught up and gets its vote");
                    let reply = self.promote(node.id).await;
                    if let Err(reply) = reply {
                        tracing::warn!(member = %name, ?reply, "is not promoted");
                    }
                }
            }
            self.publish(client_urls).await;
        }
    }

    async fn publish(&self, client_urls: &[String]) {
        let own = self.nodes().into_iter().find(|(name, _)| *name == self.name);
        let Some((_, MemberNode { id, .. })) = own else { return };
        let published = Published { client_urls: client_urls.to_vec() };
        let known = self.shared.read(|keyspace| keyspace.members().published(id).cloned());
        if known.as_ref() == Some(&published) || self.leader().is_none() {
            return;
        }
        let request = Request::Member(MemberRequest::Publish { id, published });
        if let Err(error) = self.ask(request).await {
            tracing::info!(%error, "could not tell the ring where clients reach this member");
        }
    }

    async fn defragment(&self) -> Result<AdminReply, Failure> {
        let state = self.checkpoints.state();
        let shrunk = task::spawn_blocking(move || state.shrink()).await;
        match shrunk {
            Ok(Ok(_)) => Ok(AdminReply::Done),
            failed => {
                tracing::error!(?failed, "defragmentation failed");
                Err(Unavailable::Stopped.into())
            }
        }
    }

    /// Streams the newest checkpoint, after one that covers all that was applied.
    async fn snapshot(&self) -> Result<AdminReply, Failure> {
        let stopped = |_| Failure::Unavailable(Unavailable::Stopped);
        let checkpoints = self.checkpoints.clone();
        let reader = task::spawn_blocking(move || {
            checkpoints.step()?;
            checkpoints.state().reader()
        });
        let reader = reader.await.map_err(stopped)?.map_err(|error| {
            tracing::error!(%error, "cannot read the state");
            Failure::Unavailable(Unavailable::Stopped)
        })?;
        let mut reader = reader.ok_or(Unavailable::NoLeader)?;
        let total_bytes = reader.header().row_bytes();
        let (sender, chunks) = mpsc::channel(SNAPSHOT_CHUNKS_MAX);
        task::spawn_blocking(move || {
            loop {
                let chunk = match reader.frame() {
                    Ok(Some(frame)) => Ok(frame.bytes.into()),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::error!(%error, "a snapshot ended early");
                        Err(Unavailable::Stopped)
                    }
                };
                // Whoever asked may have had enough.
                if sender.blocking_send(chunk).is_err() {
                    return;
                }
            }
        });
        Ok(AdminReply::Snapshot(SnapshotStream { total_bytes, chunks }))
    }

    /// What to stamp now.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock().now_ms(clock::monotonic())
    }
}

fn change<T>(
    result: Result<T, RaftError<Types, ClientWriteError<Types>>>,
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
        Err(error) => {
            tracing::warn!(%error, "it is not known whether the ring was changed");
            Err(OrderReply::Unknown)
        }
    }
}
