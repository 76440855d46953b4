//! Watches over a real socket, with generated clients.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

#[allow(dead_code, reason = "each test binary uses its share of it")]
mod common;
#[path = "watch/etcd.rs"]
mod etcd;
#[path = "watch/harness.rs"]
mod harness;
#[path = "watch/script.rs"]
mod script;
#[path = "watch/store.rs"]
mod store;
