//! The member registry: decides which peers may speak as members of the ring.
//!
//! Pure: it knows the configuration, the memberships in the log and the first instance seen under
//! each name, and checks names and instances against them. [`super::Peers`] updates it and logs its
//! refusals.

use std::collections::{BTreeMap, BTreeSet};

use satrap_ring_storage::InstanceId;

use crate::{
    frames::{ANY_INSTANCE, LOST_DISK_REMEDY},
    types::{MemberName, MemberNode, Membership},
};

/// The members of the ring, as far as this member knows.
#[derive(Clone, Debug, Default)]
pub struct MemberRegistry {
    /// Members that may speak before there is a ring.
    configured: BTreeSet<MemberName>,
    /// The newest membership in the log, which may still be undone.
    logged: BTreeMap<MemberName, Registration>,
    /// The newest membership known to be committed, and its index.
    agreed: Option<(u64, BTreeMap<MemberName, Registration>)>,
    /// The first instance under each name whose instance the membership does not name.
    first: BTreeMap<MemberName, InstanceId>,
}

/// The entry of the membership for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registration {
    instance: InstanceId,
    since: u64,
}

fn registrations(membership: &Membership) -> BTreeMap<MemberName, Registration> {
    let registration =
        |node: &MemberNode| Registration { instance: node.instance, since: node.since };
    membership.nodes().map(|(name, node)| (name.clone(), registration(node))).collect()
}

impl MemberRegistry {
    /// A registry of the configured members.
    #[must_use]
    pub fn new(configured: BTreeSet<MemberName>) -> Self {
        Self { configured, ..Self::default() }
    }

    /// Updates the newest membership in the log. Returns the members that it no longer has.
    pub fn follow(&mut self, membership: &Membership) -> Vec<MemberName> {
        let before = std::mem::replace(&mut self.logged, registrations(membership));
        before.into_keys().filter(|name| !self.contains(name)).collect()
    }

    /// Whether the newest membership in the log has `name`.
    #[must_use]
    pub fn contains(&self, name: &MemberName) -> bool {
        self.logged.contains_key(name)
    }

    /// The first instances seen under names without an instance in the membership.
    #[must_use]
    pub fn identified(&self) -> &BTreeMap<MemberName, InstanceId> {
        &self.first
    }

    /// Updates the newest committed membership.
    pub fn agree(&mut self, membership: &Membership) {
        if let Some(log_id) = membership.log_id() {
            self.agreed = Some((log_id.index, registrations(membership)));
        }
    }

    fn of(&self, name: &MemberName) -> impl Iterator<Item = &Registration> {
        let agreed = self.agreed.as_ref().and_then(|(_, registrations)| registrations.get(name));
        self.logged.get(name).into_iter().chain(agreed)
    }

    /// The index since when `instance` belongs to the ring; zero if unknown.
    #[must_use]
    pub fn since_of(&self, instance: &InstanceId) -> u64 {
        let agreed = self.agreed.iter().flat_map(|(_, registrations)| registrations.values());
        let own = self.logged.values().chain(agreed).filter(|of| of.instance == *instance);
        own.map(|registration| registration.since).max().unwrap_or(0)
    }

    /// The instance that a message to `name` is for.
    #[must_use]
    pub fn instance_of(&self, name: &MemberName) -> InstanceId {
        let known =
            self.of(name).map(|registration| registration.instance).find(|i| *i != ANY_INSTANCE);
        known.or_else(|| self.first.get(name).copied()).unwrap_or(ANY_INSTANCE)
    }

    /// Checks whether a peer may speak that presents itself as `instance` of `name`, a member since
    /// `since`. Where the membership names no instance, the first one seen is the member from then
    /// on.
    ///
    /// # Errors
    ///
    /// [`Refusal`] blames the peer.
    pub fn admit(
        &mut self,
        name: &MemberName,
        instance: InstanceId,
        since: u64,
    ) -> Result<(), Refusal> {
        let registrations: Vec<Registration> = self.of(name).copied().collect();
        // LINK-2
        let agreed_index = self.agreed.as_ref().map_or(0, |(index, _)| *index);
        if registrations.iter().any(|registration| registration.instance == instance)
            || since > agreed_index
        {
            return Ok(());
        }
        let no_ring_known = self.logged.is_empty() && self.agreed.is_none();
        match registrations.iter().find(|registration| registration.instance != ANY_INSTANCE) {
            Some(registration) => lost(name, instance, registration.instance),
            None if !registrations.is_empty() => {
                match *self.first.entry(name.clone()).or_insert(instance) {
                    first if first == instance => Ok(()),
                    first => lost(name, instance, first),
                }
            }
            None if no_ring_known && self.configured.contains(name) => Ok(()),
            // LINK-3
            None => Err(Refusal::Stranger(name.clone())),
        }
    }
}

fn lost(name: &MemberName, offered: InstanceId, known: InstanceId) -> Result<(), Refusal> {
    Err(LostDisk { name: name.clone(), offered, known }.into())
}

/// A peer with the name of a member and another disk.
#[derive(Debug, thiserror::Error)]
#[error(
    "member `{name}` lost its disk: it presents instance {}, but the ring knows it as {}; {}",
    hex::encode(offered),
    hex::encode(known),
    LOST_DISK_REMEDY
)]
pub struct LostDisk {
    name: MemberName,
    offered: InstanceId,
    known: InstanceId,
}

/// The reason why a peer is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It does not belong to the ring, or no longer does.
    #[error("`{0}` is not a member of this ring; invite it first")]
    Stranger(MemberName),
    /// It has the name of a member, and another disk.
    #[error(transparent)]
    LostDisk(#[from] LostDisk),
}

#[cfg(test)]
mod tests;
