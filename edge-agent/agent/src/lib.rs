//! The edge agent: asks its region for config, verifies all of it, and hands it to the workload.
//!
//! Decisions are taken in `satrap-edge-core`; this crate performs them. Reading order: [`config`],
//! [`run`] (the loop), [`session`] (one connection), [`install`] (from offer to activation),
//! [`cache`] (the state that survives a restart), [`sink`] (the contract with the workload),
//! [`activate`] (the sink of files, with [`paths`], [`links`] and the directories of versions),
//! `reporter` (signs reports), [`status`] (the file that the operator reads).

pub mod activate;
pub mod cache;
pub mod config;
pub mod install;
pub mod links;
pub mod paths;
mod reporter;
pub mod run;
pub mod session;
pub mod sink;
pub mod status;
mod versions;

pub use config::Config;
pub use run::run;
