//! What locks and elections have in common: a queue of keys under one prefix, oldest first.
//!
//! The layout is that of etcd's Go client, so its locks and ours exclude each other: a contender creates
//! `name/` + its lease in hex, and is next once no older key is left under `name/`. Each contender waits
//! only for the key before its own.
//!
//! Two things are stricter than in etcd. The lease of a contender can end while it waits; etcd's election
//! then names a leader that is none, and its lock finds out only after the wait (both reported by
//! Jepsen). Here both give up at once. And a client that goes away leaves no key behind to block the
//! others while its lease lives, whatever was under way; nor does it take back one that another call
//! made.
//!
//! # Invariants
//!
//! - **W1** A contender is next only if its own key was there after all older keys were gone.
//! - **W2** Local state is enough to see that older keys are gone: no key is ever created with an
//!   older revision, so what was true once stays true. Only the own key is looked at freshly.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use satrap_proto::etcdserverpb::{self as pb, ResponseHeader};
use satrap_regional_core::kv::request::{
    Bounds, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange, RangeRequest,
    RequestOp, Revision, SortOrder, SortTarget, TxnRequest,
};
use satrap_regional_core::kv::response::{Event, ResponseOp, TxnResponse};
use satrap_regional_core::{Caller, Refusal, Request, Response};
use tokio::time::sleep;
use tonic::Status;

use super::departures::Departures;
use super::gate::Gate;
use super::lease;
use crate::backend::{Failure, Unavailable};
use crate::peer::Credentials;
use crate::status::unavailable;

/// How long the lease lives that etcd makes for a contender without one.
const SESSION_TTL_S: i64 = 60;

/// Why a recipe did not do what it was asked.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// As for any other request.
    Failure(Failure),
    /// Something that only recipes say, in the words of etcd's client.
    Said(&'static str),
    /// The token is none of ours.
    Unauthenticated(Status),
}

impl<T: Into<Failure>> From<T> for Trouble {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

impl From<Trouble> for Status {
    /// etcd answers these calls through a client of its own and loses every code on the way; clients
    /// compare texts. Only what another try may mend keeps its code here.
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Failure(Failure::Unavailable(cause)) => unavailable(cause),
            Trouble::Failure(Failure::Refused(refusal)) => Self::unknown(refusal.message()),
            Trouble::Said(text) => Self::unknown(text),
            Trouble::Unauthenticated(status) => Self::unknown(status.message()),
        }
    }
}

/// One call of a client.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub gate: Gate,
    pub credentials: Credentials,
}

impl Visit {
    /// A call that passed the gate.
    pub fn new<T>(gate: &Gate, request: &tonic::Request<T>) -> Result<Self, Status> {
        gate.pass(request)?;
        Ok(Self { gate: gate.clone(), credentials: Credentials::of(request) })
    }

    /// Who that is now; asked at every step, because a wait can be long.
    pub fn caller(&self) -> Result<Caller, Trouble> {
        self.credentials.caller(self.gate.backend()).map_err(Trouble::Unauthenticated)
    }

    /// The lease to stand in the queue with.
    pub async fn session(&self, lease: i64) -> Result<i64, Trouble> {
        if lease != 0 {
            return Ok(lease);
        }
        let wanted = pb::LeaseGrantRequest { ttl: SESSION_TTL_S, id: 0 };
        Ok(lease::grant(&self.gate, self.caller()?, wanted).await?.id)
    }

    /// Puts a transaction through the log.
    pub async fn txn(&self, txn: TxnRequest) -> Result<(TxnResponse, ResponseHeader), Trouble> {
        match self.gate.try_propose(self.caller()?, Request::Txn(txn)).await? {
            (Response::Txn(txn), header) => Ok((txn, header)),
            (other, _) => unreachable!("BUG: a transaction was answered with {other:?}"),
        }
    }

    /// Goes into the queue by `txn`, whose `success` creates `key` and whose `failure` starts by
    /// reading it. A call that ends without its turn takes its key back, once the ring has said that
    /// it made the key. Where the ring says nothing within its time limit, the key lives as long as
    /// its lease: a later deletion could take the key of the same client's next try.
    pub async fn enter(
        &self,
        departures: &Departures,
        key: Bytes,
        txn: TxnRequest,
    ) -> Result<Entered, Trouble> {
        let (gate, caller) = (self.gate.clone(), self.caller()?);
        let request = Request::Txn(txn);
        let answer = async move { gate.try_propose(caller, request).await }.boxed();
        let (visit, departures) = (self.clone(), departures.clone());
        let answer = Some(answer);
        let mut entering = Entering { departures: departures.clone(), visit, key, answer };
        let (response, header) = entering.settle().await?;
        let Response::Txn(response) = response else {
            unreachable!("BUG: a transaction was answered with {response:?}")
        };
        let created = match first_of(&response, 0) {
            Some(present) if !response.succeeded => present.create_revision,
            _ => response.revision,
        };
        let own = Own { key: entering.key.clone(), created };
        let made = response.succeeded.then(|| own.clone());
        let withdrawal = Withdrawal { departures, visit: self.clone(), made };
        Ok(Entered { own, response, header, withdrawal })
    }

    /// The key with the smallest revision of creation under a prefix, as of now and here, and the
    /// revision of that.
    pub fn oldest(&self, prefix: &KeyRange) -> Result<(Option<Event>, Revision), Trouble> {
        self.first(&oldest(prefix))
    }

    fn first(&self, range: &RangeRequest) -> Result<(Option<Event>, Revision), Trouble> {
        let caller = self.caller()?;
        let found = self.gate.backend().read_keys(|keyspace| keyspace.range(&caller, range))?;
        Ok((found.kvs.into_iter().next(), found.revision))
    }

    /// Takes the key of a client that went away back. A ring that cannot do it now is asked again,
    /// for as long as the key is there.
    async fn withdraw(self, own: Own) {
        let backend = self.gate.backend();
        // A client that may no longer write the key leaves it to its lease.
        while let Ok(caller) = self.caller() {
            let withdrawn = backend.propose(caller, Request::Txn(own.withdrawal())).await;
            let there = || backend.read(|keyspace| own.is_there(keyspace.store().get(&own.key)));
            if matches!(withdrawn, Ok(_) | Err(Unavailable::Stopped)) || !there() {
                return;
            }
            sleep(WITHDRAWAL_RETRY).await;
        }
    }

    /// Waits until no key under `prefix` is older than `own` (W1).
    pub async fn turn(
        &self,
        departures: &Departures,
        prefix: &KeyRange,
        own: &Own,
        expired: &'static str,
    ) -> Result<(), Trouble> {
        let _place = departures.place()?;
        let mut before = RangeRequest::of(prefix.clone());
        before.limit = 1;
        before.order = SortOrder::Descend;
        before.target = SortTarget::Create;
        before.created = Bounds { min: 0, max: own.created - 1 };
        while let (Some(predecessor), _) = self.first(&before)? {
            let (key, created) = (predecessor.key_bytes(), predecessor.create_revision);
            tokio::select! {
                biased;
                gone = departures.gone(own.key.clone(), own.created) => {
                    gone?;
                    return Err(Trouble::Said(expired));
                }
                gone = departures.gone(key, created) => gone?,
            }
        }
        self.gate.backend().linearizable().await?;
        match self.gate.backend().read(|keyspace| own.is_there(keyspace.store().get(&own.key))) {
            true => Ok(()),
            false => Err(Trouble::Said(expired)),
        }
    }
}

/// How long a key that could not be taken back waits for the next try.
const WITHDRAWAL_RETRY: Duration = Duration::from_millis(500);

/// The key of one contender.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub key: Bytes,
    pub created: Revision,
}

impl Own {
    fn is_there(&self, held: Option<&Event>) -> bool {
        held.is_some_and(|event| event.create_revision == self.created)
    }

    /// True of the key as long as it is the one we made.
    pub fn unchanged(&self) -> Compare {
        created_at(&self.key, self.created)
    }

    /// Takes the key back, if it is still the one we made.
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
    /// What the transaction found.
    pub response: TxnResponse,
    pub header: ResponseHeader,
    /// To be disarmed once the client has what it came for.
    pub withdrawal: Withdrawal,
}

type Answer = Result<(Response, ResponseHeader), Failure>;

/// A transaction that may create a key, under way.
struct Entering {
    departures: Departures,
    visit: Visit,
    key: Bytes,
    answer: Option<BoxFuture<'static, Answer>>,
}

impl Entering {
    async fn settle(&mut self) -> Answer {
        let answer = self.answer.as_mut().expect("it is settled once").await;
        self.answer = None;
        answer
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let (visit, key) = (self.visit.clone(), self.key.clone());
        self.departures.sweep(async move {
            if let Ok((Response::Txn(txn), _)) = answer.await
                && txn.succeeded
            {
                visit.withdraw(Own { key, created: txn.revision }).await;
            }
        });
    }
}

/// Takes the key of a contender back when the client goes away while it waits.
#[derive(Debug)]
pub(super) struct Withdrawal {
    departures: Departures,
    visit: Visit,
    /// The key that this call made, if it made one.
    made: Option<Own>,
}

impl Withdrawal {
    /// The client got what it waited for.
    pub fn disarm(mut self) {
        self.made = None;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(own) = self.made.take() {
            let visit = self.visit.clone();
            self.departures.sweep(async move { visit.withdraw(own).await });
        }
    }
}

/// The first key that the operation at `place` of a transaction found.
pub(super) fn first_of(txn: &TxnResponse, place: usize) -> Option<&Event> {
    match txn.responses.get(place) {
        Some(ResponseOp::Range(range, _)) => range.kvs.first(),
        _ => None,
    }
}

/// `name/`: the prefix of the keys of a lock or an election.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a contender, as Go prints a lease in hex: with a sign.
pub(super) fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// The key was created at this revision; zero: it does not exist.
pub(super) fn created_at(key: &Bytes, revision: Revision) -> Compare {
    Compare {
        range: KeyRange::key(key.clone()),
        result: CompareResult::Equal,
        target: CompareTarget::Create(revision),
    }
}

/// The key with the smallest revision of creation under a prefix.
pub(super) fn oldest(prefix: &KeyRange) -> RangeRequest {
    let mut range = RangeRequest::of(prefix.clone());
    range.limit = 1;
    range.order = SortOrder::Ascend;
    range.target = SortTarget::Create;
    range
}

/// etcd refuses an empty key before it looks at anything.
pub(super) fn check_key(key: &[u8]) -> Result<(), Trouble> {
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
