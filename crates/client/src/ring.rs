//! The way to the ring that everything here takes.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use satrap_proto::etcdserverpb::{
    kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
};
use satrap_proto::v1::{store_client::StoreClient, store_watch_client::StoreWatchClient};
use satrap_runtime::clock;
use tonic::Status;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::error::Error;
use crate::leader::TowardLeader;
use crate::wire::{BoxError, Wire, WireError};

/// Longest wait for the answer to one question; a connection that went silent tells nothing.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Largest answer taken; a page of a list or of events is far smaller.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A ring, reached through one connection or whatever else carries requests. Clones share it.
#[derive(Clone, Debug)]
pub struct Ring(Wire);

macro_rules! clients {
    ($($name:ident: $client:ident),+) => {
        $(pub(crate) fn $name(&self) -> $client<Wire> {
            $client::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
        })+
    };
}

impl Ring {
    /// A ring behind a channel, or behind a channel with layers: credentials, balancing, tracing.
    pub fn over<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let plain = |response: Response<B>| response.map(Body::new);
        Self(BoxCloneSyncService::new(
            service.map_response(plain).map_err(|error: S::Error| WireError(error.into())),
        ))
    }

    /// A ring behind all of its members: requests go to the one that leads, as far as that is known,
    /// and elsewhere once it cannot be reached. Credentials belong into each of `members`.
    ///
    /// # Panics
    ///
    /// If there is no member: nothing could ever be asked.
    #[must_use]
    pub fn of(members: impl IntoIterator<Item = Self>) -> Self {
        let members: Vec<Wire> = members.into_iter().map(|member| member.0).collect();
        assert!(!members.is_empty(), "a ring has members");
        Self(BoxCloneSyncService::new(TowardLeader::new(members)))
    }

    clients!(kv: KvClient, lease: LeaseClient, watch: WatchClient);
    clients!(store: StoreClient, store_watch: StoreWatchClient);
}

/// Waits for an answer, but not for ever.
pub(crate) async fn answer<T>(
    asked: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(CALL_MAX, asked).await {
        Ok(answered) => Ok(answered?.into_inner()),
        Err(_elapsed) => Err(Status::deadline_exceeded("no answer in time").into()),
    }
}

/// Waits until the monotonic clock shows `instant`.
pub(crate) async fn sleep_until(instant: Duration) {
    tokio::time::sleep(instant.saturating_sub(clock::monotonic())).await;
}
