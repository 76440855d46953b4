//! etcd's `Election` service: the contender with the oldest key under a name is the leader, and the value of that key
//! is what it proclaims.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use satrap_proto::v3electionpb::{self as pb, election_server};
use satrap_ring_core::kv::request::KeysOnly;
use satrap_ring_core::kv::request::{KeyRange, PutRequest, RangeRequest, RequestOp, TxnRequest};
use tokio::sync::Semaphore;
use tonic::Status;

use super::deletions::Deletions;
use super::observe::Observer;
use super::recipe::{self, Own, RecipeCall, RecipeError};
use crate::api::Api;
use crate::calls::Unavailable;
use crate::convert::kv;
use crate::limits::OBSERVERS_MAX;

const MISSING_LEADER_KEY: RecipeError = RecipeError::Text("\"leader\" field must be provided");
const NOT_LEADER: RecipeError = RecipeError::Text("election: not leader");
const NO_LEADER: RecipeError = RecipeError::Text("election: no leader");
/// etcd reports such a candidate as the leader.
const SESSION_EXPIRED: &str = "election: session is expired";

/// etcd's `Election` service.
#[derive(Clone, Debug)]
pub struct ElectionService {
    api: Arc<Api>,
    deletions: Deletions,
    observers: Arc<Semaphore>,
}

impl ElectionService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>, deletions: Deletions) -> Self {
        Self { api, deletions, observers: Arc::new(Semaphore::new(OBSERVERS_MAX)) }
    }

    async fn campaign(
        &self,
        call: &RecipeCall,
        asked: pb::CampaignRequest,
    ) -> Result<pb::CampaignResponse, RecipeError> {
        let lease = call.session(asked.lease).await?;
        let prefix = recipe::prefix(&asked.name);
        let key = recipe::key_of(&prefix, lease);
        let put = PutRequest { lease, ..PutRequest::of(key.clone(), asked.value.clone()) };
        let enter = TxnRequest {
            compare: vec![recipe::created_at(&key, 0)],
            success: vec![RequestOp::Put(put)],
            failure: vec![RequestOp::Range(RangeRequest::of(KeyRange::key(key.clone())))],
        };
        let entered = call.enter(&self.deletions, key.clone(), enter).await?;
        // A candidate that campaigns again may proclaim another value.
        let present = recipe::first_of(&entered.response, 0);
        if present.is_some_and(|present| present.value() != asked.value) {
            proclaim(call, &entered.own, lease, asked.value).await?;
        }
        let queue = KeyRange::prefix(prefix);
        call.turn(&self.deletions, &queue, &entered.own, SESSION_EXPIRED).await?;
        entered.withdrawal.disarm();
        let (header, rev) = (entered.header, entered.own.created);
        let leader = pb::LeaderKey { name: asked.name, key, rev, lease };
        Ok(pb::CampaignResponse { header: Some(header), leader: Some(leader) })
    }

    async fn leader(
        &self,
        call: &RecipeCall,
        asked: &pb::LeaderRequest,
    ) -> Result<pb::LeaderResponse, RecipeError> {
        self.api.backend.linearizable().await?;
        let (oldest, revision) = call.oldest(&KeyRange::prefix(recipe::prefix(&asked.name)))?;
        let oldest = oldest.ok_or(NO_LEADER)?;
        let header = Some(self.api.backend.header_at(revision));
        Ok(pb::LeaderResponse { header, kv: Some(kv::key_value(&oldest, KeysOnly::No)) })
    }

    async fn resign(
        &self,
        call: &RecipeCall,
        asked: pb::ResignRequest,
    ) -> Result<pb::ResignResponse, RecipeError> {
        let leader = asked.leader.ok_or(MISSING_LEADER_KEY)?;
        recipe::check_key(&leader.key)?;
        // For a client that is no longer the leader this does nothing, and it is no error.
        let own = Own { key: leader.key, created: leader.rev };
        let (_, header) = call.txn(own.withdrawal()).await?;
        Ok(pb::ResignResponse { header: Some(header) })
    }
}

/// Writes the value of a candidate, if its key is still the one that it created.
async fn proclaim(
    call: &RecipeCall,
    own: &Own,
    lease: i64,
    value: bytes::Bytes,
) -> Result<satrap_proto::etcdserverpb::ResponseHeader, RecipeError> {
    let put = RequestOp::Put(PutRequest { lease, ..PutRequest::of(own.key.clone(), value) });
    let txn =
        TxnRequest { compare: vec![own.unchanged()], success: vec![put], failure: Vec::new() };
    let (response, header) = call.txn(txn).await?;
    if response.succeeded { Ok(header) } else { Err(NOT_LEADER) }
}

/// The leaders of one election and the values that they proclaim, in order.
type Leaders = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl election_server::Election for ElectionService {
    async fn campaign(
        &self,
        request: tonic::Request<pb::CampaignRequest>,
    ) -> Result<tonic::Response<pb::CampaignResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        Ok(self.campaign(&call, request.into_inner()).await?.into())
    }

    async fn proclaim(
        &self,
        request: tonic::Request<pb::ProclaimRequest>,
    ) -> Result<tonic::Response<pb::ProclaimResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(MISSING_LEADER_KEY)?;
        recipe::check_key(&leader.key)?;
        let lease = call.session(leader.lease).await?;
        let own = Own { key: leader.key, created: leader.rev };
        let header = Some(proclaim(&call, &own, lease, value).await?);
        Ok(pb::ProclaimResponse { header }.into())
    }

    async fn leader(
        &self,
        request: tonic::Request<pb::LeaderRequest>,
    ) -> Result<tonic::Response<pb::LeaderResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        Ok(self.leader(&call, request.get_ref()).await?.into())
    }

    type ObserveStream = Leaders;

    async fn observe(
        &self,
        request: tonic::Request<pb::LeaderRequest>,
    ) -> Result<tonic::Response<Leaders>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        let slot = self.observers.clone().try_acquire_owned();
        let slot = slot.map_err(|_| RecipeError::from(Unavailable::TooManyRequests))?;
        let queue = KeyRange::prefix(recipe::prefix(&request.get_ref().name));
        let observer = Observer::new(call, queue);
        // As in etcd, an error ends the stream without a status; clients then observe again.
        let leaders = stream::unfold((observer, slot), |(mut observer, slot)| async {
            let leader = observer.next().await.ok()?;
            Some((Ok(leader), (observer, slot)))
        });
        Ok(tonic::Response::new(leaders.boxed()))
    }

    async fn resign(
        &self,
        request: tonic::Request<pb::ResignRequest>,
    ) -> Result<tonic::Response<pb::ResignResponse>, Status> {
        let call = RecipeCall::new(&self.api, &request)?;
        Ok(self.resign(&call, request.into_inner()).await?.into())
    }
}
