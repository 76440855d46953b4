//! A member that listens on this host, and ways to it that a test can obstruct.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use satrap_client::role::Candidate;
use satrap_client::{Ring, Terms};
use satrap_proto::etcdserverpb as pb;
use satrap_proto::etcdserverpb::lease_client::LeaseClient;
use satrap_ring_api::api::Api;
use satrap_ring_api::backend::Backend;
use satrap_ring_core::Request;
use satrap_ring_core::kv::request::{DeleteRangeRequest, KeyRange, PutRequest};
use tokio::sync::watch;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::served::Served;
use crate::solo;

pub struct Member {
    pub backend: Backend,
    served: Served,
}

/// Counts, holds back and fails the requests of a client.
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
        let served = Served::start(Api::new(backend.clone())).await;
        Self { backend, served }
    }

    pub async fn channel(&self) -> Channel {
        self.served.channel().await
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
        self.backend.inspect(|keyspace| keyspace.store().revision())
    }

    pub fn value(&self, key: &str) -> Option<Bytes> {
        self.backend.inspect(|keyspace| Some(keyspace.store().get(key.as_bytes())?.value_bytes()))
    }

    /// Waits until there are that many keys with a prefix.
    pub async fn until_keys(&self, prefix: &str, count: i64) {
        use satrap_ring_core::kv::request::RangeRequest;
        let range = RangeRequest::of(KeyRange::prefix(prefix.to_owned()));
        let mut applied = self.backend.applied();
        let held = || self.backend.inspect(|k| k.store().range(&range).unwrap().kvs.len());
        while held() as i64 != count {
            applied.changed().await.unwrap();
        }
    }

    pub async fn stop(self) {
        self.served.stop().await;
    }
}

pub fn candidate(name: &str, ttl_s: u32) -> Candidate {
    Candidate { role: "billing".to_owned(), name: name.to_owned(), terms: Terms::of(ttl_s) }
}
