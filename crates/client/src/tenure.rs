//! Decides until when the holder of a lease may act, and when it asks for more.
//!
//! The holder cannot know when the ring received its last request, only when it sent it. So it counts
//! the time to live from the sending, on its own monotonic clock, and stops a margin before the end.
//! The margin pays for clocks that run at different rates: within it, the former holder does nothing
//! and the next one is not yet there.
//!
//! ```text
//!   sent          received                                 expires
//!   |------------ time to live ------------------|            |
//!                 |------------ time to live -----------------|
//!   |---- may act ----------------------|~ margin ~|
//!   0    ttl/3: renew                   acts_until
//! ```
//!
//! # Invariants
//!
//! - **TENURE-1** `acts_until` = sending of the last answered renewal + time to live - margin.
//! - **TENURE-2** Once `acts_until` has passed, no answer, however good, brings the tenure back: others may
//!   have been told that it is over.
//! - **TENURE-3** There is always a next instant to wait for, and it is never after `acts_until`.
//!
//! # Deliberately absent
//!
//! Clocks and requests: [`crate::role`] and [`crate::session`] perform what is decided here. Time is
//! a [`Duration`] since any instant that stays the same. A monotonic clock may pause while a
//! machine sleeps; what a holder does after that is for the [`crate::guard`] to refuse.

use core::time::Duration;

use satrap_pressure::FullJitter;

/// First delay after a renewal that failed is drawn up to this.
const RETRY_BASE: Duration = Duration::from_millis(100);
/// Shortest time an attempt is given, so that the last ones are not hopeless.
const ATTEMPT_MIN: Duration = Duration::from_millis(50);

/// For how long something is held, and how much of that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Seconds until the ring ends the lease unless it is renewed; the ring raises it to its minimum.
    pub ttl_s: u32,
    /// The time before the end in which the holder no longer acts. Must exceed the time to live times
    /// the largest relative difference of clock rates.
    pub margin: Duration,
}

impl Terms {
    /// The usual margin, an eighth: clocks may differ by 14 percent.
    #[must_use]
    pub fn of(ttl_s: u32) -> Self {
        Self { ttl_s, margin: Duration::from_secs(ttl_s.into()) / 8 }
    }
}

/// Why something is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The margin began before a renewal was answered.
    #[error("it could not be renewed in time")]
    OutOfTime,
    /// The ring says that another client holds it, or that it is free.
    #[error("the ring has given it to another client, or has freed it")]
    Taken,
}

/// An input of [`Tenure::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The instant that was waited for is there.
    Woke,
    /// The ring renewed for that long.
    Renewed(Duration),
    /// A renewal failed or was not answered in its time; whether it was applied is unknown. The
    /// number is uniform over all of `u64`.
    Unanswered(u64),
    /// The ring says that there is nothing to renew.
    Refused,
}

/// The next action of the caller of [`Tenure::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Wait until then.
    Wait(Duration),
    /// Ask for a renewal now, and give up on this attempt then.
    Ask(Duration),
    /// Stop acting at once.
    Stop(Lost),
}

/// Keeps one tenure.
#[derive(Clone, Debug)]
pub struct Tenure {
    margin: Duration,
    /// Of the last renewal that was answered.
    sent: Duration,
    ttl: Duration,
    /// When the attempt under way was sent.
    asking: Option<Duration>,
    backoff: FullJitter,
    lost: Option<Lost>,
}

impl Tenure {
    /// Begins with a grant that was asked for at `sent` and is for `ttl`.
    #[must_use]
    pub fn begin(sent: Duration, ttl: Duration, margin: Duration) -> Self {
        let backoff = FullJitter::new(RETRY_BASE, Duration::ZERO);
        Self { margin, sent, ttl, asking: None, backoff, lost: None }
    }

    /// From this instant on the holder must not act (TENURE-1).
    #[must_use]
    pub fn acts_until(&self) -> Duration {
        self.sent + self.ttl.saturating_sub(self.margin)
    }

    /// Takes one event and returns the one thing to do next.
    pub fn step(&mut self, now: Duration, event: Event) -> Effect {
        // TENURE-2
        if self.lost.is_none() && now >= self.acts_until() {
            self.lost = Some(Lost::OutOfTime);
        }
        if let Some(lost) = self.lost {
            return Effect::Stop(lost);
        }
        match (self.asking, event) {
            (None, Event::Woke) if now >= self.renews_at() => {
                self.asking = Some(now);
                let left = self.acts_until() - now;
                Effect::Ask((now + (left / 2).max(ATTEMPT_MIN)).min(self.acts_until()))
            }
            // Woken too early, or by an answer to what was given up.
            (None, Event::Woke | Event::Renewed(_) | Event::Unanswered(_)) => {
                Effect::Wait(self.renews_at())
            }
            (Some(sent), Event::Renewed(ttl)) => {
                (self.sent, self.ttl, self.asking) = (sent, ttl, None);
                self.backoff.connection_ended(Duration::ZERO);
                // The answer may have come too late to be of use.
                if now >= self.acts_until() {
                    return self.step(now, Event::Woke);
                }
                Effect::Wait(self.renews_at())
            }
            (Some(_), Event::Unanswered(random)) => {
                self.asking = None;
                let again = now + self.backoff.next_delay(random);
                Effect::Wait(again.min(self.acts_until()))
            }
            // A request is in flight, whose timeout ends before the tenure does.
            (Some(_), Event::Woke) => Effect::Wait(self.acts_until()),
            (_, Event::Refused) => {
                self.lost = Some(Lost::Taken);
                Effect::Stop(Lost::Taken)
            }
        }
    }

    /// A third of the time to live leaves room for two more attempts; less, if the margin is wide.
    fn renews_at(&self) -> Duration {
        (self.sent + self.ttl / 3).min(self.acts_until())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TTL: Duration = Duration::from_secs(10);
    const MARGIN: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 001-54: counted from the sending, less the margin, however late the answer.
    #[test]
    fn time_counts_from_the_sending() {
        let mut tenure = Tenure::begin(ms(1_000), TTL, MARGIN);
        assert_eq!(tenure.acts_until(), ms(10_000));
        assert_eq!(tenure.step(ms(1_000), Event::Woke), Effect::Wait(ms(1_000) + TTL / 3));
        assert_eq!(tenure.step(ms(5_000), Event::Woke), Effect::Ask(ms(7_500)));
        let renewed = tenure.step(ms(7_400), Event::Renewed(TTL));
        assert_eq!(renewed, Effect::Wait(ms(5_000) + TTL / 3));
        assert_eq!(tenure.acts_until(), ms(14_000), "not 16 400");
    }

    /// 000-38: a keepalive that stalls ends the tenure before the ring does, and for good.
    #[test]
    fn a_stalled_keepalive_ends_the_tenure_for_good() {
        let mut tenure = Tenure::begin(ms(0), TTL, MARGIN);
        let (mut now, mut attempts) = (ms(0), 0);
        let end = loop {
            match tenure.step(now, Event::Woke) {
                Effect::Wait(until) => now = until.max(now + ms(1)),
                Effect::Ask(until) => {
                    (now, attempts) = (until, attempts + 1);
                    match tenure.step(now, Event::Unanswered(u64::MAX / 2)) {
                        Effect::Wait(until) => now = until,
                        Effect::Stop(lost) => break lost,
                        Effect::Ask(_) => panic!("asked twice at once"),
                    }
                }
                Effect::Stop(lost) => break lost,
            }
            assert!(now <= ms(9_000));
        };
        assert_eq!((end, now), (Lost::OutOfTime, ms(9_000)));
        assert!(attempts >= 3, "{attempts}");
        let late = tenure.step(ms(9_001), Event::Renewed(TTL));
        assert_eq!(late, Effect::Stop(Lost::OutOfTime), "TENURE-2");
    }

    /// 000-56: a process that was stopped beyond the end does not act when it goes on, although the
    /// answer to its renewal was waiting for it.
    #[test]
    fn a_pause_beyond_the_end_is_the_end() {
        let mut tenure = Tenure::begin(ms(0), TTL, MARGIN);
        assert!(matches!(tenure.step(ms(4_000), Event::Woke), Effect::Ask(_)));
        let resumed = tenure.step(ms(19_000), Event::Renewed(TTL));
        assert_eq!(resumed, Effect::Stop(Lost::OutOfTime));
    }

    #[test]
    fn a_refusal_is_the_end_at_once() {
        let mut tenure = Tenure::begin(ms(0), TTL, MARGIN);
        tenure.step(ms(4_000), Event::Woke);
        assert_eq!(tenure.step(ms(4_010), Event::Refused), Effect::Stop(Lost::Taken));
        assert_eq!(tenure.step(ms(4_020), Event::Renewed(TTL)), Effect::Stop(Lost::Taken));
    }

    /// Plays a holder against a ring whose clock runs faster, with every third renewal lost and each
    /// taking `flight` to arrive. True if the holder ever acted after the ring had ended the lease.
    fn overlaps(rate_permille: u64, flight: Duration, seed: u64) -> bool {
        // How long the ring's time to live lasts on the holder's clock.
        let lasts = TTL * 1_000 / u32::try_from(rate_permille).unwrap();
        let mut tenure = Tenure::begin(ms(0), TTL, MARGIN);
        let (mut now, mut expires) = (ms(0), flight + lasts);
        let mut asked = 0;
        loop {
            match tenure.step(now, Event::Woke) {
                Effect::Wait(until) => now = until.max(now + ms(1)),
                Effect::Ask(until) => {
                    asked += 1;
                    let lost = asked > 12 || (asked + seed).is_multiple_of(3);
                    let arrives = now + flight;
                    let answer = if lost || arrives >= expires || arrives + flight > until {
                        now = until;
                        Event::Unanswered(seed)
                    } else {
                        (now, expires) = (arrives + flight, arrives + lasts);
                        Event::Renewed(TTL)
                    };
                    tenure.step(now, answer);
                }
                Effect::Stop(_) => return tenure.acts_until() > expires,
            }
        }
    }

    proptest! {
        /// 001-54: up to the margin's worth of skew no holder acts after the end.
        #[test]
        fn within_the_margin_two_never_act(
            permille in 500u64..=1_111, flight_ms in 0u64..2_000, seed: u64,
        ) {
            prop_assert!(!overlaps(permille, ms(flight_ms), seed));
        }
    }

    /// 001-54, the control: past the margin they do, which is what the tokens are for.
    #[test]
    fn past_the_margin_two_do_act() {
        assert!(overlaps(1_150, ms(0), 0));
    }
}
