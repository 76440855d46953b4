//! Locks: the contender at the head of the queue under a name holds it.
//!
//! A lock is a hint unless what it protects checks it too: a holder that was paused believes in its
//! lock after its lease has ended. Resources that must be safe take a fenced role of `satrap.v1`.

use satrap_proto::v3lockpb::{self as pb, lock_server};
use satrap_regional_core::Request;
use satrap_regional_core::kv::request::{
    DeleteRangeRequest, KeyRange, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::Status;

use super::departures::Departures;
use super::gate::Gate;
use super::recipe::{self, Trouble, Visit};

const SESSION_EXPIRED: &str = "mutex: session is expired";

/// etcd's `Lock` service.
#[derive(Clone, Debug)]
pub struct LockService {
    gate: Gate,
    departures: Departures,
}

impl LockService {
    /// For callers that pass this gate.
    #[must_use]
    pub fn new(gate: Gate, departures: Departures) -> Self {
        Self { gate, departures }
    }

    async fn lock(
        &self,
        visit: &Visit,
        asked: pb::LockRequest,
    ) -> Result<pb::LockResponse, Trouble> {
        let lease = visit.session(asked.lease).await?;
        let prefix = recipe::prefix(&asked.name);
        let key = recipe::key_of(&prefix, lease);
        let queue = KeyRange::prefix(prefix);
        // One round if the lock is free: the same transaction that queues shows who is first.
        let get = RequestOp::Range(RangeRequest::of(KeyRange::key(key.clone())));
        let first = RequestOp::Range(recipe::oldest(&queue));
        let put = RequestOp::Put(PutRequest { lease, ..PutRequest::of(key.clone(), "") });
        let enter = TxnRequest {
            compare: vec![recipe::created_at(&key, 0)],
            success: vec![put, first.clone()],
            failure: vec![get, first],
        };
        let entered = visit.enter(&self.departures, key.clone(), enter).await?;
        let first = recipe::first_of(&entered.response, 1);
        if first.is_none_or(|first| first.create_revision == entered.own.created) {
            entered.withdrawal.disarm();
            return Ok(pb::LockResponse { header: Some(entered.header), key });
        }
        visit.turn(&self.departures, &queue, &entered.own, SESSION_EXPIRED).await?;
        entered.withdrawal.disarm();
        Ok(pb::LockResponse { header: Some(self.gate.backend().header_now()), key })
    }

    async fn unlock(
        &self,
        visit: &Visit,
        asked: pb::UnlockRequest,
    ) -> Result<pb::UnlockResponse, Trouble> {
        recipe::check_key(&asked.key)?;
        let delete = DeleteRangeRequest { range: KeyRange::key(asked.key), prev_kv: false };
        let request = Request::DeleteRange(delete);
        let (_, header) = self.gate.try_propose(visit.caller()?, request).await?;
        Ok(pb::UnlockResponse { header: Some(header) })
    }
}

#[tonic::async_trait]
impl lock_server::Lock for LockService {
    async fn lock(
        &self,
        request: tonic::Request<pb::LockRequest>,
    ) -> Result<tonic::Response<pb::LockResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        Ok(self.lock(&visit, request.into_inner()).await?.into())
    }

    async fn unlock(
        &self,
        request: tonic::Request<pb::UnlockRequest>,
    ) -> Result<tonic::Response<pb::UnlockResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        Ok(self.unlock(&visit, request.into_inner()).await?.into())
    }
}
