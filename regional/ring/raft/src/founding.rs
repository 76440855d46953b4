//! Brings a new member into its ring: it founds the ring together with the other first members, or
//! joins it.
//!
//! ```text
//!   first start ── a majority is up, and none has a ring ──▶ founded ──▶ elected
//!   first start ── a ring exists, and has invited this member ──▶ joined
//! ```
//!
//! # Invariants
//!
//! - **FOUNDING-1** A member founds the ring once a majority of the first members, itself included,
//!   has answered that it knows of no ring, and no member knows this member with another disk.
//! - **FOUNDING-2** Only members whose configurations name the same first members count for that
//!   majority.
//! - **FOUNDING-3** The first entry is a function of the configuration. Two members that both found
//!   the ring write the same entry, and the election decides between them. So the entry names no
//!   disks; the first leader records them, and those of late members once they arrive.
//!
//! # Limits
//!
//! A first member that no entry has reached is indistinguishable from one that lost its disk. If
//! another first member loses its disk meanwhile, and the rest of the ring is down, these two found
//! the ring again. docs/adr/0013 says why that is accepted and what prevents it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use openraft::{ChangeMembers, errors::RaftError, raft::Precondition};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    changes::{ChangeReply, Fault, MemberChange, outcome},
    error::RingError,
    frames::{ANY_INSTANCE, LOST_DISK_REMEDY, Welcome},
    members::{Members, founder_id},
    node::Leading,
    platform::Platform,
    ring::Ring,
    setup::RingSetup,
    types::{MemberName, MemberNode, encode},
};

/// Time between attempts to reach the other members.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts between two log lines about the same cause.
const QUIET_ATTEMPTS: u64 = 40;
/// The subject of the fault in the status of this member while the ring does not let it join.
const FAULT_SUBJECT: &str = "joining the ring";
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// A digest of the first members in this member's configuration (FOUNDING-2).
#[must_use]
pub fn founders_digest(configured: &BTreeMap<MemberName, String>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("satrap 2026 first members of a ring");
    hasher.update(&encode(configured));
    hasher.finalize().into()
}

/// Founds the ring or joins it. Returns once this member has a log.
///
/// # Errors
///
/// [`RingError`] if Raft has stopped.
pub async fn enter<P: Platform>(ring: &Ring<P>, setup: &RingSetup) -> Result<(), RingError> {
    let mut quorum_since = None;
    for attempt in 0_u64.. {
        if ring.node.membership().log_id().is_some() {
            ring.report_fault(FAULT_SUBJECT, None);
            return Ok(());
        }
        // Raft refuses to found a ring after a vote: another member is founding it, or did so and
        // may be gone for good.
        let may_found = !ring.node.raft.is_initialized().await?;
        let quiet = !attempt.is_multiple_of(QUIET_ATTEMPTS);
        let survey = survey(ring).await;
        let refused = match &survey.founded {
            Some(by) => join(ring, setup, by).await.err().map(|why| format!("asked `{by}`: {why}")),
            None => survey.refused.clone(),
        };
        ring.report_fault(FAULT_SUBJECT, refused.as_deref());
        if survey.founded.is_some() || refused.is_some() {
            quorum_since = None;
            if let Some(why) = refused.filter(|_| !quiet) {
                tracing::warn!("this member cannot join: {why}");
            }
        } else if !may_found || survey.agree.len() < ring.members.configured.len() / 2 {
            quorum_since = None;
            if !quiet {
                let why = match may_found {
                    true => survey.missing.join("; "),
                    false => "this member has voted, and waits for the candidate's first entry"
                        .to_owned(),
                };
                tracing::info!("the ring is not founded yet: {why}");
            }
        } else {
            let since = *quorum_since.get_or_insert_with(Instant::now);
            // Wait one election timeout for each agreeing member with a lower name, so that
            // elections seldom collide.
            let before = survey.agree.iter().filter(|name| **name < ring.node.name).count();
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            if since.elapsed() >= ring.node.timing.election_max.saturating_mul(before) {
                found(ring, &survey.missing).await?;
            }
        }
        sleep(RETRY).await;
    }
    Ok(())
}

async fn found<P: Platform>(ring: &Ring<P>, missing: &[String]) -> Result<(), RingError> {
    let node = |(name, url): (&MemberName, &String)| {
        let (id, url) = (founder_id(&ring.members.ring, name), url.clone());
        // FOUNDING-3
        let node = MemberNode { id, url, learner: false, instance: ANY_INSTANCE, since: 0 };
        (name.clone(), node)
    };
    let members: BTreeMap<_, _> = ring.members.configured.iter().map(node).collect();
    tracing::info!(members = members.len(), ?missing, "founding the ring");
    match ring.node.raft.initialize(members).await {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(error)) => {
            tracing::info!(%error, "another member has founded the ring; waiting for its first entry");
            Ok(())
        }
        Err(RaftError::Fatal(fatal)) => Err(fatal.into()),
    }
}

/// Asks the leader to add this member; `by` may know the leader.
async fn join<P: Platform>(
    ring: &Ring<P>,
    setup: &RingSetup,
    by: &MemberName,
) -> Result<(), String> {
    let url = setup.members.get(&setup.name).cloned().unwrap_or_default();
    let instance = ring.node.network.peers.own().instance;
    let change = MemberChange::Join { name: ring.node.name.clone(), url: url.clone(), instance };
    let mut asked = ring.node.network.peers.names();
    asked.sort_by_key(|name| name != by);
    let mut last = String::new();
    for name in asked {
        match ring.node.network.sender(name.clone()).change_members(&change, HELLO_TIMEOUT).await {
            Ok(ChangeReply::Done) => return Ok(()),
            Ok(ChangeReply::Refused(Fault::NotInvited)) => {
                return Err(format!(
                    "the ring expects no member at its address {url}; correct its entry under \
                     `[[members]]`, or run `satrap member add`, or, if it lost its disk: \
                     {LOST_DISK_REMEDY}"
                ));
            }
            Ok(reply) => last = format!("`{name}`: {reply}"),
            Err(status) => last = format!("`{name}`: {}", status.message()),
        }
    }
    Err(last)
}

impl<P: Platform> Members<P> {
    /// Records the disks that the membership does not name, once this member leads and has met the
    /// members. Never ends.
    pub async fn record_instances(&self) {
        while self.node.until(Leading::Yes).await {
            if let Err(reply) = self.identify().await {
                tracing::info!(%reply, "could not record the disks of members; trying again");
            }
            sleep(self.node.timing.heartbeat).await;
        }
        std::future::pending().await
    }

    async fn identify(&self) -> Result<(), ChangeReply> {
        let is_unknown = |(_, node): &(MemberName, MemberNode)| node.instance == ANY_INSTANCE;
        if !self.node.nodes().iter().any(is_unknown) {
            return Ok(());
        }
        // The membership does not change while this guard is held.
        let _turn = self.turn().await?;
        let before = *self.node.membership().log_id();
        let mut met = self.node.network.peers.identified();
        met.insert(self.node.name.clone(), self.node.network.peers.own().instance);
        let known = |(name, node): (MemberName, MemberNode)| {
            let instance = *met.get(&name)?;
            Some((name, MemberNode { instance, ..node }))
        };
        let unknown = self.node.nodes().into_iter().filter(is_unknown);
        let known: BTreeMap<_, _> = unknown.filter_map(known).collect();
        if known.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = known.keys().map(MemberName::as_str).collect();
        tracing::info!(?names, "recording the disks of members");
        let named = ChangeMembers::SetNodes(known);
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: before };
        outcome(self.node.raft.change_membership_if(named, true, [unchanged]).await).map(drop)
    }
}

/// The other members' answers.
#[derive(Debug, Default)]
pub struct Survey {
    /// A member that belongs to a ring.
    pub founded: Option<MemberName>,
    /// The members that know of no ring and have the same first members.
    pub agree: Vec<MemberName>,
    /// The reasons why other members do not count.
    pub missing: Vec<String>,
    /// The reason why this member may not take part: a member knows it with another disk, so there
    /// is a ring.
    pub refused: Option<String>,
}

/// Asks every other member.
pub async fn survey<P: Platform>(ring: &Ring<P>) -> Survey {
    let ask = |name: &MemberName| {
        let (name, sender) = (name.clone(), ring.node.network.sender(name.clone()));
        async move { (name, sender.hello(HELLO_TIMEOUT).await) }
    };
    let own = founders_digest(&ring.members.configured);
    let mut survey = Survey::default();
    for (name, answer) in join_all(ring.node.network.peers.names().iter().map(ask)).await {
        match answer {
            Ok(Welcome { founded: true, .. }) => survey.founded = Some(name),
            Ok(Welcome { founders, .. }) if founders == own => survey.agree.push(name),
            Ok(_) => survey.missing.push(format!(
                "`{name}` has other `members` in its configuration than this member; give all the \
                 same"
            )),
            Err(status) if status.code() == Code::FailedPrecondition => {
                survey.refused = Some(format!("`{name}`: {}", status.message()));
            }
            Err(status) => survey.missing.push(format!("`{name}`: {}", status.message())),
        }
    }
    survey
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FOUNDING-2
    #[test]
    fn first_members_are_their_names_and_addresses() {
        let of = |members: &[(u64, &str)]| {
            let member = |(name, url): &(u64, &str)| ((*name).into(), (*url).to_owned());
            founders_digest(&members.iter().map(member).collect())
        };
        let same = of(&[(1, "https://a"), (2, "https://b")]);
        assert_eq!(same, of(&[(2, "https://b"), (1, "https://a")]));
        assert_ne!(same, of(&[(1, "https://a"), (2, "https://c")]));
        assert_ne!(same, of(&[(1, "https://a"), (3, "https://b")]));
        assert_ne!(same, of(&[(1, "https://a")]));
    }
}
