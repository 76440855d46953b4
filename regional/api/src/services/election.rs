//! Elections: the contender at the head of the queue under a name leads, and its key holds what it
//! proclaims.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use satrap_proto::v3electionpb::{self as pb, election_server};
use satrap_regional_core::kv::request::{
    KeyRange, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use satrap_regional_core::kv::response::KeysOnly;
use tokio::sync::Semaphore;
use tonic::Status;

use super::departures::Departures;
use super::gate::Gate;
use super::observe::Observer;
use super::recipe::{self, Own, Trouble, Visit};
use crate::backend::Unavailable;
use crate::convert::kv;
use crate::limits::OBSERVERS_MAX;

const MISSING_LEADER_KEY: Trouble = Trouble::Said("\"leader\" field must be provided");
const NOT_LEADER: Trouble = Trouble::Said("election: not leader");
const NO_LEADER: Trouble = Trouble::Said("election: no leader");
/// etcd would answer that such a candidate leads.
const SESSION_EXPIRED: &str = "election: session is expired";

/// etcd's `Election` service.
#[derive(Clone, Debug)]
pub struct ElectionService {
    gate: Gate,
    departures: Departures,
    observers: Arc<Semaphore>,
}

impl ElectionService {
    /// For callers that pass this gate.
    #[must_use]
    pub fn new(gate: Gate, departures: Departures) -> Self {
        Self { gate, departures, observers: Arc::new(Semaphore::new(OBSERVERS_MAX)) }
    }

    async fn campaign(
        &self,
        visit: &Visit,
        asked: pb::CampaignRequest,
    ) -> Result<pb::CampaignResponse, Trouble> {
        let lease = visit.session(asked.lease).await?;
        let prefix = recipe::prefix(&asked.name);
        let key = recipe::key_of(&prefix, lease);
        let put = PutRequest { lease, ..PutRequest::of(key.clone(), asked.value.clone()) };
        let enter = TxnRequest {
            compare: vec![recipe::created_at(&key, 0)],
            success: vec![RequestOp::Put(put)],
            failure: vec![RequestOp::Range(RangeRequest::of(KeyRange::key(key.clone())))],
        };
        let entered = visit.enter(&self.departures, key.clone(), enter).await?;
        // A candidate that comes again may have something else to say.
        let present = recipe::first_of(&entered.response, 0);
        if present.is_some_and(|present| present.value() != asked.value) {
            proclaim(visit, &entered.own, lease, asked.value).await?;
        }
        let queue = KeyRange::prefix(prefix);
        visit.turn(&self.departures, &queue, &entered.own, SESSION_EXPIRED).await?;
        entered.withdrawal.disarm();
        let (header, rev) = (entered.header, entered.own.created);
        let leader = pb::LeaderKey { name: asked.name, key, rev, lease };
        Ok(pb::CampaignResponse { header: Some(header), leader: Some(leader) })
    }

    async fn leader(
        &self,
        visit: &Visit,
        asked: &pb::LeaderRequest,
    ) -> Result<pb::LeaderResponse, Trouble> {
        self.gate.backend().linearizable().await?;
        let (oldest, revision) = visit.oldest(&KeyRange::prefix(recipe::prefix(&asked.name)))?;
        let oldest = oldest.ok_or(NO_LEADER)?;
        let header = Some(self.gate.backend().header_at(revision));
        Ok(pb::LeaderResponse { header, kv: Some(kv::key_value(&oldest, KeysOnly::No)) })
    }

    async fn resign(
        &self,
        visit: &Visit,
        asked: pb::ResignRequest,
    ) -> Result<pb::ResignResponse, Trouble> {
        let leader = asked.leader.ok_or(MISSING_LEADER_KEY)?;
        recipe::check_key(&leader.key)?;
        // A client that does not lead any more has nothing to resign from, and that is no error.
        let own = Own { key: leader.key, created: leader.rev };
        let (_, header) = visit.txn(own.withdrawal()).await?;
        Ok(pb::ResignResponse { header: Some(header) })
    }
}

/// Writes what a candidate says, if its key is still the one it made.
async fn proclaim(
    visit: &Visit,
    own: &Own,
    lease: i64,
    value: bytes::Bytes,
) -> Result<satrap_proto::etcdserverpb::ResponseHeader, Trouble> {
    let put = RequestOp::Put(PutRequest { lease, ..PutRequest::of(own.key.clone(), value) });
    let txn =
        TxnRequest { compare: vec![own.unchanged()], success: vec![put], failure: Vec::new() };
    let (said, header) = visit.txn(txn).await?;
    if said.succeeded { Ok(header) } else { Err(NOT_LEADER) }
}

/// The leaders of one election, one after another.
type Leaders = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl election_server::Election for ElectionService {
    async fn campaign(
        &self,
        request: tonic::Request<pb::CampaignRequest>,
    ) -> Result<tonic::Response<pb::CampaignResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        Ok(self.campaign(&visit, request.into_inner()).await?.into())
    }

    async fn proclaim(
        &self,
        request: tonic::Request<pb::ProclaimRequest>,
    ) -> Result<tonic::Response<pb::ProclaimResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(MISSING_LEADER_KEY)?;
        recipe::check_key(&leader.key)?;
        let lease = visit.session(leader.lease).await?;
        let own = Own { key: leader.key, created: leader.rev };
        let header = Some(proclaim(&visit, &own, lease, value).await?);
        Ok(pb::ProclaimResponse { header }.into())
    }

    async fn leader(
        &self,
        request: tonic::Request<pb::LeaderRequest>,
    ) -> Result<tonic::Response<pb::LeaderResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        Ok(self.leader(&visit, request.get_ref()).await?.into())
    }

    type ObserveStream = Leaders;

    async fn observe(
        &self,
        request: tonic::Request<pb::LeaderRequest>,
    ) -> Result<tonic::Response<Leaders>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        let place = self.observers.clone().try_acquire_owned();
        let place = place.map_err(|_| Trouble::from(Unavailable::TooManyRequests))?;
        let queue = KeyRange::prefix(recipe::prefix(&request.get_ref().name));
        let observer = Observer::new(visit, queue);
        // As in etcd, trouble ends the stream without a word; clients then observe again.
        let leaders = stream::unfold((observer, place), |(mut observer, place)| async {
            let leader = observer.next().await.ok()?;
            Some((Ok(leader), (observer, place)))
        });
        Ok(tonic::Response::new(leaders.boxed()))
    }

    async fn resign(
        &self,
        request: tonic::Request<pb::ResignRequest>,
    ) -> Result<tonic::Response<pb::ResignResponse>, Status> {
        let visit = Visit::new(&self.gate, &request)?;
        Ok(self.resign(&visit, request.into_inner()).await?.into())
    }
}
