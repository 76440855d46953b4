//! The etcd v3 API, and the store API of `satrap.v1`, of one ring member.
//!
//! Everything here faces clients that may be careless or hostile; everything behind [`Backend`] may
//! rely on requests being parsed, bounded and attributed to a caller. An etcd client must not be
//! able to tell the difference, so answers, codes and texts are etcd's.
//!
//! ```text
//!   socket ─▶ front ─▶ by path ─┬─▶ kv, watch, lease keep-alive, store   straight on HTTP/2
//!                               ├─▶ services                             through tonic
//!                               └─▶ gateway (JSON)                       which is a client of the above
//!                                        │
//!                                        ▼
//!                                     Backend ─▶ the ring
//! ```
//!
//! # Deliberately absent
//!
//! Raft, disks and clocks. The ring decides who is leader, what is durable and what time it is.

pub mod answers;
pub mod api;
pub mod backend;
pub mod calls;
pub mod convert;
pub mod exchange;
pub mod front;
pub mod gateway;
pub mod grpc;
pub mod introspect;
pub mod kv;
pub mod limits;
pub mod listener;
pub mod members;
pub mod meters;
pub mod peer;
pub mod queues;
pub mod refusal;
pub mod services;
pub mod status;
pub mod store;
pub mod watch;

pub use backend::Backend;
