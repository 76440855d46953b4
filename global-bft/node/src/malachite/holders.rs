//! Decides which peer to ask for a decided block, by the heights that peers claim and the blocks that
//! they delivered.
//!
//! # Invariants
//!
//! - **HOLDERS-1** A peer that claims a height and does not deliver it is asked after all others, for a
//!   time that doubles with each failure. One block that it delivers ends that.
//! - **HOLDERS-2** While any peer claims the height, one is asked: all of them fail while this process is cut
//!   off, so a peer that failed is a better hope than none.

use std::{collections::BTreeMap, time::Duration};

use satrap_certify::Label;

use crate::limits::{PEERS_MAX, SYNC_DISTRUST_MAX, SYNC_DISTRUST_MIN};

#[derive(Default)]
struct Holder {
    /// Highest decided height it claims.
    height: u64,
    /// Requests for blocks in a row that it did not satisfy.
    failures: u32,
    /// HOLDERS-1
    distrusted_until: Duration,
}

/// The peers that claimed a height.
#[derive(Default)]
pub(super) struct Holders(BTreeMap<Label, Holder>);

impl Holders {
    /// Records the height that `name` claims to have decided.
    pub fn claims(&mut self, name: &Label, height: u64) {
        if let Some(holder) = self.0.get_mut(name) {
            holder.height = height;
        } else if self.0.len() < PEERS_MAX {
            self.0.insert(name.clone(), Holder { height, ..Holder::default() });
        }
    }

    /// HOLDERS-1: `name` did not deliver a block that it claims to hold.
    pub fn distrust(&mut self, name: &Label, now: Duration) {
        if let Some(holder) = self.0.get_mut(name) {
            let span = SYNC_DISTRUST_MIN.saturating_mul(1 << holder.failures.min(16));
            holder.failures = holder.failures.saturating_add(1);
            holder.distrusted_until = now + span.min(SYNC_DISTRUST_MAX);
        }
    }

    /// HOLDERS-1: `name` delivered a block.
    pub fn trust(&mut self, name: &Label) {
        if let Some(holder) = self.0.get_mut(name) {
            (holder.failures, holder.distrusted_until) = (0, Duration::ZERO);
        }
    }

    /// Whether `name` claims to hold `height` and is not distrusted.
    pub fn may_hold(&self, name: &Label, height: u64, now: Duration) -> bool {
        self.0.get(name).is_some_and(|h| h.height >= height && h.distrusted_until <= now)
    }

    /// The peer to ask for `height`, unless `asked` already: the next one after `last` that is
    /// trusted, else the one whose distrust ends first (HOLDERS-2).
    pub fn choose(&self, height: u64, now: Duration, asked: &Asked<'_>) -> Option<Label> {
        let holders = self.0.iter().filter(|(name, h)| h.height >= height && !asked.has(name));
        let rank = |(name, holder): &(&Label, &Holder)| {
            let distrust = holder.distrusted_until.saturating_sub(now);
            (distrust, asked.last.is_some_and(|last| *name <= last), (*name).clone())
        };
        holders.min_by_key(rank).map(|(name, _)| name.clone())
    }
}

/// The peers that were asked for blocks.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked<'a> {
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
pub(super) struct Request {
    /// The peer that was asked.
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

    fn claiming(claims: &[(&str, u64)]) -> Holders {
        let mut holders = Holders::default();
        for (name, height) in claims {
            holders.claims(&label(name), *height);
        }
        holders
    }

    #[test]
    fn holders_take_turns() {
        let holders = claiming(&[("a", 5), ("b", 3), ("c", 9)]);
        let after = |last: Option<&str>| {
            let last = last.map(label);
            holders.choose(4, Duration::ZERO, &Asked { now: &[], last: last.as_ref() })
        };
        assert_eq!(after(None), Some(label("a")));
        assert_eq!(after(Some("a")), Some(label("c")));
        assert_eq!(after(Some("c")), Some(label("a")));
        assert_eq!(holders.choose(10, Duration::ZERO, &Asked::default()), None);
        let asked = [Request { peer: label("a"), at: Duration::ZERO }];
        let asked = Asked { now: &asked, last: None };
        assert_eq!(holders.choose(4, Duration::ZERO, &asked), Some(label("c")), "a distinct one");
    }

    #[test]
    fn distrust_grows_ends_and_leaves_a_peer_to_ask() {
        let mut holders = claiming(&[("a", u64::MAX), ("b", 9)]);
        let ask = |holders: &Holders, now| holders.choose(4, now, &Asked::default());
        let mut now = Duration::ZERO;
        let mut span = SYNC_DISTRUST_MIN;
        while span < SYNC_DISTRUST_MAX {
            assert_eq!(ask(&holders, now), Some(label("a")));
            holders.distrust(&label("a"), now);
            assert_eq!(ask(&holders, now + span - Duration::from_nanos(1)), Some(label("b")));
            assert!(!holders.may_hold(&label("a"), 4, now + span - Duration::from_nanos(1)));
            now += span;
            span *= 2;
        }
        holders.distrust(&label("a"), now);
        assert!(!holders.may_hold(
            &label("a"),
            4,
            now + SYNC_DISTRUST_MAX - Duration::from_nanos(1)
        ));
        assert!(holders.may_hold(&label("a"), 4, now + SYNC_DISTRUST_MAX), "it grows no further");
        holders.distrust(&label("b"), now);
        assert_eq!(ask(&holders, now), Some(label("b")), "its distrust ends first");
        holders.trust(&label("a"));
        assert_eq!(ask(&holders, now), Some(label("a")));
    }

    #[test]
    fn claims_of_more_peers_than_the_limit_are_ignored() {
        let mut holders = Holders::default();
        for n in 0..=PEERS_MAX {
            holders.claims(&label(&format!("v{n}")), 5);
        }
        assert_eq!(holders.0.len(), PEERS_MAX);
        holders.claims(&label("v0"), 6);
        assert!(holders.may_hold(&label("v0"), 6, Duration::ZERO), "those known may go on");
    }
}
