//! Decides how much each peer may cost, and when a peer is cut off.
//!
//! mTLS says who a peer is, so cost and blame land on one name. A certified validator may still be
//! hostile: the messages that it may send per second are bounded, and each message that fails
//! verification counts as a strike.

use std::{collections::BTreeMap, time::Duration};

use satrap_certify::Label;
use satrap_pressure::TokenBucket;

use crate::limits::{
    BAN, PEER_BULK_COST_BURST, PEER_BULK_COST_PER_S, PEER_COST_BURST, PEER_COST_PER_S, PEERS_MAX,
    STRIKES_MAX,
};

/// The purpose of a frame. Each has its own budget, so that no amount of relayed changes makes a
/// peer's votes and proposals go unheard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Votes, proposals, certificates, status.
    Consensus,
    /// Changes, and blocks for validators that are behind.
    Bulk,
}

struct Peer {
    consensus: TokenBucket,
    bulk: TokenBucket,
    strikes: u32,
    banned_until: Option<Duration>,
}

/// The peers that have sent something.
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

    #[test]
    fn a_peer_that_could_not_pay_is_known_before_any_work() {
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
