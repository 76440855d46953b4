//! Serves etcd's `Lease` service: leases, which delete their keys unless a client renews them in time.
//!
//! Renewals have the highest priority of all requests and come in great numbers: a client sends those of all its leases
//! on one stream. So a stream proposes many renewals at once, and the ring puts those that arrive together into one entry
//! of its log. Answers keep the order of the requests.
//!
//! etcd's leader keeps the remaining time of a lease in memory, and a new leader starts every lease anew. Here the time
//! is part of the log. `LeaseTimeToLive` first logs the present time ([`Request::Tick`]), so that every member gives the
//! same answer, and a lease that had ended before the call is not reported as alive.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use satrap_proto::etcdserverpb::{self as pb, lease_server};
use satrap_ring_core::{Caller, Refusal, Request, Response};
use satrap_runtime::rng;
use tonic::{Status, Streaming};

use crate::api::{Answered, Api, mismatch};
use crate::calls::Failure;
use crate::limits::STREAM_RENEWALS_IN_FLIGHT_MAX;
use crate::peer::Credentials;

/// etcd's `Lease` service.
#[derive(Clone, Debug)]
pub struct LeaseService {
    api: Arc<Api>,
}

impl LeaseService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>) -> Self {
        Self { api }
    }
}

/// Renews a lease. The answer for a lease that has ended has a TTL of zero.
///
/// # Errors
///
/// If the caller lacks the permission, or the ring is unavailable.
pub async fn renew(
    api: &Api,
    caller: Caller,
    id: i64,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    // From before the proposal: the header of an answer without a lease must not show a revision that is newer than the
    // lease's end.
    let before = api.backend.header_now();
    let (header, ttl) = match api.propose(caller, Request::LeaseRenew { id }).await {
        Ok(Answered { response: Response::LeaseRenewed { ttl_s, .. }, header, .. }) => {
            (header, ttl_s)
        }
        Ok(other) => return Err(mismatch(&other.response)),
        Err(Failure::Refused(Refusal::LeaseNotFound)) => (before, 0),
        Err(failure) => return Err(failure.into()),
    };
    // The copy of a corrupt member says nothing about a lease: it may hold one that has ended.
    api.read(|_| Ok(()))?;
    Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
}

/// A random lease id; positive, as in etcd.
fn random_id() -> i64 {
    loop {
        let id = (rng::u64() >> 1).cast_signed();
        if id != 0 {
            return id;
        }
    }
}

/// Grants a lease to the caller; an id of zero is replaced by a random one.
pub(super) async fn grant(
    api: &Arc<Api>,
    caller: Caller,
    wanted: pb::LeaseGrantRequest,
) -> Result<pb::LeaseGrantResponse, Failure> {
    let is_random = wanted.id == 0;
    api.check_named(&caller)?;
    loop {
        let id = if is_random { random_id() } else { wanted.id };
        let request = Request::LeaseGrant { id, ttl_s: wanted.ttl };
        match api.propose(caller.clone(), request).await {
            Ok(Answered { response: Response::LeaseGranted { id, ttl_s, .. }, header, .. }) => {
                let error = String::new();
                return Ok(pb::LeaseGrantResponse { header: Some(header), id, ttl: ttl_s, error });
            }
            Ok(other) => unreachable!("BUG: a grant was answered with {other:?}"),
            // Another lease has the random id: try the next one.
            Err(Failure::Refused(Refusal::LeaseExists)) if is_random => {}
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
        let caller = self.api.caller(&request)?;
        Ok(grant(&self.api, caller, request.into_inner()).await?.into())
    }

    async fn lease_revoke(
        &self,
        request: tonic::Request<pb::LeaseRevokeRequest>,
    ) -> Result<tonic::Response<pb::LeaseRevokeResponse>, Status> {
        let caller = self.api.caller(&request)?;
        self.api.check_named(&caller)?;
        let request = Request::LeaseRevoke { id: request.into_inner().id };
        let header = Some(self.api.propose(caller, request).await?.header);
        Ok(pb::LeaseRevokeResponse { header }.into())
    }

    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_keep_alive(
        &self,
        request: tonic::Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<tonic::Response<KeepAlives>, Status> {
        self.api.admit(request.metadata().as_ref())?;
        let credentials = Credentials::of(&request);
        let api = self.api.clone();
        let answers = request.into_inner().map(move |request| {
            let (credentials, api) = (credentials.clone(), api.clone());
            async move {
                let request = request?;
                let caller = api.identify(&credentials)?;
                renew(&api, caller, request.id).await
            }
        });
        // tonic ends a stream after its first error.
        Ok(tonic::Response::new(Box::pin(answers.buffered(STREAM_RENEWALS_IN_FLIGHT_MAX))))
    }

    async fn lease_time_to_live(
        &self,
        request: tonic::Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<tonic::Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = self.api.caller(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys: want_keys } = request.into_inner();
        self.api.check_named(&caller)?;
        let header = Some(self.api.propose(caller.clone(), Request::Tick).await?.header);
        let left = self.api.read(|keyspace| match want_keys {
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
            Err(Failure::Refused(Refusal::LeaseNotFound)) => {
                let gone =
                    pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
                Ok(gone.into())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn lease_leases(
        &self,
        request: tonic::Request<pb::LeaseLeasesRequest>,
    ) -> Result<tonic::Response<pb::LeaseLeasesResponse>, Status> {
        let caller = self.api.caller(&request)?;
        self.api.check_named(&caller)?;
        self.api.linearizable().await?;
        let leases = self.api.read(|keyspace| keyspace.lease_list(&caller))?;
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        let header = Some(self.api.backend.header_now());
        Ok(pb::LeaseLeasesResponse { header, leases }.into())
    }
}
