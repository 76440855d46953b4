//! The `satrap` command: operators' verbs, the three daemons, and `dev`.
//!
//! A verb trusts the network no more than an edge does: whatever it prints as certified was
//! verified here, against the genesis file (see [`client`]). Output that a server reported is
//! marked so.
//!
//! Reading order: [`verbs`] (one file per verb), [`client`], [`changes`], [`realm`], [`content`].

pub mod changes;
pub mod client;
pub mod content;
pub mod dev;
pub mod error;
pub mod operator;
pub mod output;
pub mod realm;
pub mod verbs;

pub use error::{CliError, Kind};
pub use output::Output;
