//! The listener, the calls that go straight on HTTP/2, and the JSON gateway, driven over sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

#[path = "front/answers.rs"]
mod answers;
#[path = "front/begun.rs"]
mod begun;
#[allow(dead_code, reason = "each test binary uses its share of it")]
mod common;
#[path = "front/compressed.rs"]
mod compressed;
#[path = "front/gateway.rs"]
mod gateway;
#[path = "front/gateway_abuse.rs"]
mod gateway_abuse;
#[path = "front/harness.rs"]
mod harness;
#[path = "front/kv.rs"]
mod kv;
#[path = "front/limits.rs"]
mod limits;
#[path = "front/metrics.rs"]
mod metrics;
#[path = "front/monitoring.rs"]
mod monitoring;
#[path = "front/quotas.rs"]
mod quotas;
#[path = "front/stalled.rs"]
mod stalled;
#[path = "front/store.rs"]
mod store;
#[path = "front/tls.rs"]
mod tls;
