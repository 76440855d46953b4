//! Decides whether a leaf proves the name in it: rules PKI-1 to PKI-3 of [`super`].

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use satrap_certify::Timestamp;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{PkiError, Scope, SpiffeId};

/// The one signature algorithm.
pub(crate) const ED25519: &dyn SignatureVerificationAlgorithm = webpki::aws_lc_rs::ED25519;

/// Ours are about 500 bytes.
const LEAF_BYTES_MAX: usize = 4 * 1024;
/// One per region, role and ongoing rotation, many times over.
const ANCHORS_MAX: usize = 1024;
/// The DER of an Ed25519 public key up to the key itself; there is only this one encoding.
const ED25519_SPKI_PREFIX: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// A verified peer. Tonic handlers find it in `request.extensions()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The name it proved.
    pub id: Arc<SpiffeId>,
    /// The certificate it proved it with.
    pub leaf_der: Arc<[u8]>,
    /// The Ed25519 key in that certificate.
    pub public_key: [u8; 32],
}

/// The CAs that a process trusts, each for its own scope. Clones share them.
#[derive(Clone)]
pub struct TrustAnchors(Arc<[Anchor]>);

/// Seconds since the Unix epoch, both inclusive.
#[derive(Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) not_before_s: i64,
    pub(crate) not_after_s: i64,
}

pub(super) struct Anchor {
    pub(super) scope: Scope,
    pub(super) validity: Validity,
    #[cfg_attr(
        not(feature = "issue"),
        expect(dead_code, reason = "an authority compares it with its key")
    )]
    pub(super) public_key: [u8; 32],
    anchor: TrustAnchor<'static>,
}

impl TrustAnchors {
    /// Reads a trust file: PEM certificates of CAs that [`super::Authority`] made, of one chain.
    ///
    /// # Errors
    ///
    /// [`PkiError::Malformed`] if there are none or too many, if one is not such a CA, or if two
    /// belong to different chains.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let mut anchors: Vec<Anchor> = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let der = certificate
                .map_err(|_| PkiError::Malformed("the trust file holds something besides PEM"))?;
            anchors.push(Anchor::from_der(&der)?);
            if anchors.len() > ANCHORS_MAX {
                return Err(PkiError::Malformed("the trust file holds more than 1024 CAs"));
            }
        }
        let Some(first) = anchors.first() else {
            return Err(PkiError::Malformed("the trust file holds no PEM certificate"));
        };
        if anchors.iter().any(|anchor| anchor.scope.chain() != first.scope.chain()) {
            return Err(PkiError::Malformed("the trust file mixes CAs of different chains"));
        }
        Ok(Self(anchors.into()))
    }

    /// Verifies that `leaf_der` proves its name at `now_ns`; also away from TLS, as for reports.
    ///
    /// # Errors
    ///
    /// [`PkiError`] says which rule the bearer of the certificate broke.
    pub fn verify(&self, leaf_der: &[u8], now_ns: u64) -> Result<PeerIdentity, PkiError> {
        let peer = read_leaf(leaf_der)?;
        let scope = peer.id.scope();
        // PKI-1 and PKI-3: an anchor of any other scope is not even tried.
        let anchors: Vec<TrustAnchor<'_>> = self
            .0
            .iter()
            .filter(|anchor| anchor.scope == scope && anchor.validity.covers(now_ns))
            .map(|anchor| anchor.anchor.clone())
            .collect();
        if anchors.is_empty() {
            return Err(PkiError::NoAnchor(scope));
        }
        let der = CertificateDer::from(leaf_der);
        let refuse = |why| PkiError::Leaf { id: peer.id.clone(), why: explain(&why) };
        let now = UnixTime::since_unix_epoch(Duration::from_nanos(now_ns));
        // Every leaf is for both ends of a connection, so checking one usage refuses foreign ones.
        EndEntityCert::try_from(&der)
            .map_err(refuse)?
            .verify_for_usage(&[ED25519], &anchors, &[], now, KeyUsage::client_auth(), None, None)
            .map_err(refuse)?;
        Ok(peer)
    }
}

/// An error of the library, for people.
fn explain(error: &webpki::Error) -> String {
    let date = |time: &UnixTime| Timestamp(time.as_secs().saturating_mul(1_000_000_000));
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            format!("it expired at {}; issue a new one", date(not_after))
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            format!("it is valid from {} on; check the clocks", date(not_before))
        }
        webpki::Error::UnknownIssuer => "no CA that is trusted here has signed it".into(),
        other => format!("{other:?}"),
    }
}

impl Anchor {
    pub(super) fn from_der(der: &CertificateDer<'_>) -> Result<Self, PkiError> {
        const EXPECTED: PkiError = PkiError::Malformed(
            "expected a CA certificate whose subject CN and only URI SAN are one scope such as \
             spiffe://CHAIN/region/REGION",
        );
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| EXPECTED)?;
        let mut common_names = parsed.subject().iter_common_name();
        let (Some(common_name), None) = (common_names.next(), common_names.next()) else {
            return Err(EXPECTED);
        };
        let common_name = common_name.as_str().map_err(|_| EXPECTED)?;
        let names = parsed.subject_alternative_name().map_err(|_| EXPECTED)?.ok_or(EXPECTED)?;
        if !parsed.is_ca() || names.value.general_names != [GeneralName::URI(common_name)] {
            return Err(EXPECTED);
        }
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| EXPECTED)?.to_owned();
        Ok(Self {
            scope: common_name.parse()?,
            validity: Validity::of(&parsed),
            public_key: ed25519_key(parsed.public_key().raw)?,
            anchor,
        })
    }
}

impl Validity {
    /// The dates in a certificate of this process or its trust file.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|_| PkiError::Malformed("the certificate does not parse as X.509"))?;
        Ok(Self::of(&parsed))
    }

    fn of(parsed: &X509Certificate<'_>) -> Self {
        Self {
            not_before_s: parsed.validity().not_before.timestamp(),
            not_after_s: parsed.validity().not_after.timestamp(),
        }
    }

    /// The moment within these dates that is nearest to `now_ns`.
    pub(crate) fn clamp(self, now_ns: u64) -> u64 {
        let ns = |unix_s: i64| u64::try_from(unix_s).unwrap_or(0).saturating_mul(1_000_000_000);
        let (first, last) = (ns(self.not_before_s), ns(self.not_after_s));
        now_ns.min(last).max(first)
    }

    pub(super) fn covers(self, now_ns: u64) -> bool {
        let now_s = i64::try_from(now_ns / 1_000_000_000).expect("2^64 ns are under 2^63 s");
        (self.not_before_s..=self.not_after_s).contains(&now_s)
    }
}

/// Reads what a leaf claims (PKI-2) without verifying who signed it.
pub(crate) fn read_leaf(leaf_der: &[u8]) -> Result<PeerIdentity, PkiError> {
    if leaf_der.len() > LEAF_BYTES_MAX {
        return Err(PkiError::Malformed("the certificate is larger than 4 KiB"));
    }
    let der = CertificateDer::from(leaf_der);
    let leaf = EndEntityCert::try_from(&der)
        .map_err(|_| PkiError::Malformed("the certificate does not parse as X.509 version 3"))?;
    let mut names = leaf.valid_uri_names();
    let (Some(name), None, None) = (names.next(), names.next(), leaf.valid_dns_names().next())
    else {
        return Err(PkiError::Malformed("the certificate must name exactly one URI and no host"));
    };
    Ok(PeerIdentity {
        id: Arc::new(name.parse()?),
        leaf_der: leaf_der.into(),
        public_key: ed25519_key(&leaf.subject_public_key_info())?,
    })
}

fn ed25519_key(spki_der: &[u8]) -> Result<[u8; 32], PkiError> {
    spki_der
        .strip_prefix(&ED25519_SPKI_PREFIX)
        .and_then(|key| key.try_into().ok())
        .ok_or(PkiError::Malformed("the certificate must hold an Ed25519 key"))
}
