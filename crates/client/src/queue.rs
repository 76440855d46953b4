//! A queue of keys under one prefix, oldest first, in which every contender watches only the key
//! before its own: a leader's death wakes one contender, not all (001-44).
//!
//! The layout is that of etcd's Go client: a contender's key is `name/` and its lease in hex. So
//! its locks and elections, and those of the ring's own lock service, queue with these.
//!
//! # Invariants
//!
//! - **QUEUE-1** A contender is first only if its own key was still there after all older keys were
//!   gone. Its lease can end during the wait, so it reads its key again.

use bytes::Bytes;
use satrap_pressure::FullJitter;
use satrap_proto::etcdserverpb::{
    self as pb, compare, range_request, request_op, response_op, watch_create_request,
    watch_request,
};
use satrap_proto::mvccpb;
use satrap_runtime::rng;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::Status;

use crate::error::Error;
use crate::ring::{Ring, answer};
use crate::tenure::Lost;

const RETRY_BASE: Duration = Duration::from_millis(200);

/// Our key in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    prefix: Bytes,
    pub key: Bytes,
    pub created: i64,
}

/// The cost of a wait in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Predecessors that were watched, one after the other.
    pub predecessors: u32,
    /// Events that the ring sent us.
    pub notifications: u32,
}

impl Place {
    /// Goes to the end of a queue.
    pub async fn enter(ring: &Ring, name: &str, lease: i64, value: Bytes) -> Result<Self, Error> {
        let prefix = prefix_of(name);
        let key = Bytes::from([&prefix[..], format!("{lease:x}").as_bytes()].concat());
        let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let get = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(request_op::Request::RequestPut(put))],
            failure: vec![op(request_op::Request::RequestRange(get))],
        };
        let entered = answer(ring.kv().txn(txn)).await?;
        let created = if entered.succeeded {
            entered.header.ok_or(Error::Nonsense("a write without a header"))?.revision
        } else {
            first_kv(&entered, 0).ok_or(Error::Nonsense("a key that is there was not found"))?
        };
        Ok(Self { prefix, key, created })
    }

    /// Whether no contender is before us now.
    pub async fn is_first(&self, ring: &Ring) -> Result<bool, Error> {
        Ok(self.predecessor(ring).await?.0.is_none())
    }

    /// Waits until no contender is before us (QUEUE-1).
    pub async fn turn(&self, ring: &Ring) -> Result<Waited, Error> {
        let mut waited = Waited::default();
        let mut backoff = FullJitter::new(RETRY_BASE, Duration::ZERO);
        loop {
            match self.advance(ring, &mut waited).await {
                Ok(true) => break,
                Ok(false) => backoff.connection_ended(Duration::ZERO),
                // Nothing was changed, so nothing is lost by asking again; the lease bounds it.
                Err(error) if error.is_transient() => {
                    tokio::time::sleep(backoff.next_delay(rng::u64())).await;
                }
                Err(error) => return Err(error),
            }
        }
        if !self.is_held(ring).await? {
            return Err(Lost::Taken.into());
        }
        Ok(waited)
    }

    /// Whether our key is still the one we made.
    pub async fn is_held(&self, ring: &Ring) -> Result<bool, Error> {
        let get = pb::RangeRequest { key: self.key.clone(), ..Default::default() };
        let found = answer(ring.kv().range(get)).await?;
        Ok(found.kvs.first().is_some_and(|kv| kv.create_revision == self.created))
    }

    /// Gives our key another value and lease, but not another place.
    pub async fn put(&self, ring: &Ring, value: Bytes, lease: i64) -> Result<(), Error> {
        let put = pb::PutRequest { key: self.key.clone(), value, lease, ..Default::default() };
        match self.if_held(ring, request_op::Request::RequestPut(put)).await? {
            true => Ok(()),
            false => Err(Lost::Taken.into()),
        }
    }

    /// Takes our key away.
    pub async fn leave(&self, ring: &Ring) -> Result<(), Error> {
        let delete = pb::DeleteRangeRequest { key: self.key.clone(), ..Default::default() };
        self.if_held(ring, request_op::Request::RequestDeleteRange(delete)).await?;
        Ok(())
    }

    async fn if_held(&self, ring: &Ring, then: request_op::Request) -> Result<bool, Error> {
        let compare = vec![created_at(&self.key, self.created)];
        let txn = pb::TxnRequest { compare, success: vec![op(then)], failure: Vec::new() };
        Ok(answer(ring.kv().txn(txn)).await?.succeeded)
    }

    /// Waits for the present predecessor to go; true if there is none.
    async fn advance(&self, ring: &Ring, waited: &mut Waited) -> Result<bool, Error> {
        let (Some(predecessor), revision) = self.predecessor(ring).await? else { return Ok(true) };
        waited.predecessors += 1;
        waited.notifications += gone(ring, predecessor.key, revision + 1).await?;
        Ok(false)
    }

    async fn predecessor(&self, ring: &Ring) -> Result<(Option<mvccpb::KeyValue>, i64), Error> {
        let before = pb::RangeRequest {
            max_create_revision: self.created - 1,
            sort_order: range_request::SortOrder::Descend.into(),
            ..first_by_age(&self.prefix)
        };
        let found = answer(ring.kv().range(before)).await?;
        let header = found.header.ok_or(Error::Nonsense("a read without a header"))?;
        Ok((found.kvs.into_iter().next(), header.revision))
    }
}

/// The oldest key of a queue.
pub(crate) async fn first(ring: &Ring, name: &str) -> Result<Option<mvccpb::KeyValue>, Error> {
    let found = answer(ring.kv().range(first_by_age(&prefix_of(name)))).await?;
    Ok(found.kvs.into_iter().next())
}

fn first_by_age(prefix: &Bytes) -> pb::RangeRequest {
    // The prefix ends in a slash, so the key after all of it ends in the next character.
    let end = [&prefix[..prefix.len() - 1], b"0"].concat();
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: end.into(),
        limit: 1,
        sort_order: range_request::SortOrder::Ascend.into(),
        sort_target: range_request::SortTarget::Create.into(),
        ..Default::default()
    }
}

/// Waits until a key is deleted; returns how many events that took. Also returns, with none, when
/// the history from `start_revision` on is compacted: the caller must read the queue again.
async fn gone(ring: &Ring, key: Bytes, start_revision: i64) -> Result<u32, Error> {
    let create = pb::WatchCreateRequest {
        key,
        start_revision,
        filters: vec![watch_create_request::FilterType::Noput.into()],
        ..Default::default()
    };
    let request_union = Some(watch_request::RequestUnion::CreateRequest(create));
    // A watch ends when its client stops asking, so the stream of requests must go on.
    let asked = tokio_stream::once(pb::WatchRequest { request_union })
        .chain(tokio_stream::pending::<pb::WatchRequest>());
    let mut answers = answer(ring.watch().watch(asked)).await?;
    while let Some(response) = answers.message().await? {
        if response.canceled && response.compact_revision == 0 {
            return Err(Status::failed_precondition(response.cancel_reason).into());
        }
        if response.canceled || !response.events.is_empty() {
            return Ok(u32::try_from(response.events.len()).unwrap_or(u32::MAX));
        }
    }
    Err(Status::unavailable("the watch ended").into())
}

fn prefix_of(name: &str) -> Bytes {
    format!("{name}/").into()
}

fn op(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(compare::TargetUnion::CreateRevision(revision)),
    }
}

fn first_kv(txn: &pb::TxnResponse, place: usize) -> Option<i64> {
    match txn.responses.get(place)?.response.as_ref()? {
        response_op::Response::ResponseRange(range) => Some(range.kvs.first()?.create_revision),
        _ => None,
    }
}
