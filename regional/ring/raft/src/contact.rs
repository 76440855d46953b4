//! Measures how long ago this member was in contact with a leader that a quorum follows.
//!
//! Raft alone does not tell: an isolated member keeps believing in the leader it last knew, and a
//! leader that hears no other member believes in itself. So every append carries the time since a
//! quorum last answered its sender. A leader without a quorum, and the followers that hear only
//! that leader, then lose contact at the same time.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The time since a quorum last followed the sender; part of every append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuorumAge {
    /// Milliseconds; `None` if no quorum ever followed the sender.
    ms: Option<u64>,
}

/// Returns the time since a quorum last answered this member as its leader; `None` if it does not
/// lead, or no quorum has answered yet.
type Answered = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// The contact of one member. Clones share it.
#[derive(Clone, Default)]
pub struct QuorumContact(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// The last time at which a quorum followed a leader that this member heard.
    known_at: Mutex<Option<Instant>>,
    answered: OnceLock<Answered>,
}

impl QuorumContact {
    /// Sets the source of the leader's own contact. Only the first call counts: a member has one
    /// Raft.
    pub fn ask(&self, answered: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
        let _ = self.0.answered.set(Box::new(answered));
    }

    /// Records that a quorum elected this member just now.
    pub fn elected(&self) {
        self.note(Duration::ZERO);
    }

    /// Records a leader's append, whose sender a quorum followed `age` ago.
    pub fn heard(&self, age: QuorumAge) {
        if let Some(ms) = age.ms {
            self.note(Duration::from_millis(ms));
        }
    }

    fn note(&self, ago: Duration) {
        // A peer may send an age that lies before the start of the clock.
        let Some(at) = Instant::now().checked_sub(ago) else { return };
        let mut known_at = self.0.known_at.lock().unwrap_or_else(PoisonError::into_inner);
        *known_at = (*known_at).max(Some(at));
    }

    /// The time since the last contact; `None` if there was none.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let known_at = *self.0.known_at.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = self.0.answered.get().and_then(|answered| answered());
        known_at.map(|at| at.elapsed()).into_iter().chain(answered).min()
    }

    /// The age to put on this member's appends.
    #[must_use]
    pub fn age(&self) -> QuorumAge {
        let ms = self.silence().map(|silence| silence.as_millis());
        QuorumAge { ms: ms.and_then(|ms| ms.try_into().ok()) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_follower_loses_touch_when_its_leader_does() {
        let (leader, follower) = (QuorumContact::default(), QuorumContact::default());
        follower.heard(leader.age());
        assert_eq!(follower.silence(), None, "the leader has never had a quorum");
        leader.elected();
        for _ in 0..3 {
            advance(SECOND).await;
            follower.heard(leader.age());
        }
        assert_eq!((leader.silence(), follower.silence()), (Some(3 * SECOND), Some(3 * SECOND)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_contact_does_not_replace_a_newer_one() {
        let (leader, follower) = (QuorumContact::default(), QuorumContact::default());
        leader.elected();
        advance(SECOND).await;
        follower.elected();
        follower.heard(leader.age());
        assert_eq!(follower.silence(), Some(Duration::ZERO));
        leader.ask(|| Some(Duration::from_millis(5)));
        assert_eq!(leader.silence(), Some(Duration::from_millis(5)));
    }
}
