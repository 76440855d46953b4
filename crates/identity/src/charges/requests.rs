//! Bounds the requests of a scope that have not been answered to their end, before anything of them
//! is read.
//!
//! A handler runs only when its request was read whole, so no check in it sees a request whose last
//! byte never comes. On all streams of all connections of a scope those are a gigabyte.

use std::{
    future::ready,
    pin::Pin,
    task::{Context, Poll},
};

use http_body_util::BodyExt as _;
use satrap_pressure::{Permits, Quota};
use satrap_proto::fault;
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::{PeerPermits, take_permit};
use crate::pki::{PeerIdentity, Role};

/// Streams that follow have permits of their own (CHARGE-6): what is sent to other services must not keep
/// edges from their configuration.
const FOLLOW: &str = "/satrap.v1.Sync/";

/// For `Server::layer`: requests in progress, from their headers to the end of the answer (CHARGE-3), also of
/// one that is a stream. An edge follows and calls nothing else.
#[derive(Clone)]
pub struct RequestPermits {
    permits: PeerPermits,
    quota: Quota,
}

impl RequestPermits {
    /// At most `quota` for each scope.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self { permits: Permits::default(), quota }
    }
}

/// A service whose requests each need a permit.
#[derive(Clone)]
pub struct Limited<S> {
    inner: S,
    requests: RequestPermits,
}

impl<S> Layer<S> for RequestPermits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, requests: self.clone() }
    }
}

impl<S, B> Service<http::Request<B>> for Limited<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let refuse = |status: Status| Box::pin(ready(Ok(status.into_http())));
        let Some(peer) = request.extensions().get::<PeerIdentity>() else {
            return refuse(fault::denied("no authenticated peer"));
        };
        if request.uri().path().starts_with(FOLLOW) {
            return Box::pin(self.inner.call(request));
        }
        if matches!(peer.id.role(), Role::Edge { .. }) {
            let why = format!("{} is an edge; edges follow and call nothing else", peer.id);
            return refuse(fault::denied(why));
        }
        let RequestPermits { permits, quota } = &self.requests;
        let permit = match take_permit(permits, peer, *quota, "requests in progress") {
            Ok(permit) => permit,
            Err(status) => return refuse(status),
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let hold = move |frame| {
                let _ = &permit;
                frame
            };
            answer.await.map(|answer| answer.map(|body| Body::new(body.map_frame(hold))))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Arc};

    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::sync::Semaphore;
    use tower::service_fn;

    use super::*;

    fn request(id: &str) -> http::Request<()> {
        let id = Arc::new(format!("spiffe://c/{id}").parse().unwrap());
        let peer = PeerIdentity { id, leaf_der: Arc::from([]), public_key: [0; 32] };
        let mut request = http::Request::new(());
        request.extensions_mut().insert(peer);
        request
    }

    #[tokio::test]
    async fn requests_in_progress_at_the_limit_and_over_it() {
        let answers = Arc::new(Semaphore::new(0));
        let waits = answers.clone();
        let inner = service_fn(move |_: http::Request<()>| {
            let waits = waits.clone();
            async move {
                waits.acquire().await.unwrap().forget();
                let answer = Body::new(Full::new(Bytes::from_static(b"answer")));
                Ok::<_, Infallible>(http::Response::new(answer))
            }
        });
        let quota = Quota { group_max: 3, holder_max: 2 };
        let mut service = RequestPermits::new(quota).layer(inner);
        let mut clone = service.clone();
        let mut refused = async |request| {
            let answer: Result<http::Response<Body>, Infallible> = clone.call(request).await;
            answer.unwrap().headers().contains_key(Status::GRPC_STATUS)
        };
        assert!(refused(http::Request::new(())).await, "no name");
        assert!(refused(request("region/eu/edge/e")).await, "edges do not call");
        // The inner service answers one request for each permit, and none before.
        answers.add_permits(1);
        assert!(!refused(request("operator/alice")).await);
        // An answer that is not read to its end keeps its permit.
        answers.add_permits(2);
        let unread = [service.call(request("operator/bob")), service.call(request("operator/bob"))];
        let unread = futures::future::join_all(unread).await;
        assert!(refused(request("operator/bob")).await, "two answers are under way");
        drop(unread);
        answers.add_permits(1);
        assert!(!refused(request("operator/bob")).await);
        let mut held = Vec::new();
        for id in ["region/eu/member/a", "region/eu/member/a", "region/eu/member/b"] {
            held.push(service.call(request(id)));
        }
        assert!(refused(request("region/eu/member/a")).await, "over the limit of a name");
        assert!(refused(request("region/eu/member/minted")).await, "over the limit of a scope");
        // Edges that ask to follow have permits of their own.
        let mut follow = request("region/eu/edge/e");
        *follow.uri_mut() = "/satrap.v1.Sync/Follow".parse().unwrap();
        answers.add_permits(1);
        assert!(!refused(follow).await);
        answers.add_permits(1);
        assert!(!refused(request("region/us/member/a")).await);
        held.clear();
        answers.add_permits(1);
        assert!(!refused(request("region/eu/member/minted")).await);
    }
}
