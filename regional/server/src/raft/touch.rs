//! How lately this member knew of a leader that a quorum follows.
//!
//! Raft alone does not say: a member that is cut off goes on believing in the leader it last knew,
//! and a leader that hears no other member believes in itself. So every append says how long ago a
//! quorum last answered its sender. A leader without a quorum, and the followers that hear only it,
//! then lose touch at the same time.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How long ago a quorum was last known to follow the sender; part of every append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuorumAge {
    /// `None` if none ever did.
    ms: Option<u64>,
}

/// How long ago a quorum answered this member as its leader; `None` if it does not lead, or none has
/// answered yet.
type Answered = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// What one member knows. Clones share it.
#[derive(Clone, Default)]
pub struct Touch(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// When a quorum was last known to follow a leader that this member hears.
    known_at: Mutex<Option<Instant>>,
    answered: OnceLock<Answered>,
}

impl Touch {
    /// Asks `answered` from now on. Only the first is taken: a member has one Raft.
    pub fn ask(&self, answered: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
        let _ = self.0.answered.set(Box::new(answered));
    }

    /// A quorum elected this member just now.
    pub fn elected(&self) {
        self.note(Duration::ZERO);
    }

    /// A leader was heard, which a quorum followed so long ago.
    pub fn heard(&self, age: QuorumAge) {
        if let Some(ms) = age.ms {
            self.note(Duration::from_millis(ms));
        }
    }

    fn note(&self, ago: Duration) {
        // A peer may say an age longer than clocks go back.
        let Some(at) = Instant::now().checked_sub(ago) else { return };
        let mut known_at = self.0.known_at.lock().unwrap_or_else(PoisonError::into_inner);
        *known_at = (*known_at).max(Some(at));
    }

    /// How long this member has known of no quorum behind a leader; `None` if it never did.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let known_at = *self.0.known_at.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = self.0.answered.get().and_then(|answered| answered());
        known_at.map(|at| at.elapsed()).into_iter().chain(answered).min()
    }

    /// What this member says in an append.
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
        let (leader, follower) = (Touch::default(), Touch::default());
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
    async fn what_is_known_better_is_kept() {
        let (leader, follower) = (Touch::default(), Touch::default());
        leader.elected();
        advance(SECOND).await;
        follower.elected();
        follower.heard(leader.age());
        assert_eq!(follower.silence(), Some(Duration::ZERO));
        leader.ask(|| Some(Duration::from_millis(5)));
        assert_eq!(leader.silence(), Some(Duration::from_millis(5)));
    }
}
