//! Gets a member into its ring: founds the ring together with the others, or joins it.
//!
//! ```text
//!   first start ── a majority is there, none founded ──▶ founded ──▶ elected
//!   first start ── a ring is there, and expects this member ──▶ joined
//! ```
//!
//! # Invariants
//!
//! - **F1** A member founds the ring once a majority of the first members, itself included, has
//!   answered that it knows of no ring, and none that it knows this member with another disk.
//! - **F2** Only members whose configurations name the same first members count for that majority.
//! - **F3** The first entry is a function of the configuration. Two members that both found the ring
//!   write the same entry, and the election decides between them. So it names no disks; the first
//!   leader has them recorded, and that of a member which comes later once it has come.
//!
//! # What this does not cover
//!
//! Until an entry has reached a first member, it is indistinguishable from one that lost its
//! disk. If another one loses its disk meanwhile, and the rest of the ring is away, these two found
//! the ring again. docs/adr/0013 says why that is accepted and what prevents it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use openraft::{ChangeMembers, errors::RaftError, raft::Precondition};
use satrap_certify::Digest;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    Leading, Ring, RingError, RingSetup,
    frames::{ANY_INSTANCE, Welcome},
    members::founder_id,
    orders::{Fault, Order, OrderReply, change},
    peers::LOST_DISK_REMEDY,
    platform::Platform,
    types::{MemberName, MemberNode, encode},
};

/// Between attempts to meet the other members.
const RETRY: Duration = Duration::from_millis(250);
/// This many attempts lie between two log lines about the same thing.
const QUIET_ATTEMPTS: u64 = 40;
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Names those who found the ring, as this member's configuration has them; equal where they are (F2).
#[must_use]
pub fn founders_digest(configured: &BTreeMap<MemberName, String>) -> Digest {
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
        if ring.membership().log_id().is_some() {
            return Ok(());
        }
        // Raft lets no member found that has voted: another one does, or has and may be gone for good.
        let may_found = !ring.raft.is_initialized().await?;
        let quiet = !attempt.is_multiple_of(QUIET_ATTEMPTS);
        let survey = survey(ring).await;
        if let Some(by) = &survey.founded {
            quorum_since = None;
            if let Err(why) = join(ring, setup, by).await
                && !quiet
            {
                tracing::warn!("`{by}` belongs to a founded ring; this member cannot join: {why}");
            }
        } else if let Some(why) = &survey.refused {
            quorum_since = None;
            if !quiet {
                tracing::warn!("this member cannot join: {why}");
            }
        } else if !may_found || survey.agree.len() < ring.configured.len() / 2 {
            quorum_since = None;
            if !quiet {
                let why = match may_found {
                    true => survey.missing.join("; "),
                    false => "this member has voted, and waits for an entry".to_owned(),
                };
                tracing::info!("the ring is not founded yet: {why}");
            }
        } else {
            let since = *quorum_since.get_or_insert_with(Instant::now);
            // One election timeout for each that should have come first, so that elections seldom
            // collide.
            let before = survey.agree.iter().filter(|name| **name < ring.name).count();
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            if since.elapsed() >= ring.timing.election_max.saturating_mul(before) {
                found(ring, &survey.missing).await?;
            }
        }
        sleep(RETRY).await;
    }
    Ok(())
}

async fn found<P: Platform>(ring: &Ring<P>, missing: &[String]) -> Result<(), RingError> {
    let node = |(name, url): (&MemberName, &String)| {
        let (id, url) = (founder_id(&ring.ring, name), url.clone());
        // F3
        let node = MemberNode { id, url, learner: false, instance: ANY_INSTANCE, since: 0 };
        (name.clone(), node)
    };
    let members: BTreeMap<_, _> = ring.configured.iter().map(node).collect();
    tracing::info!(members = members.len(), ?missing, "founding the ring");
    match ring.raft.initialize(members).await {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(error)) => {
            tracing::info!(%error, "another member was faster");
            Ok(())
        }
        Err(RaftError::Fatal(fatal)) => Err(fatal.into()),
    }
}

/// Asks to be let in by the leader, which `by` may know.
async fn join<P: Platform>(
    ring: &Ring<P>,
    setup: &RingSetup,
    by: &MemberName,
) -> Result<(), String> {
    let url = setup.members.get(&setup.name).cloned().unwrap_or_default();
    let instance = ring.network.peers.own().instance;
    let order = Order::Join { name: ring.name.clone(), url, instance };
    let mut asked = ring.network.peers.names();
    asked.sort_by_key(|name| name != by);
    let mut last = String::new();
    for name in asked {
        match ring.network.sender(name.clone()).order(&order, HELLO_TIMEOUT).await {
            Ok(OrderReply::Done) => return Ok(()),
            Ok(OrderReply::Refused(Fault::NotInvited)) => {
                return Err(format!(
                    "the ring expects no member at its address; run `satrap member add`, or, if it \
                     lost its disk: {LOST_DISK_REMEDY}"
                ));
            }
            Ok(reply) => last = format!("`{name}`: {reply}"),
            Err(status) => last = format!("`{name}`: {}", status.message()),
        }
    }
    Err(last)
}

impl<P: Platform> Ring<P> {
    /// Has the disks of members recorded that the membership does not name, as soon as this member
    /// leads and has met them. Never ends.
    pub async fn keep_identified(&self) {
        while self.until(Leading::Yes).await {
            if let Err(reply) = self.identify().await {
                tracing::info!(%reply, "the disks of members could not be recorded; trying again");
            }
            sleep(self.timing.heartbeat).await;
        }
        std::future::pending().await
    }

    async fn identify(&self) -> Result<(), OrderReply> {
        let is_unknown = |(_, node): &(MemberName, MemberNode)| node.instance == ANY_INSTANCE;
        if !self.nodes().iter().any(is_unknown) {
            return Ok(());
        }
        // From here on, the membership does not change.
        let _turn = self.turn().await?;
        let before = *self.membership().log_id();
        let mut met = self.network.peers.identified();
        met.insert(self.name.clone(), self.network.peers.own().instance);
        let known = |(name, node): (MemberName, MemberNode)| {
            let instance = *met.get(&name)?;
            Some((name, MemberNode { instance, ..node }))
        };
        let unknown = self.nodes().into_iter().filter(is_unknown);
        let known: BTreeMap<_, _> = unknown.filter_map(known).collect();
        if known.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = known.keys().map(MemberName::as_str).collect();
        tracing::info!(?names, "this leader records the disks of members");
        let named = ChangeMembers::SetNodes(known);
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: before };
        change(self.raft.change_membership_if(named, true, [unchanged]).await).map(drop)
    }
}

/// What the other members know of a ring.
#[derive(Debug, Default)]
pub struct Survey {
    /// One that belongs to a ring.
    pub founded: Option<MemberName>,
    /// Those that know of no ring and have the same first members.
    pub agree: Vec<MemberName>,
    /// Why the others do not count.
    pub missing: Vec<String>,
    /// Why this member may not take part: another one knows it with another disk, so there is a ring.
    pub refused: Option<String>,
}

/// Asks every other member.
pub async fn survey<P: Platform>(ring: &Ring<P>) -> Survey {
    let ask = |name: &MemberName| {
        let (name, sender) = (name.clone(), ring.network.sender(name.clone()));
        async move { (name, sender.hello(HELLO_TIMEOUT).await) }
    };
    let own = founders_digest(&ring.configured);
    let mut survey = Survey::default();
    for (name, answer) in join_all(ring.network.peers.names().iter().map(ask)).await {
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

    /// F2
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
