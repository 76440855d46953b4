//! Decides which name a certificate proves.
//!
//! A name is a SPIFFE id; a [`Scope`] is the set of names that one self-signed CA may give out. A
//! compromised region holds its own CA, so the question is never only "is this signed by a CA we
//! trust" but "by a CA that may speak for this name". X.509 name constraints cannot express that for
//! URIs in this TLS stack, so the rule is built into the lookup: [`TrustAnchors::verify`] tries only
//! the anchors of the scope that the presented name lies in.
//!
//! ```text
//!   CA, subject CN and URI SAN       issues
//!   spiffe://CHAIN/validator         spiffe://CHAIN/validator/NAME
//!   spiffe://CHAIN/region/REGION     spiffe://CHAIN/region/REGION/member/NAME, .../edge/NAME
//!   spiffe://CHAIN/operator          spiffe://CHAIN/operator/NAME
//! ```
//!
//! # Invariants
//!
//! - **PKI-1** A leaf is signed directly by an anchor of its own scope. There are no intermediates, with
//!   which a region could mint a CA that calls itself `validator`.
//! - **PKI-2** A leaf carries exactly one URI SAN, no DNS names, and an Ed25519 key.
//! - **PKI-3** Anchors expire like leaves. Path validation ignores the dates of a trust anchor, so they
//!   are compared here.
//! - **PKI-4** A leaf never outlives the CA that issued it.
//!
//! # Deliberately absent
//!
//! No revocation lists: leaves are short-lived, and removing an anchor from the trust file distrusts
//! a whole scope at once. Names of the realm use no key type but Ed25519: one algorithm has one set of
//! mistakes. The CA of the etcd listener (`WebAuthority`) is no exception to the rules above but
//! outside them: it names hosts and users with ECDSA keys, and no listener of the realm trusts it.

#[cfg(feature = "issue")]
mod authority;
mod id;
mod trust;
#[cfg(feature = "issue")]
mod web;

#[cfg(feature = "issue")]
pub use authority::{Authority, Leaf};
pub use id::{Role, Scope, SpiffeId};
pub use trust::{PeerIdentity, TrustAnchors};
#[cfg(feature = "issue")]
pub use web::WebAuthority;

pub(crate) use trust::{ED25519, Validity, read_leaf};

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::DecodePrivateKey;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize;

/// Why a certificate, key or name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// A text is not a name.
    #[error(
        "{text:?} is not a SPIFFE id: {why}; expected spiffe://CHAIN/validator/NAME, \
         /region/REGION/member/NAME, /region/REGION/edge/NAME or /operator/NAME"
    )]
    Name {
        /// The text.
        text: String,
        /// The fault in it.
        why: &'static str,
    },
    /// A name was asked of the wrong CA.
    #[error("{id} lies outside the scope {scope} of this CA; use the CA of {}", .id.scope())]
    OutOfScope {
        /// The name asked for.
        id: Box<SpiffeId>,
        /// The names that this CA may sign.
        scope: Scope,
    },
    /// This CA can no longer, or not yet, issue.
    #[error(
        "the CA of {0} is not valid at this time; create a new one and add it to the trust file"
    )]
    Authority(Scope),
    /// No anchor may speak for the presented name now.
    #[error("no CA of {0} that is valid now is trusted here; check the trust file and the clock")]
    NoAnchor(Scope),
    /// The leaf is not what its name claims.
    #[error("the certificate of {id} is refused: {why}")]
    Leaf {
        /// The name it claims.
        id: Arc<SpiffeId>,
        /// Why path validation refused it.
        why: String,
    },
    /// Bytes are not a certificate or key of the required shape.
    #[error("{0}")]
    Malformed(&'static str),
    /// The certificate library failed to create something.
    #[error("cannot create the certificate: {0}")]
    Create(String),
}

/// Reads the Ed25519 key of a leaf from PKCS#8 PEM, for signing outside TLS.
///
/// # Errors
///
/// [`PkiError::Malformed`]. The text never appears in the error.
pub fn signing_key(key_pem: &[u8]) -> Result<SigningKey, PkiError> {
    const EXPECTED: PkiError = PkiError::Malformed("expected an Ed25519 key in PKCS#8 PEM");
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(key_pem).map_err(|_| EXPECTED)?;
    let key = SigningKey::from_pkcs8_der(der.secret_pkcs8_der()).map_err(|_| EXPECTED);
    der.zeroize();
    key
}

/// The one certificate in `pem`, as DER.
///
/// # Errors
///
/// [`PkiError::Malformed`] if there is none, or more than one (PKI-1).
pub fn certificate_der(pem: &[u8]) -> Result<CertificateDer<'static>, PkiError> {
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    match (certificates.next(), certificates.next()) {
        (Some(Ok(only)), None) => Ok(only),
        _ => Err(PkiError::Malformed("expected exactly one PEM certificate")),
    }
}
