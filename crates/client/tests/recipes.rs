//! The recipes against the real API of a ring of one member, over sockets, and the guard's layer.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

#[path = "recipes/copies.rs"]
mod copies;
#[path = "recipes/harness.rs"]
mod harness;
#[path = "recipes/layer.rs"]
mod layer;
#[path = "recipes/leaders.rs"]
mod leaders;
#[path = "recipes/locks.rs"]
mod locks;
#[path = "recipes/queues.rs"]
mod queues;
#[path = "recipes/roles.rs"]
mod roles;
#[allow(dead_code, reason = "the tests of the API use more of it")]
#[path = "../../../regional/ring/api/tests/common/served.rs"]
mod served;
#[allow(dead_code, reason = "the tests of the API use more of it")]
#[path = "../../../regional/ring/api/tests/common/solo.rs"]
mod solo;
#[path = "recipes/updates.rs"]
mod updates;
