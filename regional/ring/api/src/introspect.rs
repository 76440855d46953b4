//! Health and reflection of this listener over gRPC.

use satrap_runtime::Shutdown;
use satrap_runtime::introspect;
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
