//! Decides which server an edge follows, from when, and when it leaves it.
//!
//! ```text
//!   waiting for a server's turn ── due ──▶ following it ── due: stale, or ended ──▶ waiting …
//! ```
//!
//! Which server comes next is for [`Pull`], and how long one may bring nothing new for
//! [`Freshness`]. This module puts the two together, so that the loop of the agent and the
//! simulation follow servers in the same way.

use core::time::Duration;

use satrap_pressure::{Freshness, Seen};

use crate::pull::{Attempt, Ended, Pull, Source};

/// How a connection ended, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It could not be opened, or it broke.
    Lost,
    /// The server's answer was refused.
    Lied,
}

/// The action that [`Follower::due`] asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Open a connection to this server.
    Open(usize),
    /// Close the connection: nothing fresh and complete came of it for this long (PULL-3).
    Leave(Duration),
}

#[derive(Clone, Debug)]
enum State {
    Waiting { server: usize, until: Duration },
    Following { server: usize, since: Duration, freshness: Freshness },
}

/// Follows one server after the other. Times are of a monotonic clock.
#[derive(Clone, Debug)]
pub struct Follower {
    pull: Pull,
    heartbeat: Duration,
    state: State,
}

impl Follower {
    /// An edge with servers of these `sources`, in a realm with this `heartbeat`. `random` is
    /// uniform over `u64`, here and below.
    ///
    /// # Panics
    ///
    /// If there are no servers; the config check refuses that.
    #[must_use]
    pub fn new(sources: &[Source], heartbeat: Duration, now: Duration, random: u64) -> Self {
        let mut pull = Pull::new(sources);
        let state = waiting(&mut pull, now, random);
        Self { pull, heartbeat, state }
    }

    /// How long after `now` [`Follower::due`] is to be called.
    #[must_use]
    pub fn patience(&self, now: Duration) -> Duration {
        match &self.state {
            State::Waiting { until, .. } => until.saturating_sub(now),
            State::Following { freshness, .. } => freshness.patience(now).unwrap_or_default(),
        }
    }

    /// The server that is followed, or is being connected to.
    #[must_use]
    pub fn server(&self) -> Option<usize> {
        match self.state {
            State::Waiting { .. } => None,
            State::Following { server, .. } => Some(server),
        }
    }

    /// There is no more patience: the next server's turn came, or the one that is followed is left.
    pub fn due(&mut self, now: Duration, random: u64) -> Due {
        match &self.state {
            State::Waiting { server, .. } => {
                let server = *server;
                let freshness = Freshness::new(self.heartbeat, now);
                self.state = State::Following { server, since: now, freshness };
                Due::Open(server)
            }
            State::Following { freshness, .. } => {
                let limit = freshness.limit();
                self.leave(now, random, Ended::Stale);
                Due::Leave(limit)
            }
        }
    }

    /// An update of the followed server was verified, which led to `seen`.
    pub fn observe(&mut self, now: Duration, seen: Seen) {
        if let State::Following { server, freshness, .. } = &mut self.state {
            freshness.observe(now, seen);
            self.pull.useful(*server);
        }
    }

    /// The connection ended. Returns what that says of the server.
    pub fn ended(&mut self, now: Duration, random: u64, failure: Failure) -> Ended {
        let was_fresh = match &self.state {
            State::Waiting { .. } => false,
            State::Following { freshness, .. } => freshness.was_fresh(),
        };
        let ended = match failure {
            Failure::Lied => Ended::Lied,
            Failure::Lost if was_fresh => Ended::Lost,
            // PULL-3: a server that ends a connection before it is left brought nothing either.
            Failure::Lost => Ended::Stale,
        };
        self.leave(now, random, ended);
        ended
    }

    fn leave(&mut self, now: Duration, random: u64, ended: Ended) {
        if let State::Following { server, since, .. } = self.state {
            self.pull.ended(server, now, now.saturating_sub(since), ended);
            self.state = waiting(&mut self.pull, now, random);
        }
    }
}

fn waiting(pull: &mut Pull, now: Duration, random: u64) -> State {
    let Attempt { server, delay } = pull.next(now, random);
    State::Waiting { server, until: now + delay }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(30);
    const START: Duration = Duration::from_secs(1_000);
    const FRESH: Seen = Seen { age: Duration::ZERO, complete: true };

    fn following() -> Follower {
        let sources = [Source::Home, Source::Home];
        let mut follower = Follower::new(&sources, HEARTBEAT, START, 0);
        assert_eq!((follower.server(), follower.patience(START)), (None, Duration::ZERO));
        assert_eq!(follower.due(START, 0), Due::Open(0));
        assert_eq!(follower.server(), Some(0));
        follower
    }

    #[test]
    fn pull_3_a_server_is_left_when_nothing_fresh_came_for_the_limit() {
        let mut follower = following();
        let limit = follower.patience(START);
        assert_eq!(limit, HEARTBEAT.mul_f64(Freshness::LIMIT_HEARTBEATS));
        let later = START + limit / 2;
        follower.observe(later, FRESH);
        assert_eq!(follower.patience(later), limit);
        follower.observe(later + limit, Seen { complete: false, ..FRESH });
        assert_eq!(follower.patience(later + limit), Duration::ZERO);
        assert_eq!(follower.due(later + limit, 0), Due::Leave(limit));
        assert_eq!(follower.server(), None);
    }

    #[test]
    fn pull_3_a_connection_that_ends_before_anything_fresh_came_counts_as_stale() {
        let ended = |fresh: bool, failure: Failure| {
            let mut follower = following();
            if fresh {
                follower.observe(START, FRESH);
            }
            let ended = follower.ended(START, 0, failure);
            assert_eq!(follower.server(), None);
            ended
        };
        assert_eq!(ended(false, Failure::Lost), Ended::Stale);
        assert_eq!(ended(true, Failure::Lost), Ended::Lost);
        assert_eq!(ended(true, Failure::Lied), Ended::Lied);
    }
}
