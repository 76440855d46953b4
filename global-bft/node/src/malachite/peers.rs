//! Decides how much each peer may cost, when a peer is cut off, and whom to ask for blocks.
//!
//! mTLS says who a peer is, so cost and blame land on one name. A certified validator may still be
//! hostile: what it may send per second is bounded, and junk that had to be verified to be found
//! out counts as a strike.
//!
//! # Invariants
//!
//! - **K1** A peer that claims a height and does not deliver it is asked after all others, for a
//!   time that doubles with each failure. One block that it delivers restores its standing.
//! - **K2** Somebody is always asked: a peer that failed is a better hope than none, because all of
//!   them fail while this process is cut off.

use std::{collections::BTreeMap, time::Duration};

use satrap_certify::Label;
use satrap_pressure::TokenBucket;

use crate::limits::{
    BAN, PEER_BULK_COST_BURST, PEER_BULK_COST_PER_S, PEER_COST_BURST, PEER_COST_PER_S, PEERS_MAX,
    STRIKES_MAX, SYNC_DISTRUST_MAX, SYNC_DISTRUST_MIN,
};

/// The purpose of a frame. Each has its own budget, so that no amount of relayed changes makes a
/// peer's votes and proposals go unheard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Votes, proposals, certificates, status.
    Consensus,
    /// Changes and blocks for whoever is behind.
    Bulk,
}

struct Peer {
    consensus: TokenBucket,
    bulk: TokenBucket,
    strikes: u32,
    banned_until: Option<Duration>,
    /// Highest decided height it claims.
    height: u64,
    /// Requests for blocks in a row that it did not satisfy.
    failures: u32,
    /// K1
    distrusted_until: Duration,
}

/// Everybody who sent something.
#[derive(Default)]
pub struct Peers(BTreeMap<Label, Peer>);

impl Peers {
    /// Whether `name`, which has sent something before, could pay `cost` now. Takes nothing.
    pub fn can_pay(&self, name: &Label, (purpose, cost): (Purpose, u32), now: Duration) -> bool {
        let bucket = self.0.get(name).map(|peer| match purpose {
            Purpose::Consensus => &peer.consensus,
            Purpose::Bulk => &peer.bulk,
        });
        bucket.is_some_and(|bucket| bucket.clone().take(cost, now).is_ok())
    }

    /// Whether a message of `cost` from `name` may be looked at.
    pub fn allow(&mut self, name: &Label, (purpose, cost): (Purpose, u32), now: Duration) -> bool {
        if !self.0.contains_key(name) {
            if self.0.len() >= PEERS_MAX {
                return false;
            }
            let peer = Peer {
                consensus: TokenBucket::new(PEER_COST_BURST, PEER_COST_PER_S, now),
                bulk: TokenBucket::new(PEER_BULK_COST_BURST, PEER_BULK_COST_PER_S, now),
                strikes: 0,
                banned_until: None,
                height: 0,
                failures: 0,
                distrusted_until: Duration::ZERO,
            };
            self.0.insert(name.clone(), peer);
        }
        let peer = self.0.get_mut(name).expect("inserted above");
        if peer.banned_until.is_some_and(|until| now < until) {
            return false;
        }
        peer.banned_until = None;
        let bucket = match purpose {
            Purpose::Consensus => &mut peer.consensus,
            Purpose::Bulk => &mut peer.bulk,
        };
        bucket.take(cost, now).is_ok()
    }

    /// Counts junk from `name`; returns whether it must be disconnected.
    pub fn strike(&mut self, name: &Label, now: Duration) -> bool {
        let Some(peer) = self.0.get_mut(name) else { return false };
        peer.strikes += 1;
        if peer.strikes < STRIKES_MAX {
            return false;
        }
        peer.strikes = 0;
        peer.banned_until = Some(now + BAN);
        true
    }

    /// A height was decided: the quorum works, old strikes are forgotten.
    pub fn forgive(&mut self) {
        self.0.values_mut().for_each(|peer| peer.strikes = 0);
    }

    /// Records what height `name` claims to have decided.
    pub fn claims(&mut self, name: &Label, height: u64) {
        if let Some(peer) = self.0.get_mut(name) {
            peer.height = height;
        }
    }

    /// K1: `name` did not deliver a block that it claims to hold.
    pub fn distrust(&mut self, name: &Label, now: Duration) {
        if let Some(peer) = self.0.get_mut(name) {
            let span = SYNC_DISTRUST_MIN.saturating_mul(1 << peer.failures.min(16));
            peer.failures = peer.failures.saturating_add(1);
            peer.distrusted_until = now + span.min(SYNC_DISTRUST_MAX);
        }
    }

    /// K1: `name` delivered a block.
    pub fn trust(&mut self, name: &Label) {
        if let Some(peer) = self.0.get_mut(name) {
            (peer.failures, peer.distrusted_until) = (0, Duration::ZERO);
        }
    }

    /// Whether `name` claims to hold `height` and is not distrusted.
    pub fn may_hold(&self, name: &Label, height: u64, now: Duration) -> bool {
        self.0.get(name).is_some_and(|p| p.height >= height && p.distrusted_until <= now)
    }

    /// The peer to ask for `height`, unless `asked` already: the next one after `last` that is
    /// trusted, else the one whose distrust ends first (K2).
    pub fn holder(&self, height: u64, now: Duration, asked: &Asked<'_>) -> Option<Label> {
        let holders = self.0.iter().filter(|(name, p)| p.height >= height && !asked.has(name));
        let rank = |(name, peer): &(&Label, &Peer)| {
            let distrust = peer.distrusted_until.saturating_sub(now);
            (distrust, asked.last.is_some_and(|last| *name <= last), (*name).clone())
        };
        holders.min_by_key(rank).map(|(name, _)| name.clone())
    }
}

/// Who was asked for blocks.
#[derive(Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Those whose answers are awaited.
    pub now: &'a [Request],
    /// The one that was asked last.
    pub last: Option<&'a Label>,
}

impl Asked<'_> {
    fn has(&self, name: &Label) -> bool {
        self.now.iter().any(|request| request.peer == *name)
    }
}

/// A request for a block that was not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who was asked.
    pub peer: Label,
    /// When.
    pub at: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn votes(cost: u32) -> (Purpose, u32) {
        (Purpose::Consensus, cost)
    }

    #[test]
    fn cost_and_strikes_at_the_limit_and_over_it() {
        let (mut peers, name) = (Peers::default(), label("v1"));
        let bulk = |cost| (Purpose::Bulk, cost);
        assert!(peers.allow(&name, bulk(PEER_BULK_COST_BURST), Duration::ZERO));
        assert!(!peers.allow(&name, bulk(1), Duration::ZERO));
        assert!(peers.allow(&name, votes(PEER_COST_BURST), Duration::ZERO), "its own budget");
        assert!(!peers.allow(&name, votes(1), Duration::ZERO));
        assert!(peers.allow(&name, votes(PEER_COST_PER_S), Duration::from_secs(1)));
        assert!(peers.allow(&name, bulk(PEER_BULK_COST_PER_S), Duration::from_secs(1)));
        assert!(peers.allow(&label("v2"), votes(1), Duration::ZERO), "others are not affected");
        let now = Duration::from_secs(5);
        for _ in 1..STRIKES_MAX {
            assert!(!peers.strike(&name, now));
        }
        assert!(peers.strike(&name, now), "one too many");
        assert!(!peers.allow(&name, votes(1), now + BAN - Duration::from_nanos(1)));
        assert!(peers.allow(&name, votes(1), now + BAN));
    }

    fn claiming(claims: &[(&str, u64)]) -> Peers {
        let mut peers = Peers::default();
        for (name, height) in claims {
            peers.allow(&label(name), votes(1), Duration::ZERO);
            peers.claims(&label(name), *height);
        }
        peers
    }

    #[test]
    fn holders_take_turns() {
        let peers = claiming(&[("a", 5), ("b", 3), ("c", 9)]);
        let after = |last: Option<&str>| {
            let last = last.map(label);
            peers.holder(4, Duration::ZERO, &Asked { now: &[], last: last.as_ref() })
        };
        assert_eq!(after(None), Some(label("a")));
        assert_eq!(after(Some("a")), Some(label("c")));
        assert_eq!(after(Some("c")), Some(label("a")));
        assert_eq!(peers.holder(10, Duration::ZERO, &Asked::default()), None);
        let asked = [Request { peer: label("a"), at: Duration::ZERO }];
        let asked = Asked { now: &asked, last: None };
        assert_eq!(peers.holder(4, Duration::ZERO, &asked), Some(label("c")), "a distinct one");
    }

    #[test]
    fn distrust_grows_ends_and_leaves_somebody_to_ask() {
        let mut peers = claiming(&[("a", u64::MAX), ("b", 9)]);
        let ask = |peers: &Peers, now| peers.holder(4, now, &Asked::default());
        let mut now = Duration::ZERO;
        let mut span = SYNC_DISTRUST_MIN;
        while span < SYNC_DISTRUST_MAX {
            assert_eq!(ask(&peers, now), Some(label("a")));
            peers.distrust(&label("a"), now);
            assert_eq!(ask(&peers, now + span - Duration::from_nanos(1)), Some(label("b")));
            assert!(!peers.may_hold(&label("a"), 4, now + span - Duration::from_nanos(1)));
            now += span;
            span *= 2;
        }
        peers.distrust(&label("a"), now);
        assert!(!peers.may_hold(&label("a"), 4, now + SYNC_DISTRUST_MAX - Duration::from_nanos(1)));
        assert!(peers.may_hold(&label("a"), 4, now + SYNC_DISTRUST_MAX), "it grows no further");
        peers.distrust(&label("b"), now);
        assert_eq!(ask(&peers, now), Some(label("b")), "its distrust ends first");
        peers.trust(&label("a"));
        assert_eq!(ask(&peers, now), Some(label("a")));
    }

    #[test]
    fn whoever_could_not_pay_is_known_before_any_work() {
        let (mut peers, name) = (Peers::default(), label("v1"));
        let (bulk, now) = (Purpose::Bulk, Duration::ZERO);
        assert!(!peers.can_pay(&name, (bulk, 1), now), "never heard of");
        assert!(peers.allow(&name, (bulk, PEER_BULK_COST_BURST - 10), now));
        assert!(peers.can_pay(&name, (bulk, 10), now) && peers.can_pay(&name, (bulk, 10), now));
        assert!(!peers.can_pay(&name, (bulk, 11), now));
    }

    #[test]
    fn strangers_over_the_limit_are_ignored() {
        let mut peers = Peers::default();
        for n in 0..PEERS_MAX {
            assert!(peers.allow(&label(&format!("v{n}")), votes(1), Duration::ZERO));
        }
        assert!(!peers.allow(&label("more"), votes(1), Duration::ZERO));
    }
}
