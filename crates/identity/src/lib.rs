//! Identity: SPIFFE names and the certificates that prove them, mutual TLS, the credentials that a
//! process reads from its configuration, signing outside TLS, and what one name may cost.

pub mod charges;
pub mod config;
pub mod mtls;
pub mod pki;
pub mod signer;
