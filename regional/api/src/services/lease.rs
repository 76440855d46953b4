//! Leases: time that clients buy for their keys.
//!
//! Renewals outrank everything else a client may ask and come in great numbers: a client sends those
//! of all its leases down one stream. So a stream hands many to the ring at once, and the ring puts
//! whatever came together into one entry of its log. Answers keep the order of the requests.
//!
//! Unlike etcd's leader, which forgets the time of a lease when it is deposed, the ring replicates
//! time. Whoever asks what is left of a lease lets time pass first ([`Request::Tick`]): the answer is
//! then exact on every member, and a lease that is found alive has not ended before the question.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use satrap_host::rng;
use satrap_proto::etcdserverpb::{self as pb, lease_server};
use satrap_regional_core::{Caller, Refusal, Request, Response};
use tonic::{Status, Streaming};

use super::gate::{Gate, mismatch};
use crate::backend::{Backend, Failure};
use crate::limits::STREAM_RENEWALS_IN_FLIGHT_MAX;
use crate::peer::Credentials;
use crate::status::{refused, unavailable};

/// etcd's `Lease` service.
#[derive(Clone, Debug)]
pub struct LeaseService {
    gate: Gate,
}

impl LeaseService {
    /// For callers that pass this gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

/// Renews one lease. One that has ended is no error: its answer has a TTL of zero.
///
/// # Errors
///
/// What the caller lacks, or why the ring could not.
pub async fn renew(
    backend: &Backend,
    caller: Caller,
    id: i64,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    // Taken before the lease is looked at: a client that sees its lease end at some revision must
    // not have been told of that revision while the lease lived.
    let before = backend.header_now();
    let applied = backend.propose(caller, Request::LeaseRenew { id }).await.map_err(unavailable)?;
    let (header, ttl) = match applied.reply {
        Ok(Response::LeaseRenewed { ttl_s, revision }) => {
            (backend.header(revision, applied.term), ttl_s)
        }
        Ok(other) => return Err(mismatch(&other)),
        Err(Refusal::LeaseNotFound) => (before, 0),
        Err(refusal) => return Err(refused(&refusal)),
    };
    Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
}

/// A lease that nobody has, most likely; etcd too uses positive numbers only.
fn fresh_id() -> i64 {
    loop {
        let id = (rng::u64() >> 1).cast_signed();
        if id != 0 {
            return id;
        }
    }
}

/// Creates a lease for this caller; an id of zero is replaced.
pub(super) async fn grant(
    gate: &Gate,
    caller: Caller,
    wanted: pb::LeaseGrantRequest,
) -> Result<pb::LeaseGrantResponse, Failure> {
    let chosen = wanted.id == 0;
    gate.backend().read(|keyspace| keyspace.auth().check_somebody(&caller))?;
    loop {
        let id = if chosen { fresh_id() } else { wanted.id };
        let request = Request::LeaseGrant { id, ttl_s: wanted.ttl };
        match gate.try_propose(caller.clone(), request).await {
            Ok((Response::LeaseGranted { id, ttl_s, .. }, header)) => {
                let error = String::new();
                return Ok(pb::LeaseGrantResponse { header: Some(header), id, ttl: ttl_s, error });
            }
            Ok((other, _)) => unreachable!("BUG: a grant was answered with {other:?}"),
            // Our number happened to be in use; the client did not ask for it.
            Err(Failure::Refused(Refusal::LeaseExists)) if chosen => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// Answers to renewals, in order.
type KeepAlives = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl lease_server::Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: tonic::Request<pb::LeaseGrantRequest>,
    ) -> Result<tonic::Response<pb::LeaseGrantResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        Ok(grant(&self.gate, caller, request.into_inner()).await?.into())
    }

    async fn lease_revoke(
        &self,
        request: tonic::Request<pb::LeaseRevokeRequest>,
    ) -> Result<tonic::Response<pb::LeaseRevokeResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        self.gate.somebody(&caller)?;
        let request = Request::LeaseRevoke { id: request.into_inner().id };
        let (_, header) = self.gate.propose(caller, request).await?;
        Ok(pb::LeaseRevokeResponse { header: Some(header) }.into())
    }

    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_keep_alive(
        &self,
        request: tonic::Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<tonic::Response<KeepAlives>, Status> {
        self.gate.pass(&request)?;
        let credentials = Credentials::of(&request);
        let backend = self.gate.backend().clone();
        let answers = request.into_inner().map(move |request| {
            let (credentials, backend) = (credentials.clone(), backend.clone());
            async move {
                let request = request?;
                let caller = credentials.caller(&backend)?;
                renew(&backend, caller, request.id).await
            }
        });
        // The first error is the last answer: tonic ends a stream with it.
        Ok(tonic::Response::new(Box::pin(answers.buffered(STREAM_RENEWALS_IN_FLIGHT_MAX))))
    }

    async fn lease_time_to_live(
        &self,
        request: tonic::Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<tonic::Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys: want_keys } = request.into_inner();
        self.gate.somebody(&caller)?;
        let (_, header) = self.gate.propose(caller.clone(), Request::Tick).await?;
        let header = Some(header);
        let left = self.gate.backend().read(|keyspace| match want_keys {
            true => keyspace.time_to_live_with_keys(&caller, id, keyspace.now()),
            false => keyspace.time_to_live(&caller, id, keyspace.now()),
        });
        match left {
            Ok(left) => Ok(pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: left.remaining_s,
                granted_ttl: left.granted_s,
                keys: left.keys,
            }
            .into()),
            Err(Refusal::LeaseNotFound) => {
                let gone =
                    pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
                Ok(gone.into())
            }
            Err(refusal) => Err(refused(&refusal)),
        }
    }

    async fn lease_leases(
        &self,
        request: tonic::Request<pb::LeaseLeasesRequest>,
    ) -> Result<tonic::Response<pb::LeaseLeasesResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        self.gate.somebody(&caller)?;
        self.gate.fresh().await?;
        let leases = self.gate.check(|keyspace| keyspace.lease_list(&caller))?;
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        let header = Some(self.gate.backend().header_now());
        Ok(pb::LeaseLeasesResponse { header, leases }.into())
    }
}
