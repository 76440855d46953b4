//! Decides which server an edge asks next, and when.
//!
//! Home members are asked in turn, starting at a random one, so that a fleet spreads. A member
//! that is merely unreachable is tried again after its turn comes round. A member that *lied*
//! (its answer broke a rule) is shunned for a while: it may be one compromised process, and
//! asking it again at once gains nothing. Servers of other regions are asked only
//! while every home member is failing or shunned.
//!
//! # Invariants
//!
//! - **PULL-1** There is always a next attempt: an edge never gives up.
//! - **PULL-2** Delays are full jitter between 100 ms and 30 s; only a connection that was useful for a
//!   while resets them. A refusal does not wait: the next *other* server is asked at once, as long
//!   as there is one that is not shunned.
//! - **PULL-3** A server is left when what it had was stale for too long, whatever it sends and however
//!   often; and if all home members are stale, a server of another region is asked.

use core::time::Duration;

use satrap_pressure::FullJitter;

/// How long a server that lied is not asked again, if there is any other.
pub const SHUN: Duration = Duration::from_secs(300);
/// A connection that lasted this long was useful: backoff starts over.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// The first retry comes within this time.
const BACKOFF_BASE: Duration = Duration::from_millis(250);

/// The region of a server, as seen from the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member of the edge's own region.
    Home,
    /// A member of another region, asked only in need.
    Fallback,
}

/// The next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Index into the list of servers.
    pub server: usize,
    /// How long to wait first.
    pub delay: Duration,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Could not connect, or the connection broke after it had been of use.
    Lost,
    /// The server sent nothing fresh, or nothing fresh for too long.
    Stale,
    /// The server's answer was refused.
    Lied,
}

#[derive(Clone, Debug)]
struct Server {
    source: Source,
    shunned_until: Duration,
    failed: bool,
}

/// Chooses servers for one edge. Times are of a monotonic clock.
#[derive(Clone, Debug)]
pub struct Pull {
    servers: Vec<Server>,
    last: Option<usize>,
    backoff: FullJitter,
    /// Whether the next attempt has no delay.
    hurry: bool,
}

impl Pull {
    /// An edge with these servers.
    ///
    /// # Panics
    ///
    /// If there are none; the config check refuses that.
    #[must_use]
    pub fn new(sources: &[Source]) -> Self {
        assert!(!sources.is_empty(), "BUG: an edge without servers passed the config check");
        let server = |&source| Server { source, shunned_until: Duration::ZERO, failed: false };
        Self {
            servers: sources.iter().map(server).collect(),
            last: None,
            backoff: FullJitter::new(BACKOFF_BASE, STABLE_AFTER),
            hurry: true,
        }
    }

    /// The next server to ask, and the delay before. `random` is uniform over `u64`.
    pub fn next(&mut self, now: Duration, random: u64) -> Attempt {
        let start = self.last.map_or(random as usize, |last| last + 1);
        let all = |n: usize| (0..n).map(move |i| (start.wrapping_add(i)) % n);
        let usable = |i: &usize| self.servers[*i].shunned_until <= now;
        let home = |i: &usize| self.servers[*i].source == Source::Home;
        let n = self.servers.len();
        let untried_home = all(n).find(|i| usable(i) && home(i) && !self.servers[*i].failed);
        let untried = all(n).find(|i| usable(i) && !self.servers[*i].failed);
        let server = untried_home.or(untried).unwrap_or_else(|| {
            // All servers failed or lied since the last success: start the round again.
            self.hurry = false;
            self.servers.iter_mut().for_each(|s| s.failed = false);
            let mut order: Vec<_> = all(n).collect();
            let rank = |i: &usize| {
                let server = &self.servers[*i];
                (server.shunned_until.max(now), server.source == Source::Fallback)
            };
            order.sort_by_key(rank);
            order[0]
        });
        self.last = Some(server);
        let delay = if core::mem::replace(&mut self.hurry, false) {
            Duration::ZERO
        } else {
            self.backoff.next_delay(random)
        };
        Attempt { server, delay }
    }

    /// The server gave a useful answer.
    pub fn useful(&mut self, server: usize) {
        self.servers[server].failed = false;
        self.servers[server].shunned_until = Duration::ZERO;
    }

    /// The connection to `server` ended after `uptime`.
    pub fn ended(&mut self, server: usize, now: Duration, uptime: Duration, how: Ended) {
        let entry = &mut self.servers[server];
        entry.failed = true;
        match how {
            Ended::Lost => {
                if uptime >= STABLE_AFTER {
                    // While this connection lasted, servers that had failed before may have recovered.
                    self.servers.iter_mut().for_each(|s| s.failed = false);
                }
                self.backoff.connection_ended(uptime);
            }
            // PULL-3: its uptime proves nothing for the others, which may be stale too.
            Ended::Stale => self.backoff.connection_ended(uptime),
            Ended::Lied => {
                entry.shunned_until = now + SHUN;
                self.hurry = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn pull() -> Pull {
        Pull::new(&[Source::Home, Source::Home, Source::Home, Source::Fallback])
    }

    #[test]
    fn the_first_attempt_is_at_once_and_at_a_random_home_member() {
        for random in 0..3 {
            let attempt = pull().next(NOW, random);
            assert_eq!(attempt, Attempt { server: random as usize, delay: Duration::ZERO });
        }
        // A fallback server is not where an edge starts.
        assert_ne!(pull().next(NOW, 3).server, 3);
    }

    #[test]
    fn liars_are_left_at_once_for_the_next_one_and_in_the_end_for_another_region() {
        let mut pull = pull();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let attempt = pull.next(NOW, 0);
            assert_eq!(attempt.delay, Duration::ZERO, "nothing to wait for: another server");
            asked.push(attempt.server);
            pull.ended(attempt.server, NOW, Duration::ZERO, Ended::Lied);
        }
        assert_eq!(asked, [0, 1, 2, 3]);
        // PULL-1: when all servers lied, the edge still asks, but after a delay.
        assert!(pull.next(NOW, 0).delay >= FullJitter::FLOOR);
        // Home is asked again when the shunning is over.
        let later = NOW + SHUN;
        assert!(pull.next(later, 0).server < 3);
    }

    #[test]
    fn pull_3_stale_members_are_passed_over_in_the_end_for_another_region() {
        let mut pull = pull();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let attempt = pull.next(NOW, 0);
            asked.push(attempt.server);
            // It answered, and it was up for long.
            pull.useful(attempt.server);
            pull.ended(attempt.server, NOW, 10 * STABLE_AFTER, Ended::Stale);
        }
        assert_eq!(asked, [0, 1, 2, 3]);
        assert!(pull.next(NOW, 0).server < 3, "then the round starts again, at home");
    }

    #[test]
    fn lost_connections_back_off_between_floor_and_cap() {
        let mut pull = pull();
        let mut last = pull.next(NOW, 0);
        for _ in 0..50 {
            pull.ended(last.server, NOW, Duration::ZERO, Ended::Lost);
            last = pull.next(NOW, u64::MAX);
            assert!((FullJitter::FLOOR..=FullJitter::CAP).contains(&last.delay));
        }
        assert_eq!(last.delay, FullJitter::CAP);
        // Only a stable connection resets it.
        pull.ended(last.server, NOW, STABLE_AFTER, Ended::Lost);
        assert!(pull.next(NOW, u64::MAX).delay <= BACKOFF_BASE);
    }
}
