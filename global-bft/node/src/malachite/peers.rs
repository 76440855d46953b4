//! Decides how much each peer may cost, and when a peer is cut off.
//!
//! mTLS says who a peer is, so cost and blame land on one name. A certified validator may still be
//! hostile: what it may send per second is bounded, and junk that had to be verified to be found
//! out counts as a strike.

use std::{collections::BTreeMap, time::Duration};

use satrap_certify::Label;
use satrap_pressure::TokenBucket;

use crate::limits::{BAN, PEER_COST_BURST, PEER_COST_PER_S, PEERS_MAX, STRIKES_MAX};

struct Peer {
    bucket: TokenBucket,
    strikes: u32,
    banned_until: Option<Duration>,
    /// Highest decided height it claims.
    height: u64,
}

/// Everybody who sent something.
#[derive(Default)]
pub struct Peers(BTreeMap<Label, Peer>);

impl Peers {
    /// Whether a message of `cost` from `name` may be looked at.
    pub fn allow(&mut self, name: &Label, cost: u32, now: Duration) -> bool {
        if !self.0.contains_key(name) {
            if self.0.len() >= PEERS_MAX {
                return false;
            }
            let bucket = TokenBucket::new(PEER_COST_BURST, PEER_COST_PER_S, now);
            let peer = Peer { bucket, strikes: 0, banned_until: None, height: 0 };
            self.0.insert(name.clone(), peer);
        }
        let peer = self.0.get_mut(name).expect("inserted above");
        if peer.banned_until.is_some_and(|until| now < until) {
            return false;
        }
        peer.banned_until = None;
        peer.bucket.take(cost, now).is_ok()
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

    /// Peers that claim to hold `height`, starting after `last`.
    pub fn holding(&self, height: u64, last: Option<&Label>) -> Option<Label> {
        let mut holders = self.0.iter().filter(|(_, p)| p.height >= height).map(|(name, _)| name);
        let after = holders.clone().find(|name| last.is_none_or(|last| *name > last));
        after.or_else(|| holders.next()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    #[test]
    fn cost_and_strikes_at_the_limit_and_over_it() {
        let (mut peers, name) = (Peers::default(), label("v1"));
        assert!(peers.allow(&name, PEER_COST_BURST, Duration::ZERO));
        assert!(!peers.allow(&name, 1, Duration::ZERO));
        assert!(peers.allow(&name, PEER_COST_PER_S, Duration::from_secs(1)));
        assert!(peers.allow(&label("v2"), 1, Duration::ZERO), "others are not affected");
        let now = Duration::from_secs(5);
        for _ in 1..STRIKES_MAX {
            assert!(!peers.strike(&name, now));
        }
        assert!(peers.strike(&name, now), "one too many");
        assert!(!peers.allow(&name, 1, now + BAN - Duration::from_nanos(1)));
        assert!(peers.allow(&name, 1, now + BAN));
    }

    #[test]
    fn holders_take_turns() {
        let mut peers = Peers::default();
        for (name, height) in [("a", 5), ("b", 3), ("c", 9)] {
            peers.allow(&label(name), 1, Duration::ZERO);
            peers.claims(&label(name), height);
        }
        assert_eq!(peers.holding(4, None), Some(label("a")));
        assert_eq!(peers.holding(4, Some(&label("a"))), Some(label("c")));
        assert_eq!(peers.holding(4, Some(&label("c"))), Some(label("a")));
        assert_eq!(peers.holding(10, None), None);
    }

    #[test]
    fn strangers_over_the_limit_are_ignored() {
        let mut peers = Peers::default();
        for n in 0..PEERS_MAX {
            assert!(peers.allow(&label(&format!("v{n}")), 1, Duration::ZERO));
        }
        assert!(!peers.allow(&label("more"), 1, Duration::ZERO));
    }
}
