//! A client listener on this host, and connections to it.

use std::net::SocketAddr;
use std::sync::Arc;

use satrap_ring_api::api::Api;
use satrap_ring_api::front::{ClientListener, Security};
use satrap_ring_api::services;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Channel;

/// A listener that serves in a task until it is stopped or dropped.
pub struct Served {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinSet<()>,
}

impl Served {
    /// Serves all services of `api`, in plaintext.
    pub async fn start(api: Api) -> Self {
        let api = Arc::new(api);
        let routes = services::routes(&api, services::Settings::default());
        Self::with(api, routes, Security::Plaintext).await
    }

    pub async fn with(api: Arc<Api>, routes: Routes, security: Security) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = ClientListener::bind(any, security).await.unwrap();
        let address = listener.local_address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = listener.serve(api, routes, async { drop(stopped.await) });
        let mut serving = JoinSet::new();
        serving.spawn(async { served.await.unwrap() });
        Self { address, stop, serving }
    }

    pub async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.address);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// Stops and waits until every stream has ended.
    pub async fn stop(mut self) {
        // An error means that the listener ended before; joining its task then tells why.
        let _ = self.stop.send(());
        self.serving.join_next().await.unwrap().unwrap();
    }
}
