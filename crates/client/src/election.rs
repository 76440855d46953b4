//! An election over etcd's API: the contender that came first leads until its lease ends.
//!
//! As in etcd a leader has a revision and not a fencing token, so to others it is a hint who leads:
//! two may believe it for a while. For work that must be done by one only, see
//! [`run_as_leader`](crate::lock::run_as_leader).

use bytes::Bytes;

use crate::error::Error;
use crate::queue::{self, Place, Waited};
use crate::ring::Ring;
use crate::session::Session;
use crate::tenure::{Lost, Terms};

/// A won election.
#[derive(Debug)]
pub struct Elected {
    ring: Ring,
    place: Place,
    session: Session,
    waited: Waited,
}

/// The leader of an election, as far as the ring knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its key in the queue of contenders.
    pub key: Bytes,
    /// The value that it proclaimed last.
    pub value: Bytes,
    /// The revision at which its key was created; the same as long as the same contender leads.
    pub created: i64,
    /// The lease that its key is attached to.
    pub lease: i64,
}

/// Waits to be the leader of `name`, watching only the contender before.
///
/// # Errors
///
/// Why the ring refused, or [`Error::Lost`] if our lease ended before our turn came.
pub async fn campaign(
    ring: &Ring,
    name: &str,
    value: impl Into<Bytes>,
    terms: Terms,
) -> Result<Elected, Error> {
    let mut session = Session::open(ring, terms).await?;
    let place = Place::enter(ring, name, session.lease(), value.into()).await?;
    let waited = session.during(place.turn(ring)).await?;
    Ok(Elected { ring: ring.clone(), place, session, waited })
}

/// The current leader of the election `name`, or `None` if it has no contender.
///
/// # Errors
///
/// Why the ring could not say.
pub async fn leader(ring: &Ring, name: &str) -> Result<Option<Leader>, Error> {
    Ok(queue::first(ring, name).await?.map(|kv| Leader {
        key: kv.key,
        value: kv.value,
        created: kv.create_revision,
        lease: kv.lease,
    }))
}

impl Elected {
    /// The revision at which our key was created; smaller than that of every later leader.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.place.created
    }

    /// The lease that our key is attached to.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.session.lease()
    }

    /// How long the queue was, in watches and events.
    #[must_use]
    pub fn waited(&self) -> Waited {
        self.waited
    }

    /// Whether to go on leading, by the clock and what is known here.
    #[must_use]
    pub fn is_probably_leader(&self) -> bool {
        self.session.view().is_current()
    }

    /// Renews our lease until it is lost.
    pub async fn keep(&mut self) -> Lost {
        self.session.keep().await
    }

    /// Says something new.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if we lead no more, or why the ring refused.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<(), Error> {
        self.place.put(&self.ring, value.into(), self.session.lease()).await
    }

    /// Leads no more.
    ///
    /// # Errors
    ///
    /// Why the ring could not; our lease then times out.
    pub async fn resign(self) -> Result<(), Error> {
        self.place.leave(&self.ring).await?;
        self.session.revoke().await
    }
}
