//! The edge agent: asks its region for config, verifies all of it, and hands it to the workload.
//!
//! Decisions are taken in `satrap-edge-core`; this crate performs them. Reading order: [`config`],
//! [`run`] (the loop), [`session`] (one connection), [`install`] (from offer to activation),
//! [`cache`] (what survives a restart),
//! [`activate`] (what the workload sees; with [`paths`], [`links`] and its directories),
//! [`status`] (what the operator sees).

pub mod activate;
pub mod cache;
pub mod config;
pub mod install;
pub mod links;
pub mod paths;
pub mod run;
pub mod session;
pub mod status;
mod versions;

pub use config::Config;
pub use run::run;
