//! Lets tools find out about a process by gRPC: whether it serves, and which calls there are.
//!
//! As in etcd, health is about the whole process, whose name is empty. A process that answers at all
//! serves; whether a ring or a quorum does is for its status, which says more than one bit.

use std::future::ready;
use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{FILE_DESCRIPTOR_SET, HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::server::Builder;

use crate::tasks::Shutdown;

/// The size of a request, which is the name of a service or of a type.
const REQUEST_BYTES_MAX: usize = 4 * 1024;

/// Services that members and validators serve to members, edges and operators.
pub const REALM_SERVICES: [&str; 2] = ["satrap.v1.Control", "satrap.v1.Sync"];

/// Adds `grpc.health.v1.Health` and both versions of `grpc.reflection` to a listener that serves
/// `services`; reflection tells of these and of health.
///
/// # Panics
///
/// If the descriptors that were compiled in are damaged.
#[must_use]
pub fn add(routes: Routes, services: &[&str], shutdown: &Shutdown) -> Routes {
    let health = HealthServer::new(Process { shutdown: shutdown.clone() });
    let reflection = || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(satrap_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    let v1 = reflection().build_v1().expect("the build script wrote the descriptors");
    let v1alpha = reflection().build_v1alpha().expect("the build script wrote the descriptors");
    routes
        .add_service(health.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(REQUEST_BYTES_MAX))
}

/// The health of this process.
struct Process {
    shutdown: Shutdown,
}

impl Process {
    fn status(&self, service: &str) -> ServingStatus {
        match (service, self.shutdown.is_requested()) {
            ("", false) => ServingStatus::Serving,
            ("", true) => ServingStatus::NotServing,
            _ => ServingStatus::ServiceUnknown,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Process {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match self.status(&request.into_inner().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(response(status))),
        }
    }

    /// Tells the status now and when the process stops; then the stream ends, so that it does not
    /// hold the process up. No service becomes known while the process runs.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let now = self.status(&request.into_inner().service);
        let last = match now {
            ServingStatus::Serving => ServingStatus::NotServing,
            other => other,
        };
        let last = stream::once(self.shutdown.requested()).map(move |()| last);
        let statuses = stream::once(ready(now)).chain(last);
        Ok(Response::new(Box::pin(statuses.map(|status| Ok(response(status))))))
    }
}
