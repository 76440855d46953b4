//! An operator's client, for the command line and for every other program that operates a realm.
//!
//! It trusts the network no more than an edge does: whatever it returns as certified was verified
//! here, against the genesis file.
//!
//! Reading order: [`client`] (asks servers, verifies answers, submits), [`changes`] (what operators
//! sign), [`content`] (bundles on disk), [`keys`].

pub mod changes;
pub mod client;
pub mod content;
pub mod error;
pub mod keys;
pub mod text;

pub use error::{Error, Kind};
