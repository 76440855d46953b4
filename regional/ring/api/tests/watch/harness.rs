//! One member that listens on this host.

use std::sync::Arc;

use satrap_ring_api::api::Api;
use satrap_ring_api::backend::Backend;
use satrap_ring_api::limits::WatchSettings;
use tonic::transport::Channel;

use crate::common::served::Served;
use crate::common::solo::{self, Levers};

pub struct Member {
    pub backend: Backend,
    pub levers: Arc<Levers>,
    served: Served,
}

impl Member {
    pub async fn start() -> Self {
        Self::with(WatchSettings::default()).await
    }

    pub async fn with(settings: WatchSettings) -> Self {
        let levers = Arc::new(Levers::default());
        let (backend, _thread) = solo::start_with(levers.clone());
        let mut api = Api::new(backend.clone());
        api.watching = settings;
        Self { backend, levers, served: Served::start(api).await }
    }

    pub async fn connect(&self) -> Channel {
        self.served.channel().await
    }

    pub async fn stop(self) {
        self.served.stop().await;
    }
}
