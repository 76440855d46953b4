//! The wire contract: protobuf envelopes and gRPC services, generated from `proto/satrap/v1`.
//!
//! Everything that is signed, certified or stored travels as canonical bytes inside these
//! envelopes (see `satrap_merkle::codec`), so there is one parser per object in the whole system
//! and a re-encoded message can never change what a signature covers. The envelopes themselves
//! carry only transport concerns and status for people.

/// Message and service types of `satrap.v1`.
#[allow(missing_docs, clippy::all, reason = "generated; the comments stand in the .proto files")]
pub mod v1 {
    tonic::include_proto!("satrap.v1");
}
