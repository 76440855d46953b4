//! The wire contract: protobuf messages and gRPC services, generated from `proto/`.
//!
//! `satrap/v1` is ours. Everything there that is signed, certified or stored travels as canonical
//! bytes inside its envelopes (see `satrap_merkle::codec`), so there is one parser per object in the
//! whole system and a re-encoded message can never change what a signature covers. The envelopes
//! carry only transport concerns and status for people.
//!
//! `etcd` is the etcd v3 API, which the regional ring speaks so that every etcd client is a client
//! of the ring. Packages, names and numbers are etcd's.

pub mod fault;

/// Message and service types of `satrap.v1`.
#[allow(missing_docs, clippy::all, reason = "generated; the comments are in the .proto files")]
pub mod v1 {
    tonic::include_proto!("satrap.v1");
}

/// The services of the etcd v3 API: KV, Watch, Lease, Cluster, Maintenance, Auth.
#[allow(missing_docs, clippy::all, reason = "generated; the names are etcd's")]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Keys, versions and events of the etcd v3 API.
#[allow(missing_docs, clippy::all, reason = "generated; the names are etcd's")]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions of the etcd v3 API.
#[allow(missing_docs, clippy::all, reason = "generated; the names are etcd's")]
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// The lock service of the etcd v3 API.
#[allow(missing_docs, clippy::all, reason = "generated; the names are etcd's")]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// The election service of the etcd v3 API.
#[allow(missing_docs, clippy::all, reason = "generated; the names are etcd's")]
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// Descriptors of all the above as an encoded `google.protobuf.FileDescriptorSet`, for gRPC
/// reflection and for the JSON gateway.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
