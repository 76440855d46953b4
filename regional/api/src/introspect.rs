//! What lets tools find out about the server by gRPC: health, and which calls there are.

use tonic::service::Routes;

/// Services that clients of a region may call; the process has others, on other listeners.
const SERVICES: [&str; 10] = [
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

/// Adds `grpc.health.v1.Health`, which is about the whole server as in etcd, and both versions of
/// `grpc.reflection`.
///
/// # Panics
///
/// If the descriptors that were compiled in are damaged.
#[must_use]
pub fn add(routes: Routes) -> Routes {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(satrap_proto::DESCRIPTORS);
        SERVICES.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    let v1 = reflection().build_v1().expect("the build script wrote the descriptors");
    let v1alpha = reflection().build_v1alpha().expect("the build script wrote the descriptors");
    routes.add_service(health).add_service(v1).add_service(v1alpha)
}
