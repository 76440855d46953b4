//! The members of the ring as clients see them, and the leader's upkeep of the membership.

use std::{collections::BTreeMap, sync::Arc};

use satrap_ring_api::backend::Member;
use satrap_ring_core::{
    Request,
    alarm::AlarmKind,
    members::{MemberRequest, Published},
};
use tokio::{sync::Mutex, time::sleep};

use super::{
    node::Node,
    platform::{Platform, Real},
    proposals::Proposer,
    setup::RingId,
    types::{MemberName, MemberNode},
};

/// The id of a member that founded its ring.
#[must_use]
pub fn founder_id(ring: &[u8; 32], name: &MemberName) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("satrap 2026 member id");
    hasher.update(ring);
    hasher.update(name.as_str().as_bytes());
    first_u64(hasher.finalize().as_bytes())
}

/// The id of a ring.
#[must_use]
pub fn cluster_id(ring: &[u8; 32]) -> u64 {
    first_u64(ring)
}

fn first_u64(bytes: &[u8; 32]) -> u64 {
    let (first, _) = bytes.split_first_chunk::<8>().expect("32 bytes begin with 8");
    // Zero means "none" to etcd's clients.
    u64::from_be_bytes(*first).max(1)
}

/// The membership of the ring and its changes.
pub struct Members<P: Platform = Real> {
    pub(crate) node: Node<P>,
    pub(crate) proposer: Proposer<P>,
    /// The digest of genesis and region.
    pub(crate) ring: RingId,
    /// The configured members; they count until there is a membership.
    pub(crate) configured: Arc<BTreeMap<MemberName, String>>,
    /// Held while the membership changes.
    pub(crate) changing: Arc<Mutex<()>>,
}

impl<P: Platform> Clone for Members<P> {
    fn clone(&self) -> Self {
        Self {
            node: self.node.clone(),
            proposer: self.proposer.clone(),
            ring: self.ring,
            configured: self.configured.clone(),
            changing: self.changing.clone(),
        }
    }
}

impl<P: Platform> Members<P> {
    /// The members of `ring`, which `configured` may found.
    #[must_use]
    pub fn new(
        node: Node<P>,
        proposer: Proposer<P>,
        ring: RingId,
        configured: Arc<BTreeMap<MemberName, String>>,
    ) -> Self {
        Self { node, proposer, ring, configured, changing: Arc::default() }
    }

    /// The members as clients see them, invited ones included.
    #[must_use]
    pub fn list(&self) -> Vec<Member> {
        let (nodes, voters) = (self.node.nodes(), self.node.voters());
        let mut members = self.node.shared.read(|keyspace| {
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

    /// The alarms of the ring, each with the name of the member that it is about.
    #[must_use]
    pub fn alarms(&self) -> Vec<(AlarmKind, String)> {
        let members = self.list();
        let name = |id| {
            let member = members.iter().find(|member| member.id == id);
            member.map_or_else(|| format!("{id:x}"), |member| member.name.clone())
        };
        let alarms = self.node.read(|keyspace| keyspace.alarms().list(None).collect::<Vec<_>>());
        alarms.into_iter().map(|alarm| (alarm.kind, name(alarm.member))).collect()
    }

    /// Completes membership changes that an earlier leader left incomplete, promotes learners that
    /// have caught up (CHANGES-3), and publishes the client URLs of this member. Never ends.
    pub async fn maintain(&self, client_urls: &[String]) {
        loop {
            sleep(self.node.timing.election_max).await;
            if self.node.leads() {
                if let Err(reply) = self.complete_change().await {
                    tracing::info!(%reply, "could not complete a membership change; trying again");
                }
                let voters = self.node.voters();
                let ready = |(name, _): &(MemberName, MemberNode)| {
                    !voters.contains(name) && self.caught_up(name)
                };
                if let Some((name, node)) = self.node.nodes().into_iter().find(ready) {
                    tracing::info!(member = %name, "promoting learner to voter");
                    let reply = self.promote(node.id).await;
                    if let Err(reply) = reply {
                        tracing::warn!(member = %name, %reply, "could not promote the learner; trying again");
                    }
                }
            }
            self.publish(client_urls).await;
        }
    }

    async fn publish(&self, client_urls: &[String]) {
        let own = self.node.nodes().into_iter().find(|(name, _)| *name == self.node.name);
        let Some((_, MemberNode { id, .. })) = own else { return };
        let published = Published { client_urls: client_urls.to_vec() };
        let known = self.node.shared.read(|keyspace| keyspace.members().published(id).cloned());
        if known.as_ref() == Some(&published) || self.node.leader().is_none() {
            return;
        }
        let request = Request::Member(MemberRequest::Publish { id, published });
        if let Err(error) = self.proposer.ask(request).await {
            tracing::info!(%error, "could not publish the client URLs of this member; trying again");
        }
    }
}
