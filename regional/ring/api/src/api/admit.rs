//! Identifies callers, and decides whether this member answers a request at all.
//!
//! # Invariants
//!
//! - **CALLER-1** Every service gets its caller from this module.
//! - **CALLER-2** Only [`Api::check_admin`] decides who is an administrator.
//!
//! # Deliberately absent
//!
//! Whether this member's state may be read: [`Backend::read`](crate::Backend::read) checks that at each read, because a
//! call can wait for long after it was admitted.

use http::HeaderMap;
use satrap_ring_core::{Caller, Keyspace, Refusal};
use tonic::Status;

use super::Api;
use crate::calls::{Failure, ReadPoint, Unavailable};
use crate::exchange::requires_leader;
use crate::peer::Credentials;
use crate::status::{refused, unavailable};

impl Api {
    /// Whether this member is a learner.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        let me = self.backend.identity().member_id;
        self.backend.status().members.iter().any(|member| member.id == me && member.is_learner)
    }

    /// Refuses the request if this member is a learner.
    ///
    /// # Errors
    ///
    /// As etcd.
    pub fn check_voter(&self) -> Result<(), Status> {
        match self.is_learner() {
            true => Err(refused(&Refusal::NotSupportedForLearner)),
            false => Ok(()),
        }
    }

    /// Refuses a client that requires a leader while there is none.
    ///
    /// # Errors
    ///
    /// `Unavailable`, in etcd's words.
    pub fn check_leader(&self, headers: &HeaderMap) -> Result<(), Status> {
        match requires_leader(headers) && self.backend.status().leader == 0 {
            true => Err(unavailable(Unavailable::NoLeader)),
            false => Ok(()),
        }
    }

    /// Whether this member answers a request with these headers, without regard to the caller.
    ///
    /// # Errors
    ///
    /// In etcd's order: the errors of [`Self::check_voter`] and [`Self::check_leader`].
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Status> {
        self.check_voter()?;
        self.check_leader(headers)
    }

    /// The caller of a request to a tonic service.
    ///
    /// # Errors
    ///
    /// As [`Self::admit`], then as [`Self::identify`].
    pub fn caller<T>(&self, request: &tonic::Request<T>) -> Result<Caller, Status> {
        self.admit(request.metadata().as_ref())?;
        Ok(self.identify(&Credentials::of(request))?)
    }

    /// The caller with these credentials in the present state. A read calls this after it has waited for its turn, so
    /// that a change of users or roles meanwhile takes effect.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidAuthToken`] if the ring did not issue the token, or it has expired.
    pub fn identify(&self, credentials: &Credentials) -> Result<Caller, Failure> {
        Ok(self.backend.inspect(|keyspace| credentials.caller(keyspace))?)
    }

    /// Refuses callers that are not administrators (CALLER-2).
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`], [`Refusal::UserNotFound`] or [`Refusal::PermissionDenied`].
    pub fn check_admin(&self, caller: &Caller) -> Result<(), Failure> {
        Ok(self.backend.inspect(|keyspace| keyspace.auth().check_admin(caller))?)
    }

    /// Refuses callers without a user while authentication is enabled; for requests that concern no key.
    ///
    /// # Errors
    ///
    /// [`Refusal::UserEmpty`].
    pub fn check_named(&self, caller: &Caller) -> Result<(), Failure> {
        Ok(self.backend.inspect(|keyspace| keyspace.auth().check_user(caller))?)
    }

    /// Reads the state of clients, unless it is known to be corrupt; see [`Backend::read`](crate::Backend::read).
    ///
    /// # Errors
    ///
    /// [`Refusal::Corrupt`], or what `ask` refuses.
    pub fn read<T>(&self, ask: impl FnOnce(&Keyspace) -> Result<T, Refusal>) -> Result<T, Failure> {
        Ok(self.backend.read(ask)?)
    }

    /// Waits until [`Self::read`] sees every write that was acknowledged before this call.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub async fn linearizable(&self) -> Result<ReadPoint, Failure> {
        Ok(self.backend.linearizable().await?)
    }
}
