//! A member that listens on this host, and ways to it that a test can obstruct.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use satrap_client::role::Candidate;
use satrap_client::{Ring, Terms};
use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::lease_client::LeaseClient;
use satrap_regional_api::api::Api;
use satrap_regional_api::backend::Backend;
use satrap_regional_api::front::{Front, Security};
use satrap_regional_api::services;
use satrap_regional_core::Request;
use satrap_regional_core::kv::request::{DeleteRangeRequest, KeyRange, PutRequest};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::solo;

pub struct Member {
    pub backend: Backend,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinSet<()>,
}

/// What a test sees of, and does to, the requests of a client.
#[derive(Clone, Default)]
pub struct Tap {
    /// Renewals are not answered any more.
    pub stalls: Arc<AtomicBool>,
    /// Watches that were opened.
    pub watches: watch::Sender<u32>,
}

impl Tap {
    pub fn stall(&self) {
        self.stalls.store(true, Ordering::SeqCst);
    }

    pub async fn watches(&self, count: u32) {
        self.watches.subscribe().wait_for(|opened| *opened >= count).await.unwrap();
    }
}

impl Member {
    pub async fn start() -> Self {
        Self::serve(solo::start().0).await
    }

    pub async fn serve(backend: Backend) -> Self {
        let api = Api::new(backend.clone());
        let routes = services::routes(&backend, services::Settings::default());
        let front = Front::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).await.unwrap();
        let address = front.local_address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut serving = JoinSet::new();
        let front = front.serve(Arc::new(api), routes, async { _ = stopped.await });
        serving.spawn(async { front.await.unwrap() });
        Self { backend, address, stop, serving }
    }

    pub async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.address);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    pub async fn ring(&self) -> Ring {
        Ring::over(self.channel().await)
    }

    pub async fn tapped(&self, tap: &Tap) -> Ring {
        let (channel, tap) = (self.channel().await, tap.clone());
        Ring::over(tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let (channel, tap) = (channel.clone(), tap.clone());
            async move {
                let path = request.uri().path().to_owned();
                let is_renewal = path.ends_with("/RenewRole") || path.ends_with("/LeaseKeepAlive");
                if is_renewal && tap.stalls.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                let answer = channel.oneshot(request).await?;
                if path.ends_with("/Watch") {
                    tap.watches.send_modify(|opened| *opened += 1);
                }
                Ok::<_, tonic::transport::Error>(answer)
            }
        }))
    }

    pub async fn revoke(&self, id: i64) {
        let request = pb::LeaseRevokeRequest { id };
        LeaseClient::new(self.channel().await).lease_revoke(request).await.unwrap();
    }

    pub async fn apply(&self, request: Request) {
        let applied = self.backend.propose(Default::default(), request).await.unwrap();
        applied.reply.unwrap();
    }

    pub async fn put(&self, key: &str, value: &str) {
        self.apply(Request::Put(PutRequest::of(key.to_owned(), value.to_owned()))).await;
    }

    pub async fn delete(&self, key: &str) {
        let range = KeyRange { start: key.to_owned().into(), end: Bytes::new() };
        self.apply(Request::DeleteRange(DeleteRangeRequest { range, prev_kv: false })).await;
    }

    pub async fn compact(&self) {
        self.apply(Request::Compact { revision: self.revision() }).await;
    }

    pub fn revision(&self) -> i64 {
        self.backend.read(|keyspace| keyspace.store().revision())
    }

    pub fn value(&self, key: &str) -> Option<Bytes> {
        self.backend.read(|keyspace| Some(keyspace.store().get(key.as_bytes())?.value_bytes()))
    }

    /// Waits until there are that many keys with a prefix.
    pub async fn until_keys(&self, prefix: &str, count: i64) {
        use satrap_regional_core::kv::request::RangeRequest;
        let range = RangeRequest::of(KeyRange::prefix(prefix.to_owned()));
        let mut applied = self.backend.applied();
        let held = || self.backend.read(|k| k.store().range(&range).unwrap().kvs.len());
        while held() as i64 != count {
            applied.changed().await.unwrap();
        }
    }

    /// Stops and waits until every stream has ended.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        self.serving.join_next().await.unwrap().unwrap();
    }
}

pub fn candidate(name: &str, ttl_s: u32) -> Candidate {
    Candidate { role: "billing".to_owned(), name: name.to_owned(), terms: Terms::of(ttl_s) }
}
