//! The state that all requests of one connection share: services, gateway, watches, limits and the client's identity.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::Routes;

use crate::api::Api;
use crate::gateway::Gateway;
use crate::grpc::{ConnectionRate, Streams};
use crate::peer::Peer;
use crate::watch::Watches;

/// The parts that a connection needs to answer requests.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) api: Arc<Api>,
    pub(super) routes: Routes,
    pub(super) gateway: Gateway,
    pub(super) watches: Watches,
    pub(super) streams: Streams,
    pub(super) rate: ConnectionRate,
    pub(super) peer: Arc<Peer>,
    /// Becomes true when the process stops.
    pub(super) stopped: watch::Receiver<bool>,
}
