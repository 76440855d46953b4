//! The services behind tonic, driven by generated clients over a ring of one member.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test that called it")]

#[path = "services/calls.rs"]
mod calls;
#[allow(dead_code, reason = "each test binary uses its share of it")]
mod common;
#[path = "services/harness.rs"]
mod harness;
#[path = "services/leases.rs"]
mod leases;
#[path = "services/maintenance.rs"]
mod maintenance;
#[path = "services/permissions.rs"]
mod permissions;
#[path = "services/recipes.rs"]
mod recipes;
#[path = "services/users.rs"]
mod users;
