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
//!   answered that it knows of no ring.
//! - **F2** Only members whose configurations name the same first members count for that majority.
//! - **F3** The first entry is a function of the configuration. Two members that both found the ring
//!   write the same entry, and the election decides between them. So it names no disks; the first
//!   leader has them recorded (P4 of `peers`).
//!
//! # What this does not cover
//!
//! Until a first member has come for the first time, it is indistinguishable from one that lost its
//! disk. If another one loses its disk meanwhile, and the rest of the ring is away, these two found
//! the ring again. docs/adr/0013 says why that is accepted and what prevents it.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use satrap_certify::Digest;
use tokio::time::{Instant, sleep};

use super::{
    Ring, RingError, RingSetup,
    frames::{ANY_INSTANCE, Welcome},
    members::founder_id,
    orders::{Fault, Order, OrderReply},
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
        // A member that has voted knows of a ring, also if no entry has reached it. It may have been
        // removed meanwhile, and then has to join.
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
        } else if !may_found || survey.agree.len() < ring.configured.len() / 2 {
            quorum_since = None;
            if !quiet {
                let why = survey.missing.join("; ");
                tracing::info!("waiting for a majority of the first members: {why}");
            }
        } else {
            let since = *quorum_since.get_or_insert_with(Instant::now);
            // One election timeout for each that should have come first, so that elections seldom
            // collide.
            let before = survey.agree.iter().filter(|name| **name < ring.name).count();
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            if since.elapsed() >= ring.timing.election_max.saturating_mul(before) {
                found(ring, &survey.missing).await;
            }
        }
        sleep(RETRY).await;
    }
    Ok(())
}

async fn found<P: Platform>(ring: &Ring<P>, missing: &[String]) {
    let node = |(name, url): (&MemberName, &String)| {
        let (id, url) = (founder_id(&ring.ring, name), url.clone());
        // F3
        let node = MemberNode { id, url, learner: false, instance: ANY_INSTANCE, since: 0 };
        (name.clone(), node)
    };
    let members: BTreeMap<_, _> = ring.configured.iter().map(node).collect();
    tracing::info!(members = members.len(), ?missing, "founding the ring");
    if let Err(error) = ring.raft.initialize(members).await {
        tracing::info!(%error, "another member has founded this ring");
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
                return Err(
                    "no member is expected at its address; run `satrap member add` first, \
                            or `satrap member replace` if it lost its disk"
                        .into(),
                );
            }
            Ok(reply) => last = format!("`{name}`: {reply}"),
            Err(status) => last = format!("`{name}`: {}", status.message()),
        }
    }
    Err(last)
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
