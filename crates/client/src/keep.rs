//! Performs what a [`Tenure`] decides, and shows to many how long it lasts.

use std::future::Future;
use std::time::Duration;

use satrap_runtime::{clock, rng};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::ring::sleep_until;
use crate::tenure::{Effect, Event, Lost, Tenure};

/// How long a tenure lasts, as its views see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// On the monotonic clock.
    pub acts_until: Duration,
    /// The tenure was lost, or its holder was asked to stop.
    pub ended: bool,
}

/// Something that is held as long as it is renewed.
#[derive(Debug)]
pub(crate) struct Kept {
    tenure: Tenure,
    validity: watch::Sender<Validity>,
}

/// A view of a tenure. It ends at the latest when the margin begins, even if [`Kept::keep`] is not
/// polled.
#[derive(Clone, Debug)]
pub(crate) struct View(watch::Receiver<Validity>);

impl Kept {
    pub fn new(tenure: Tenure) -> Self {
        let acts_until = tenure.acts_until();
        Self { tenure, validity: watch::Sender::new(Validity { acts_until, ended: false }) }
    }

    pub fn view(&self) -> View {
        View(self.validity.subscribe())
    }

    pub fn acts_until(&self) -> Duration {
        self.tenure.acts_until()
    }

    /// Ends all views.
    pub fn end(&self) {
        self.validity.send_modify(|validity| validity.ended = true);
    }

    /// Renews until that is no longer possible. May be dropped and called again; what is in flight
    /// is then given up, which is safe because the time is counted from the sending.
    pub async fn keep<F>(&mut self, renew: impl Fn() -> F) -> Lost
    where
        F: Future<Output = Result<Duration, Status>>,
    {
        let mut event = Event::Unanswered(rng::u64());
        loop {
            let effect = self.tenure.step(clock::monotonic(), event);
            let acts_until = self.tenure.acts_until();
            self.validity.send_if_modified(|validity| {
                let is_new = validity.acts_until != acts_until;
                validity.acts_until = acts_until;
                is_new
            });
            event = match effect {
                Effect::Wait(until) => {
                    sleep_until(until).await;
                    Event::Woke
                }
                Effect::Ask(until) => {
                    let time = until.saturating_sub(clock::monotonic());
                    match tokio::time::timeout(time, renew()).await {
                        Ok(Ok(ttl)) => Event::Renewed(ttl),
                        Ok(Err(status)) if is_final(&status) => Event::Refused,
                        Ok(Err(_)) | Err(_) => Event::Unanswered(rng::u64()),
                    }
                }
                Effect::Stop(lost) => {
                    self.end();
                    return lost;
                }
            };
        }
    }
}

/// The ring knows that there is nothing to renew. Anything else may pass.
fn is_final(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound)
}

impl View {
    /// Whether it is still held, by the clock and by what is known.
    pub fn is_current(&self) -> bool {
        let validity = *self.0.borrow();
        !validity.ended && clock::monotonic() < validity.acts_until
    }

    /// Completes when it is no longer held, or its holder is to stop.
    pub async fn ended(&self) {
        let mut view = self.0.clone();
        while self.is_current() {
            let until = view.borrow_and_update().acts_until;
            tokio::select! {
                changed = view.changed() => {
                    if changed.is_err() {
                        // The renewals have stopped; the time that was granted still lasts.
                        sleep_until(until).await;
                    }
                }
                () = sleep_until(until) => {}
            }
        }
    }
}
