//! The members as services see them, and what they may ask about this member.

use std::{collections::BTreeSet, sync::Arc};

use openraft::async_runtime::WatchReceiver as _;
use satrap_regional_api::backend::{
    AdminReply, AdminRequest, Failure, Member, RingView, SnapshotStream, Unavailable,
};
use satrap_regional_core::{
    Request,
    alarm::AlarmKind,
    members::{MemberRequest, Published},
};
use satrap_regional_storage::StorageError;
use tokio::{
    sync::mpsc,
    task,
    time::{Instant, sleep},
};

use super::{
    Ring,
    checkpoint::Checkpoints,
    lock,
    orders::{Order, OrderReply},
    platform::Platform,
    types::{MemberName, MemberNode, Membership},
};
use crate::limits::{DEFRAGMENT_PATIENCE, DEFRAGMENT_PAUSE, SNAPSHOT_CHUNKS_MAX};

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

impl<P: Platform> Ring<P> {
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

    /// The newest membership in the log.
    pub fn membership(&self) -> Arc<Membership> {
        self.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    /// The members as Raft has them.
    #[must_use]
    pub fn nodes(&self) -> Vec<(MemberName, MemberNode)> {
        let membership = self.membership();
        membership.nodes().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// The member with that number.
    #[must_use]
    pub fn node(&self, id: u64) -> Option<(MemberName, MemberNode)> {
        self.nodes().into_iter().find(|(_, node)| node.id == id)
    }

    /// Those that vote.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<MemberName> {
        self.membership().voter_ids().collect()
    }

    /// Tells operators that something is wrong with this member, or no longer.
    pub fn complain(&self, about: &'static str, why: Option<&str>) {
        let _ = self.shared.complain(about, why);
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

    /// Faults of this member that an operator must act on, in words.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.shared.complaints()
    }

    /// The alarms of the ring, each with the name of the member that it is about.
    #[must_use]
    pub fn alarms(&self) -> Vec<(AlarmKind, String)> {
        let members = self.members();
        let name = |id| {
            let member = members.iter().find(|member| member.id == id);
            member.map_or_else(|| format!("{id:x}"), |member| member.name.clone())
        };
        let alarms = self.read(|keyspace| keyspace.alarms().list(None).collect::<Vec<_>>());
        alarms.into_iter().map(|alarm| (alarm.kind, name(alarm.member))).collect()
    }

    /// The ring as services see it.
    #[must_use]
    pub fn view(&self, checkpoints: &Checkpoints) -> RingView {
        let status = self.status();
        let members = self.members();
        let leader = status.leader.as_ref().filter(|_| self.in_touch()).and_then(|leader| {
            members.iter().find(|member| member.name == leader.as_str()).map(|member| member.id)
        });
        let size = checkpoints.state().size().unwrap_or_default();
        let mut errors = self.shared.complaints();
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
            fresh_at: *lock(&self.fresh_at),
            errors,
        }
    }

    /// Brings the membership in order, gives learners that caught up their vote (H3), and says where
    /// clients reach this member. Never ends.
    pub async fn tend(&self, client_urls: &[String]) {
        loop {
            sleep(self.timing.election_max).await;
            if self.leads() {
                if let Err(reply) = self.complete_change().await {
                    tracing::info!(%reply, "the membership is not in order yet");
                }
                let voters = self.voters();
                let ready = |(name, _): &(MemberName, MemberNode)| {
                    !voters.contains(name) && self.caught_up(name)
                };
                if let Some((name, node)) = self.nodes().into_iter().find(ready) {
                    tracing::info!(member = %name, "has caught up and gets its vote");
                    let reply = self.promote(node.id).await;
                    if let Err(reply) = reply {
                        tracing::warn!(member = %name, %reply, "is not promoted");
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

    /// Waits for whoever reads the state as it was, such as a snapshot on its way.
    async fn defragment(&self) -> Result<AdminReply, Failure> {
        let deadline = Instant::now() + DEFRAGMENT_PATIENCE;
        loop {
            let state = self.checkpoints.state();
            match P::off_thread(move || state.shrink()).await {
                Ok(Ok(_)) => return Ok(AdminReply::Done),
                Ok(Err(StorageError::Order(_))) if Instant::now() < deadline => {
                    sleep(DEFRAGMENT_PAUSE).await;
                }
                Ok(Err(StorageError::Order(why))) => {
                    tracing::info!(why, "no defragmentation");
                    return Err(Unavailable::TooManyRequests.into());
                }
                failed => {
                    tracing::error!(?failed, "defragmentation failed");
                    return Err(Unavailable::Stopped.into());
                }
            }
        }
    }

    /// Streams the newest checkpoint, after one that covers all that was applied.
    async fn snapshot(&self) -> Result<AdminReply, Failure> {
        let stopped = |_| Failure::Unavailable(Unavailable::Stopped);
        let checkpoints = self.checkpoints.clone();
        let reader = P::off_thread(move || {
            checkpoints.complete()?;
            let Some(mut reader) = checkpoints.state().reader()? else { return Ok(None) };
            // Clients are told the size first, and frames add to that of the rows.
            let mut total_bytes = 0;
            while let Some(frame) = reader.frame()? {
                total_bytes += frame.bytes.len() as u64;
            }
            reader.seek(0)?;
            Ok::<_, StorageError>(Some((reader, total_bytes)))
        });
        let reader = reader.await.map_err(stopped)?.map_err(|error| {
            tracing::error!(%error, "cannot read the state");
            Failure::Unavailable(Unavailable::Stopped)
        })?;
        let (mut reader, total_bytes) = reader.ok_or(Unavailable::NoLeader)?;
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
        self.clock().now_ms(P::monotonic())
    }
}
