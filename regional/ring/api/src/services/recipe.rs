//! The queue of contenders that locks and elections share: keys under one prefix, ordered by create revision.
//!
//! The layout is that of etcd's Go client, so its locks and ours exclude each other: a contender creates the key
//! `name/` + its lease in hex, and has its turn when no older key is left under `name/`. Each contender waits only for
//! the key before its own.
//!
//! Two things are stricter than in etcd. First, a contender whose lease expires while it waits fails at once; etcd's
//! election then reports a leader without a key, and its lock notices only after the wait (Jepsen reported both).
//! Second, a client that leaves takes its key with it, at any step of its call, so the key does not block the others
//! until the lease expires. A key that another call has created stays.
//!
//! # Invariants
//!
//! - **RECIPE-1** A contender has its turn only if its own key still existed after all older keys were deleted.
//! - **RECIPE-2** Local state suffices to see that the older keys are deleted: no key is ever created with an older
//!   revision, so it stays true. Only the contender's own key needs a linearizable read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use satrap_proto::etcdserverpb::{self as pb, ResponseHeader};
use satrap_ring_core::kv::request::{
    Bounds, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, RangeRequest,
    RequestOp, Revision, SortOrder, SortTarget, TxnRequest,
};
use satrap_ring_core::kv::response::{Event, ResponseOp, TxnResponse};
use satrap_ring_core::{Caller, Refusal, Request, Response};
use tokio::time::sleep;
use tonic::Status;

use super::deletions::Deletions;
use super::lease;
use crate::api::{Answered, Api};
use crate::calls::{Failure, Unavailable};
use crate::peer::Credentials;
use crate::refusal;
use crate::status::unavailable;

/// The TTL of the lease that a contender without one gets, as in etcd.
const SESSION_TTL_S: i64 = 60;

/// Why a lock or an election request failed.
#[derive(Clone, Debug)]
pub(super) enum RecipeError {
    /// A failure that any other request may have.
    Failure(Failure),
    /// A failure of locks and elections only, with the text of etcd's client.
    Text(&'static str),
}

impl<T: Into<Failure>> From<T> for RecipeError {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

impl From<RecipeError> for Status {
    /// etcd answers these calls through an internal client and loses every code on the way, so its clients compare
    /// texts. Only failures that a retry may mend keep their code here.
    fn from(error: RecipeError) -> Self {
        match error {
            RecipeError::Failure(Failure::Unavailable(cause)) => unavailable(cause),
            RecipeError::Failure(Failure::Refused(refusal)) => {
                Self::unknown(refusal::text(&refusal))
            }
            RecipeError::Text(text) => Self::unknown(text),
        }
    }
}

/// One lock or election call of a client.
#[derive(Clone, Debug)]
pub(super) struct RecipeCall {
    pub api: Arc<Api>,
    pub credentials: Credentials,
}

impl RecipeCall {
    /// The call of a request, if this member may answer it.
    pub fn new<T>(api: &Arc<Api>, request: &tonic::Request<T>) -> Result<Self, Status> {
        api.admit(request.metadata().as_ref())?;
        Ok(Self { api: api.clone(), credentials: Credentials::of(request) })
    }

    /// The caller, authenticated again at every step, because a wait can be long.
    pub fn caller(&self) -> Result<Caller, RecipeError> {
        self.api.identify(&self.credentials).map_err(RecipeError::from)
    }

    /// The lease of the contender's key: the given one, or a new one if that is zero.
    pub async fn session(&self, lease: i64) -> Result<i64, RecipeError> {
        if lease != 0 {
            return Ok(lease);
        }
        let wanted = pb::LeaseGrantRequest { ttl: SESSION_TTL_S, id: 0 };
        Ok(lease::grant(&self.api, self.caller()?, wanted).await?.id)
    }

    /// Commits a transaction.
    pub async fn txn(&self, txn: TxnRequest) -> Result<(TxnResponse, ResponseHeader), RecipeError> {
        match self.api.propose(self.caller()?, Request::Txn(txn)).await? {
            Answered { response: Response::Txn(txn), header, .. } => Ok((txn, header)),
            other => unreachable!("BUG: a transaction was answered with {other:?}"),
        }
    }

    /// Enters the queue with `txn`, whose `success` creates `key` and whose `failure` begins with a read of it. If the
    /// call ends before its turn, the key is deleted again, but only once the ring has confirmed that this call
    /// created it. Without an answer of the ring within its time limit, the key stays until its lease expires: a later
    /// deletion could remove the key of the same client's next attempt.
    pub async fn enter(
        &self,
        deletions: &Deletions,
        key: Bytes,
        txn: TxnRequest,
    ) -> Result<Entered, RecipeError> {
        let (api, caller) = (self.api.clone(), self.caller()?);
        let request = Request::Txn(txn);
        let answer = async move { api.propose(caller, request).await }.boxed();
        let (call, deletions) = (self.clone(), deletions.clone());
        let answer = Some(answer);
        let mut entering = Entering { deletions: deletions.clone(), call, key, answer };
        let answer = entering.settle().await?;
        let Answered { response: Response::Txn(response), header, .. } = answer else {
            unreachable!("BUG: a transaction was answered with {answer:?}")
        };
        let created = match first_of(&response, 0) {
            Some(present) if !response.succeeded => present.create_revision,
            _ => response.revision,
        };
        let own = Own { key: entering.key.clone(), created };
        let created_here = response.succeeded.then(|| own.clone());
        let withdrawal = Withdrawal { deletions, call: self.clone(), created: created_here };
        Ok(Entered { own, response, header, withdrawal })
    }

    /// The key with the smallest create revision under a prefix in this member's state, and the revision of that
    /// state.
    pub fn oldest(&self, prefix: &KeyRange) -> Result<(Option<Event>, Revision), RecipeError> {
        self.first(&oldest(prefix))
    }

    fn first(&self, range: &RangeRequest) -> Result<(Option<Event>, Revision), RecipeError> {
        let caller = self.caller()?;
        let found = self.api.read(|keyspace| keyspace.range(&caller, range))?;
        Ok((found.kvs.into_iter().next(), found.revision))
    }

    /// Deletes the key of a client that left. Retries for as long as the key exists and the ring cannot do it.
    async fn withdraw(self, own: Own) {
        let backend = &self.api.backend;
        // If the client may no longer write the key, the key goes when its lease expires.
        while let Ok(caller) = self.caller() {
            let withdrawn = backend.propose(caller, Request::Txn(own.withdrawal())).await;
            let exists = || backend.inspect(|keyspace| own.exists(keyspace.store().get(&own.key)));
            if matches!(withdrawn, Ok(_) | Err(Unavailable::Stopped)) || !exists() {
                return;
            }
            sleep(WITHDRAWAL_RETRY).await;
        }
    }

    /// Waits until no key under `prefix` is older than `own` (RECIPE-1).
    pub async fn turn(
        &self,
        deletions: &Deletions,
        prefix: &KeyRange,
        own: &Own,
        expired: &'static str,
    ) -> Result<(), RecipeError> {
        let _slot = deletions.reserve()?;
        let mut before = RangeRequest::of(prefix.clone());
        before.limit = 1;
        before.order = SortOrder::Descend;
        before.target = SortTarget::Create;
        before.created = Bounds { min: 0, max: own.created - 1 };
        while let (Some(predecessor), _) = self.first(&before)? {
            let (key, created) = (predecessor.key_bytes(), predecessor.create_revision);
            tokio::select! {
                biased;
                gone = deletions.gone(own.key.clone(), own.created) => {
                    gone?;
                    self.check_own(own, expired)?;
                }
                gone = deletions.gone(key, created) => gone?,
            }
        }
        self.api.backend.linearizable().await?;
        self.check_own(own, expired)
    }

    /// Fails with `expired` if the contender's key no longer exists in this member's state.
    fn check_own(&self, own: &Own, expired: &'static str) -> Result<(), RecipeError> {
        match self.api.read(|keyspace| Ok(own.exists(keyspace.store().get(&own.key))))? {
            true => Ok(()),
            false => Err(RecipeError::Text(expired)),
        }
    }
}

/// The pause between two attempts to delete the key of a client that left.
const WITHDRAWAL_RETRY: Duration = Duration::from_millis(500);

/// The key of one contender.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub key: Bytes,
    pub created: Revision,
}

impl Own {
    fn exists(&self, held: Option<&Event>) -> bool {
        held.is_some_and(|event| event.create_revision == self.created)
    }

    /// Holds as long as the key is the incarnation that this contender created.
    pub fn unchanged(&self) -> Compare {
        created_at(&self.key, self.created)
    }

    /// Deletes the key, if it is still the incarnation that this contender created.
    pub fn withdrawal(&self) -> TxnRequest {
        let range = KeyRange::key(self.key.clone());
        let delete = RequestOp::DeleteRange(DeleteRangeRequest { range, prev_kv: false });
        TxnRequest { compare: vec![self.unchanged()], success: vec![delete], failure: Vec::new() }
    }
}

/// A contender in the queue.
#[derive(Debug)]
pub(super) struct Entered {
    pub own: Own,
    /// The response to the transaction by which it entered.
    pub response: TxnResponse,
    pub header: ResponseHeader,
    /// Deletes the key on drop; disarm it when the contender has its turn.
    pub withdrawal: Withdrawal,
}

type Answer = Result<Answered, Failure>;

/// A transaction in flight that may create a key. If the call ends first, the key is deleted.
struct Entering {
    deletions: Deletions,
    call: RecipeCall,
    key: Bytes,
    answer: Option<BoxFuture<'static, Answer>>,
}

impl Entering {
    async fn settle(&mut self) -> Answer {
        let answer = self.answer.as_mut().expect("BUG: a transaction is awaited once").await;
        self.answer = None;
        answer
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let (call, key) = (self.call.clone(), self.key.clone());
        self.deletions.clean_up(async move {
            if let Ok(Answered { response: Response::Txn(txn), .. }) = answer.await
                && txn.succeeded
            {
                call.withdraw(Own { key, created: txn.revision }).await;
            }
        });
    }
}

/// Deletes the key of a contender when dropped, that is, when its client leaves while it waits.
#[derive(Debug)]
pub(super) struct Withdrawal {
    deletions: Deletions,
    call: RecipeCall,
    /// The key, if this call created it.
    created: Option<Own>,
}

impl Withdrawal {
    /// Keeps the key: the contender had its turn.
    pub fn disarm(mut self) {
        self.created = None;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(own) = self.created.take() {
            let call = self.call.clone();
            self.deletions.clean_up(async move { call.withdraw(own).await });
        }
    }
}

/// The first key that the operation at `index` of a transaction found.
pub(super) fn first_of(txn: &TxnResponse, index: usize) -> Option<&Event> {
    match txn.responses.get(index) {
        Some(ResponseOp::Range(range, _)) => range.kvs.first(),
        _ => None,
    }
}

/// `name/`: the prefix of the keys of a lock or an election.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a contender, with the lease in hex as Go prints it: with a sign.
pub(super) fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// Holds if the key was created at this revision, or, for revision zero, if it does not exist.
pub(super) fn created_at(key: &Bytes, revision: Revision) -> Compare {
    Compare {
        range: KeyRange::key(key.clone()),
        result: CompareResult::Equal,
        target: CompareTarget::Create(revision),
    }
}

/// Reads the key with the smallest create revision under a prefix.
pub(super) fn oldest(prefix: &KeyRange) -> RangeRequest {
    let mut range = RangeRequest::of(prefix.clone());
    range.limit = 1;
    range.order = SortOrder::Ascend;
    range.target = SortTarget::Create;
    range
}

/// Refuses an empty key, before all other checks, as in etcd.
pub(super) fn check_key(key: &[u8]) -> Result<(), RecipeError> {
    if key.is_empty() { Err(Refusal::EmptyKey.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_go_client() {
        assert_eq!(key_of(&prefix(b"a"), 0x5315_a1fd), "a/5315a1fd");
        assert_eq!(key_of(&prefix(b""), -255), "/-ff");
        assert_eq!(key_of(&prefix(b"a"), i64::MIN), "a/-8000000000000000");
    }
}
