//! Decides who asks, and whether this member answers such a request at all.
//!
//! # Invariants
//!
//! - **G1** No service acts for a caller that did not come from here.
//! - **G2** Who needs an administrator asks [`Gate::admin`]; there is no second place that decides.

use std::fmt::Debug;

use satrap_merkle::codec::Canonical;
use satrap_proto::etcdserverpb::ResponseHeader;
use satrap_regional_core::{Caller, Keyspace, Proposal, Refusal, Request, Response};
use tonic::Status;

use crate::backend::{Backend, Failure};
use crate::exchange::check_leader;
use crate::peer::Credentials;
use crate::status::{refused, unavailable};

/// What every service holds.
#[derive(Clone, Debug)]
pub struct Gate {
    backend: Backend,
}

impl Gate {
    /// In front of this ring.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self { backend }
    }

    /// The ring behind it.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Who asks. A learner refuses, as etcd's does.
    ///
    /// # Errors
    ///
    /// In etcd's order: what a learner does not serve, no leader for a client that needs one, and a
    /// token that is none of ours.
    pub fn caller<T>(&self, request: &tonic::Request<T>) -> Result<Caller, Status> {
        self.pass(request)?;
        self.identify(request)
    }

    /// [`Self::caller`] without looking at tokens.
    ///
    /// # Errors
    ///
    /// If this member is a learner, or the caller wants a leader and there is none.
    pub fn pass<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        if self.is_learner() {
            return Err(refused(&Refusal::NotSupportedForLearner));
        }
        self.pass_at_learner(request)
    }

    /// [`Self::pass`] for what a learner serves too.
    ///
    /// # Errors
    ///
    /// See [`Self::caller`].
    pub fn pass_at_learner<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        check_leader(request.metadata().as_ref(), &self.backend)
    }

    /// Who asks.
    ///
    /// # Errors
    ///
    /// A token that is none of ours.
    pub fn identify<T>(&self, request: &tonic::Request<T>) -> Result<Caller, Status> {
        Credentials::of(request).caller(&self.backend)
    }

    /// Whether this caller is an administrator (G2).
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn admin(&self, caller: &Caller) -> Result<(), Status> {
        self.check(|keyspace| keyspace.auth().check_admin(caller))
    }

    /// Whether this caller is anybody; for requests that name no key.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn somebody(&self, caller: &Caller) -> Result<(), Status> {
        self.check(|keyspace| keyspace.auth().check_somebody(caller))
    }

    /// What the state says about a question, as a status.
    ///
    /// # Errors
    ///
    /// The refusal.
    pub fn check<T>(&self, ask: impl FnOnce(&Keyspace) -> Result<T, Refusal>) -> Result<T, Status> {
        self.backend.read(ask).map_err(|refusal| refused(&refusal))
    }

    /// Waits until [`Self::check`] sees every write that was acknowledged before this call.
    ///
    /// # Errors
    ///
    /// If the ring cannot say.
    pub async fn fresh(&self) -> Result<(), Status> {
        self.backend.linearizable().await.map(drop).map_err(unavailable)
    }

    /// Puts one request through the log, and returns what it did with the header of the answer.
    ///
    /// # Errors
    ///
    /// The refusal, or why the ring could not.
    pub async fn propose(
        &self,
        caller: Caller,
        request: Request,
    ) -> Result<(Response, ResponseHeader), Status> {
        Ok(self.try_propose(caller, request).await?)
    }

    /// [`Self::propose`] for those who must tell refusals apart.
    ///
    /// # Errors
    ///
    /// A [`Failure`].
    pub async fn try_propose(
        &self,
        caller: Caller,
        request: Request,
    ) -> Result<(Response, ResponseHeader), Failure> {
        let Proposal { caller, request } = bounded(Proposal { caller, request })?;
        let applied = self.backend.propose(caller, request).await?;
        if applied.reply == Err(Refusal::NoSpace) {
            self.backend.raise_no_space().await;
        }
        let response = applied.reply?;
        let header = self.backend.header(response.revision(), applied.term);
        Ok((response, header))
    }

    /// Whether this member has no vote.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        let me = self.backend.identity().member_id;
        self.backend.status().members.iter().any(|member| member.id == me && member.is_learner)
    }
}

/// Refuses what the members could not read back from the log: a name or a key beyond its bound. An
/// entry that no member can decode would stop the ring.
fn bounded(proposal: Proposal) -> Result<Proposal, Refusal> {
    Proposal::from_canonical(&proposal.to_canonical()).map_err(|_| Refusal::RequestTooLarge)
}

/// The ring answered a request with what belongs to another.
pub(super) fn mismatch(answer: &impl Debug) -> Status {
    tracing::error!(?answer, "BUG: the answer is to another request");
    Status::internal("the answer is to another request")
}
