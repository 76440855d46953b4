//! Between protobuf and the types of the core, so that neither side knows the other (STYLE 8).
//!
//! Converting a request also makes the checks that etcd makes before it looks at any state, in
//! etcd's order, because a client sees which one failed first.

pub mod kv;
pub mod prescan;
pub mod txn;
