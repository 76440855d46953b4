//! What tools find out about this listener by gRPC.

use satrap_host::{Shutdown, introspect};
use tonic::service::Routes;

/// Services that clients of a region may call; the process has others, on other listeners.
pub(crate) const SERVICES: [&str; 10] = [
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "satrap.v1.Store",
    "satrap.v1.StoreWatch",
    "v3electionpb.Election",
    "v3lockpb.Lock",
];

/// Adds health and reflection.
#[must_use]
pub fn add(routes: Routes, shutdown: &Shutdown) -> Routes {
    introspect::add(routes, &SERVICES, shutdown)
}
