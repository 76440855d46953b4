//! Merkle bundle tree, directory, history log, and the canonical encodings they are made of.
//!
//! A certificate covers one small checkpoint; this crate ties everything else to it. A process that holds
//! a certified root decides here, without trusting the sender, whether content is complete and
//! unaltered. The sender is hostile: a relaying region, or an attacker on the wire. It may
//! withhold, add, replace and reorder, but must not be able to make a false statement verify.
//!
//! ```text
//!   checkpoint ── directory root, size ── directory: one leaf per bundle, sorted by name
//!        │                                     └── bundle root ── bundle: key -> value
//!        └─────── history root, size ──── history: every directory ever certified
//! ```
//!
//! | module | structure | hash | statements that can be proven |
//! |---|---|---|---|
//! | [`bundle`] | crit-bit tree over raw keys | BLAKE3 | an entry, its absence, all entries under a prefix |
//! | [`directory`] | RFC 6962 tree over sorted leaves | SHA-256 | some heads, the absence of a head, all heads |
//! | [`keyset`] | hash tree over keys and revisions | BLAKE3 | none; it finds what a mirror lacks |
//! | [`history`] | RFC 6962 log | SHA-256 | a leaf, and that one log continues another |
//!
//! # Invariants
//!
//! - **MERKLE-1** A verifier takes root *and* size from what was certified, never from the proof.
//! - **MERKLE-2** A proof has one shape: a surplus, missing, repeated or misplaced item is refused.
//! - **MERKLE-3** A verifier's work and memory are linear in input that its decoder has bounded, and no
//!   depth that a sender chooses becomes recursion.
//! - **MERKLE-4** A root depends on the content alone, not on the order of changes that led to it.
//!
//! # Deliberately absent
//!
//! No IO, no clock, no randomness, no persistence: callers store entries and leaves and rebuild.

pub mod bundle;
pub mod codec;
pub mod directory;
mod error;
pub mod history;
pub mod keyset;
pub mod rfc6962;

pub use bundle::{BundleTree, Key, KeyError};
pub use error::ProofError;

/// A hash value: BLAKE3 in [`bundle`], SHA-256 everywhere else.
pub type Digest = [u8; 32];
