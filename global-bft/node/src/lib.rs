//! One validator of the global quorum.
//!
//! Validators certify what the realm's edges may run: they agree on blocks of signed changes by
//! Tendermint consensus, and serve the certificates. This crate is the shell: the rules of the
//! ledger are in `satrap_global_core`, the format of certificates in `satrap_certify`.
//!
//! # Reading order
//!
//! [`config`] → [`mod@run`] → [`inbox`], [`mesh`], [`signer`] → [`malachite`] (the engine) → [`mempool`],
//! [`guard`], [`store`] → [`view`], [`services`], [`sync_service`].
//!
//! # Invariants
//!
//! - No signature is requested before log and last-sign guard are on disk ([`malachite`]).
//! - A validator never contradicts itself, whenever it crashes ([`guard`], `tests/it/crash.rs`).
//! - Everything a peer controls is bounded ([`limits`]).

pub mod config;
pub mod guard;
pub mod inbox;
pub mod limits;
pub mod malachite;
pub mod mempool;
pub mod mesh;
pub mod run;
pub mod services;
pub mod signer;
pub mod status;
pub mod store;
pub mod submissions;
pub mod sync_service;
pub mod view;

pub use config::Config;
pub use run::{Addresses, NodeError, run, start, start_with};
