//! Two kinds of locks, told apart by type: one that is safe to rely on, and one that is not.
//!
//! | | [`fenced_lock`] | [`try_hint`] |
//! |---|---|---|
//! | gives | a [`RoleHolder`] with a [`FencingToken`](crate::FencingToken) | a [`Hint`] |
//! | a paused holder that goes on | is refused by the resource's [`guard`](crate::guard) | writes beside the next one |
//! | use it for | correctness | saving work that may be done twice |
//!
//! A lock server cannot do better than a hint by itself: between its answer and the holder's write
//! anything can happen. If the resource cannot compare tokens, what you have is a hint.

use std::time::Duration;

use bytes::Bytes;
use satrap_pressure::FullJitter;
use satrap_runtime::rng;

use crate::error::Error;
use crate::queue::Place;
use crate::ring::Ring;
use crate::role::{Attempt, Candidate, Exit, Leadership, RoleHolder, try_role};
use crate::session::Session;
use crate::tenure::{Lost, Terms};

const RETRY_BASE: Duration = Duration::from_millis(200);

/// Waits for a role, in the order of arrival, and returns it with its token.
///
/// Contenders queue under the role's name and a slash; each watches the one before it, so a release
/// wakes one. Dropping the future leaves the queue when the session of the wait times out.
///
/// # Errors
///
/// Why the ring refused, or [`Error::Lost`] if the session of the wait ended before its turn came.
pub async fn fenced_lock(ring: &Ring, candidate: &Candidate) -> Result<RoleHolder, Error> {
    let mut session = Session::open(ring, candidate.terms).await?;
    let name = Bytes::from(candidate.name.clone());
    let place = Place::enter(ring, &candidate.role, session.lease(), name.clone()).await?;
    let wait = async {
        place.turn(ring).await?;
        let holder = granted(ring, candidate).await?;
        // From now on the place in the queue lasts exactly as long as the role.
        place.put(ring, name, holder.lease()).await?;
        Ok(holder)
    };
    let outcome = session.during(wait).await;
    // Nothing hangs on it any more; if it cannot be ended it times out.
    drop(session.revoke().await);
    outcome
}

/// Asks until the role is granted. Only the first contender of the queue asks, and it waits only for
/// a holder that took the role without queueing.
async fn granted(ring: &Ring, candidate: &Candidate) -> Result<RoleHolder, Error> {
    let mut backoff = FullJitter::new(RETRY_BASE, Duration::ZERO);
    loop {
        match try_role(ring, candidate).await? {
            Attempt::Granted(holder) => return Ok(holder),
            Attempt::Held { remaining, .. } => {
                let delay = backoff.next_delay(rng::u64());
                tokio::time::sleep(delay.min(remaining).max(FullJitter::FLOOR)).await;
            }
        }
    }
}

/// Waits for a role and works as long as it is ours: [`fenced_lock`], then [`RoleHolder::run`].
///
/// # Errors
///
/// As [`fenced_lock`]; once the work has begun there is an [`Exit`].
pub async fn run_as_leader<T, W>(
    ring: &Ring,
    candidate: &Candidate,
    stop: impl Future<Output = ()>,
    wind_down: Duration,
    work: impl FnOnce(Leadership) -> W,
) -> Result<Exit<T>, Error>
where
    W: Future<Output = T>,
{
    let mut stop = std::pin::pin!(stop);
    let holder = tokio::select! {
        biased;
        () = &mut stop => return Ok(Exit::Stopped(None)),
        holder = fenced_lock(ring, candidate) => holder?,
    };
    Ok(holder.run(stop, wind_down, work).await)
}

/// A lock without a token: **others may hold it at the same time**, when this process was paused or
/// cut off. It has no token that a [`Guard`](crate::guard::Guard) would take, on purpose.
#[derive(Debug)]
pub struct Hint {
    ring: Ring,
    place: Place,
    session: Session,
}

/// Takes a hint, unless another client has it or waits for it.
///
/// # Errors
///
/// Why the ring refused.
pub async fn try_hint(ring: &Ring, name: &str, terms: Terms) -> Result<Option<Hint>, Error> {
    let session = Session::open(ring, terms).await?;
    let place = Place::enter(ring, name, session.lease(), Bytes::new()).await?;
    if place.is_first(ring).await? {
        return Ok(Some(Hint { ring: ring.clone(), place, session }));
    }
    session.revoke().await?;
    Ok(None)
}

impl Hint {
    /// Whether it is probably still ours. This does not exclude that another client acts.
    #[must_use]
    pub fn is_probably_held(&self) -> bool {
        self.session.view().is_current()
    }

    /// Renews it until it is lost.
    pub async fn keep(&mut self) -> Lost {
        self.session.keep().await
    }

    /// Gives it back.
    ///
    /// # Errors
    ///
    /// Why the ring could not; it then times out.
    pub async fn release(self) -> Result<(), Error> {
        self.place.leave(&self.ring).await?;
        self.session.revoke().await
    }
}
