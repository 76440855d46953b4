//! One client's connection to one member at a time.
//!
//! A session asks once: no request is ever sent again by itself, and after an unknown outcome the
//! connection is given up, so that an operation of the recording is one call on the wire.

use std::time::Duration;

use satrap_history::{Answer, Body, Outcome, Request};
use satrap_operator::client::etcd::EtcdClient;
use satrap_proto::{
    etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
        ResponseHeader, kv_client::KvClient, lease_client::LeaseClient,
    },
    v1::store_client::StoreClient,
};
use satrap_realm::description::Client as Credentials;
use tokio::time::timeout;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{RunError, wire};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_millis(400);
/// How long an answer may take; longer than an election would hide the elections.
const ANSWER: Duration = Duration::from_millis(600);

/// How clients connect.
#[derive(Clone, Default)]
pub struct Dialer(Option<EtcdClient>);

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Dialer(TLS)" } else { "Dialer" })
    }
}

impl Dialer {
    /// With TLS if there are credentials.
    ///
    /// # Errors
    ///
    /// If a file is missing or wrong.
    pub fn new(credentials: Option<&Credentials>) -> Result<Self, RunError> {
        let client = credentials.map(|files| EtcdClient::open(files, Vec::new()));
        let client =
            client.transpose().map_err(|error| RunError::Inconclusive(error.to_string()))?;
        Ok(Self(client))
    }

    /// Connects to a member; `None` if it does not answer in time.
    pub async fn connect(&self, url: &str) -> Option<Channel> {
        if let Some(client) = &self.0 {
            return timeout(CONNECT, client.connect(url)).await.ok()?.ok();
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).ok()?.connect_timeout(CONNECT);
        timeout(CONNECT, endpoint.connect()).await.ok()?.ok()
    }
}

/// Sends a request, and says what came of it.
pub async fn call(channel: Channel, request: &Request) -> Outcome {
    match timeout(ANSWER, ask(channel, request)).await {
        Ok(Ok((header, body))) => {
            let header = header.unwrap_or_default();
            Outcome::Ok(Answer {
                revision: header.revision,
                member: header.member_id,
                term: header.raft_term,
                body,
            })
        }
        Ok(Err(status)) => wire::refusal(&status),
        Err(_) => Outcome::Unknown,
    }
}

async fn ask(
    channel: Channel,
    request: &Request,
) -> Result<(Option<ResponseHeader>, Body), Status> {
    let mut kv = KvClient::new(channel.clone());
    let mut store = StoreClient::new(channel.clone());
    let mut lease = LeaseClient::new(channel);
    Ok(match request {
        Request::Range(range) => {
            let answer = kv.range(wire::range(range)).await?.into_inner();
            let body = wire::range_body(&answer);
            (answer.header, body)
        }
        Request::Put(put) => {
            let answer = kv.put(wire::put(put)).await?.into_inner();
            let body = wire::put_body(&answer);
            (answer.header, body)
        }
        Request::PutIf(put) => {
            let answer = store.put_if_revision(wire::put_if(put)).await?.into_inner();
            let body = wire::put_if_body(&answer);
            (answer.header.map(wire::header), body)
        }
        Request::PutSequential(put) => {
            let answer = store.put_sequential(wire::put_sequential(put)).await?.into_inner();
            let key = String::from_utf8_lossy(&answer.key).into_owned();
            (answer.header.map(wire::header), Body::PutSequential(key))
        }
        Request::Delete(keys) => {
            let answer = kv.delete_range(wire::delete(keys)).await?.into_inner();
            let body = wire::delete_body(&answer);
            (answer.header, body)
        }
        Request::Txn(txn) => {
            let answer = kv.txn(wire::txn(txn)).await?.into_inner();
            let body = wire::txn_body(&answer);
            (answer.header, body)
        }
        Request::Compact(revision) => {
            (kv.compact(wire::compact(*revision)).await?.into_inner().header, Body::Done)
        }
        Request::Grant { lease: id, ttl_s } => {
            let request = LeaseGrantRequest { ttl: *ttl_s, id: *id };
            let answer = lease.lease_grant(request).await?.into_inner();
            (answer.header, Body::Ttl(answer.ttl))
        }
        Request::Revoke(id) => {
            let request = LeaseRevokeRequest { id: *id };
            (lease.lease_revoke(request).await?.into_inner().header, Body::Done)
        }
        Request::Inspect(id) => {
            let request = LeaseTimeToLiveRequest { id: *id, keys: false };
            let answer = lease.lease_time_to_live(request).await?.into_inner();
            (answer.header, Body::Ttl(answer.ttl))
        }
        Request::Renew(id) => {
            let asked = tokio_stream::once(LeaseKeepAliveRequest { id: *id });
            let mut answers = lease.lease_keep_alive(asked).await?.into_inner();
            let answer = answers.message().await?;
            let answer = answer.ok_or_else(|| Status::unavailable("the stream ended"))?;
            (answer.header, Body::Ttl(answer.ttl))
        }
    })
}
