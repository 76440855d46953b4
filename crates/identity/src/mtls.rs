//! Decides who may talk to whom: mutual TLS 1.3, names from [`crate::pki`], and limits on everything
//! a peer can make this process hold.
//!
//! Every connection between Satrap processes goes through here, against three adversaries: a
//! stranger who can only open sockets, a peer with a valid certificate for the wrong role, and a
//! peer with the right one that floods, stalls or lingers.
//!
//! ```text
//!   accept ─▶ first byte ─▶ handshake ─▶ name ─▶ PeerRule ─▶ caps ─▶ gRPC
//!             (time and number limited: the oldest stranger gives way)
//! ```
//!
//! # Invariants
//!
//! - **MTLS-1** TLS 1.3 and ALPN `h2` only, both sides authenticated, hybrid post-quantum key exchange
//!   preferred. There is no resumption and no early data, so every connection proves its name
//!   against the trust anchors of that moment.
//! - **MTLS-2** A name is checked by [`crate::pki::TrustAnchors::verify`] and then by a [`PeerRule`],
//!   within the handshake. Host names are not compared: they say where a peer is, not who.
//! - **MTLS-3** The accept loop never ends and accepts at once. A connection without a proven name holds
//!   one bounded place for a bounded time and gives way to newer ones; a peer that proved its name
//!   never waits behind one that did not.
//! - **MTLS-4** Every connection ends: asked to after an age, cut after a grace. The client cuts one that
//!   its server does not. Distrusting a CA does not close connections by itself; this bounds how long
//!   that takes to matter, at both ends.
//! - **MTLS-5** [`Credentials::reload`] takes effect on the next handshake of every listener and channel
//!   and leaves live connections alone. If it fails, the old credentials stay.
//! - **MTLS-6** The names that one CA can sign take at most the share of connections of their scope,
//!   however many names are minted, so that the other scopes still connect.
//!
//! # Deliberately absent
//!
//! No limits per address: fleets sit behind shared addresses, so that belongs to the firewall. No
//! retries: channels connect on use, and the caller paces itself with `satrap_pressure`.

mod aging;
mod client;
mod credentials;
mod limits;
mod listener;
mod slots;
mod verifier;

pub use client::{ConnectError, check_url, connect, connect_lazy};
pub use credentials::{CredentialError, CredentialFiles, Credentials, Identity};
pub use limits::{
    FOREIGN_SCOPES, HANDSHAKES_PENDING_MAX, Limits, SILENT_PENDING_MAX, server_builder,
};
pub use listener::{Listener, PeerStream};
pub use verifier::PeerRule;

pub use crate::pki::PeerIdentity;
