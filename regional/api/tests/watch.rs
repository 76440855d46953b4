//! Watches over a real socket, with generated clients.

mod common;
#[path = "watch/etcd.rs"]
mod etcd;
#[path = "watch/harness.rs"]
mod harness;
#[path = "watch/script.rs"]
mod script;
#[path = "watch/store.rs"]
mod store;
