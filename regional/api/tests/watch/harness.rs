//! One member that listens on this host.

use std::net::SocketAddr;
use std::sync::Arc;

use satrap_regional_api::api::Api;
use satrap_regional_api::backend::Backend;
use satrap_regional_api::front::{Front, Security};
use satrap_regional_api::services;
use satrap_regional_api::watch;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::common::solo;

pub struct Member {
    pub backend: Backend,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinSet<()>,
}

impl Member {
    pub async fn start() -> Self {
        Self::with(watch::Settings::default()).await
    }

    pub async fn with(settings: watch::Settings) -> Self {
        let (backend, _thread) = solo::start();
        let mut api = Api::new(backend.clone());
        api.watching = settings;
        let routes = services::routes(&backend, services::Settings::default());
        let front = Front::bind("127.0.0.1:0".parse().unwrap(), Security::Plaintext).await.unwrap();
        let address = front.local_address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut serving = JoinSet::new();
        let front = front.serve(Arc::new(api), routes, async { _ = stopped.await });
        serving.spawn(async { front.await.unwrap() });
        Self { backend, address, stop, serving }
    }

    pub async fn connect(&self) -> Channel {
        let uri = format!("http://{}", self.address);
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// Stops and waits until every stream has ended.
    pub async fn stop(mut self) {
        let _ = self.stop.send(());
        self.serving.join_next().await.unwrap().unwrap();
    }
}
