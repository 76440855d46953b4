//! Serves etcd's `Lock` service: contenders for a lock queue up by keys under its name, and the oldest key holds the lock.
//!
//! A lock is only advisory: a holder that was paused may act on its lock after its lease has ended. A resource that must
//! exclude that uses a fenced role of `satrap.v1`, and compares the tokens.

use std::sync::Arc;

use satrap_proto::v3lockpb::{self as pb, lock_server};
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::{
    DeleteRangeRequest, KeyRange, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::Status;

use super::deletions::Deletions;
use super::recipe::{self, RecipeCall, RecipeError};
use crate::api::Api;

const SESSION_EXPIRED: &str = "mutex: session is expired";

/// etcd's `Lock` service.
#[derive(Clone, Debug)]
pub struct LockService {
    api: Arc<Api>,
    deletions: Deletions,
}

impl LockService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>, deletions: Deletions) -> Self {
        Self { api, deletions }
    }

    async fn lock(
        &self,
        call: &RecipeCall,
        asked: pb::LockRequest,
    ) -> Result<pb::LockResponse, RecipeError> {
        let lease = call.session(asked.lease).await?;
        let prefix = recipe::prefix(&asked.name);
        let key = recipe::key_of(&prefix, lease);
        let queue = KeyRange::prefix(prefix);
        // A free lock costs one proposal: the transaction that adds the key also returns the oldest one.
        let get = RequestOp::Range(RangeRequest::of(KeyRange::key(key.clone())));
        let first = RequestOp::Range(recipe::oldest(&queue));
        let put = RequestOp::Put(PutRequest { lease, ..PutRequest::of(key.clone(), "") });
        let enter = TxnRequest {
            compare: vec![recipe::created_at(&key, 0)],
            success: vec![put, first.clone()],
            failure: vec![get, first],
        };
        let entered = call.enter(&self.deletions, key.clone(), enter).await?;
        let first = recipe::first_of(&entered.response, 1);
        if first.is_none_or(|first| first.create_revision == entered.own.created) {
            entered.withdrawal.disarm();
            return Ok(pb::LockResponse { header: Some(entered.header), key });
        }
        call.turn(&self.deletions, &queue, &entered.own, SESSION_EXPIRED).await?;
        entered.withdrawal.disarm();
        Ok(pb::LockResponse { header: Some(self.api.backend.header_now()), key })
    }

    async fn unlock(
        &self,
        call: &RecipeCall,
        asked: pb::UnlockRequest,
    ) -> Result<pb::UnlockResponse, RecipeError> {
        recipe::check_key(&asked.key)?;
        let delete = DeleteRangeRequest { range: KeyRange::key(asked.key), prev_kv: false };
        let request = Request::DeleteRange(delete);
        let header = Some(self.api.propose(call.caller()?, request).await?.header);
        Ok(pb::UnlockResponse { header })
    }
}

#[tonic::async_trait]
impl lock_server::Lock for LockService {
    async fn lock(
        &self,
        request: tonic::Request<pb::LockRequest>,
    ) -> Result<tonic::Response<pb::LockResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        Ok(self.lock(&call, request.into_inner()).await?.into())
    }

    async fn unlock(
        &self,
        request: tonic::Request<pb::UnlockRequest>,
    ) -> Result<tonic::Response<pb::UnlockResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        Ok(self.unlock(&call, request.into_inner()).await?.into())
    }
}
