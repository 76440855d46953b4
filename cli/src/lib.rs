//! The `satrap` command: operators' verbs, the three daemons, and `dev`.
//!
//! A verb trusts the network no more than an edge does: everything that it prints as certified was
//! verified in this process, against the genesis file (see [`satrap_operator::client`]). It marks what
//! only a server claims.
//!
//! Reading order: [`verbs`] (one file per verb), `satrap_operator` (reads and changes a realm),
//! `satrap_status` (its state), `satrap_realm` (`init`), `satrap_dev` (`dev`).

pub mod output;
pub mod verbs;

pub use output::Output;
