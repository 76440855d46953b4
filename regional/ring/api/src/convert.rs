//! Converts requests and responses between protobuf (`satrap_proto`) and the types of `satrap_ring_core`, so
//! that the core does not depend on the wire format.
//!
//! Converting a request also validates it: the checks that etcd makes before it reads any state, in etcd's
//! order, because the client sees the error of the first check that fails. [`prescan`] bounds the size of a
//! message before it is decoded.

pub mod kv;
pub mod prescan;
pub mod txn;
