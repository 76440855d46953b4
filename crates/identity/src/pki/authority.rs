//! Creates CAs and leaves. Verification does not rely on anything decided here.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{PkiError, Scope, SpiffeId, trust};

/// Clocks differ: a certificate is valid a little before it was made.
const BACKDATE_S: i64 = 60;
const NS_PER_S: u64 = 1_000_000_000;

/// A self-signed CA that may sign the names of one scope.
pub struct Authority {
    scope: Scope,
    issuer: Issuer<'static, KeyPair>,
    validity: trust::Validity,
    certificate_pem: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate; public.
    pub certificate_pem: String,
    /// The PKCS#8 key; belongs in a file written with [`satrap_runtime::files::write_secret`].
    pub key_pem: Zeroizing<String>,
}

impl Authority {
    /// Creates a CA that is valid for `ttl` from `now_ns`.
    ///
    /// # Errors
    ///
    /// [`PkiError::Create`] if the certificate library fails.
    pub fn create(scope: Scope, now_ns: u64, ttl: Duration) -> Result<Self, PkiError> {
        let uri = scope.to_string();
        let validity = validity(now_ns, ttl);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(&uri, validity)?;
        params.distinguished_name.push(DnType::CommonName, uri);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { scope, issuer: Issuer::new(params, key), validity, certificate_pem })
    }

    /// Loads a CA that [`Authority::create`] made.
    ///
    /// # Errors
    ///
    /// [`PkiError::Malformed`] if the texts are not one CA certificate and its key.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let anchor = trust::Anchor::from_der(&super::certificate_der(certificate_pem.as_bytes())?)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ED25519)
            .map_err(|_| PkiError::Malformed("expected an Ed25519 key in PKCS#8 PEM"))?;
        if key.public_key_raw() != anchor.public_key.as_slice() {
            return Err(PkiError::Malformed("this key does not belong to this CA certificate"));
        }
        Ok(Self {
            scope: anchor.scope,
            issuer: Issuer::from_ca_cert_pem(certificate_pem, key)?,
            validity: anchor.validity,
            certificate_pem: certificate_pem.to_owned(),
        })
    }

    /// The names this CA may sign.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The certificate, for trust files.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key; belongs in a file written with [`satrap_runtime::files::write_secret`].
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// Issues a leaf with a fresh key, valid for `ttl` from `now_ns` but no longer than this CA (PKI-4).
    ///
    /// # Errors
    ///
    /// [`PkiError::OutOfScope`], or [`PkiError::Authority`] if this CA is not valid at `now_ns`.
    pub fn issue(&self, id: &SpiffeId, now_ns: u64, ttl: Duration) -> Result<Leaf, PkiError> {
        if id.scope() != self.scope {
            return Err(PkiError::OutOfScope { id: id.clone().into(), scope: self.scope.clone() });
        }
        if !self.validity.covers(now_ns) {
            return Err(PkiError::Authority(self.scope.clone()));
        }
        let mut validity = validity(now_ns, ttl);
        validity.not_after_s = validity.not_after_s.min(self.validity.not_after_s);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(&id.to_string(), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(Leaf {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self::Create(error.to_string())
    }
}

pub(super) fn validity(now_ns: u64, ttl: Duration) -> trust::Validity {
    let now_s = i64::try_from(now_ns / NS_PER_S).expect("2^64 ns are fewer than 2^63 s");
    let ttl_s = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    trust::Validity { not_before_s: now_s - BACKDATE_S, not_after_s: now_s.saturating_add(ttl_s) }
}

pub(super) fn date(unix_s: i64) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(unix_s)
        .map_err(|_| PkiError::Malformed("the certificate would expire after the year 9999"))
}

fn params(uri: &str, validity: trust::Validity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.not_before_s)?;
    params.not_after = date(validity.not_after_s)?;
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{TrustAnchors, certificate_der, signing_key};

    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: u64 = 1_800_000_000 * NS_PER_S;

    fn region(name: &str) -> Authority {
        let scope = format!("spiffe://c/region/{name}").parse().unwrap();
        Authority::create(scope, NOW, 24 * HOUR).unwrap()
    }

    fn edge(region: &str) -> SpiffeId {
        format!("spiffe://c/region/{region}/edge/e").parse().unwrap()
    }

    #[test]
    fn a_leaf_proves_its_name_and_key() {
        let ca = region("a");
        let leaf = ca.issue(&edge("a"), NOW, HOUR).unwrap();
        let trust = TrustAnchors::from_pem(ca.certificate_pem().as_bytes()).unwrap();
        let der = certificate_der(leaf.certificate_pem.as_bytes()).unwrap();
        let peer = trust.verify(&der, NOW).unwrap();
        assert_eq!(*peer.id, edge("a"));
        assert_eq!(&*peer.leaf_der, &*der);
        let key = signing_key(leaf.key_pem.as_bytes()).unwrap();
        assert_eq!(key.verifying_key().to_bytes(), peer.public_key);
    }

    #[test]
    fn a_ca_issues_only_in_its_scope() {
        let error = region("a").issue(&edge("b"), NOW, HOUR).err().unwrap();
        assert_eq!(
            error.to_string(),
            "spiffe://c/region/b/edge/e lies outside the scope spiffe://c/region/a of this CA; \
             use the CA of spiffe://c/region/b"
        );
    }

    #[test]
    fn a_leaf_is_valid_from_a_minute_ago_until_its_ttl() {
        let ca = region("a");
        let trust = TrustAnchors::from_pem(ca.certificate_pem().as_bytes()).unwrap();
        let leaf = ca.issue(&edge("a"), NOW, HOUR).unwrap();
        let der = certificate_der(leaf.certificate_pem.as_bytes()).unwrap();
        let at =
            |offset_s: i64| trust.verify(&der, NOW.saturating_add_signed(offset_s * 1_000_000_000));
        assert!(at(-61).is_err());
        assert!(at(-60).is_ok());
        assert!(at(3_600).is_ok());
        assert!(at(3_601).is_err());
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let ca = region("a");
        let trust = TrustAnchors::from_pem(ca.certificate_pem().as_bytes()).unwrap();
        let end = NOW + 24 * 3_600 * NS_PER_S;
        let leaf = ca.issue(&edge("a"), end - NS_PER_S, HOUR).unwrap();
        let der = certificate_der(leaf.certificate_pem.as_bytes()).unwrap();
        assert!(trust.verify(&der, end).is_ok());
        assert!(trust.verify(&der, end + NS_PER_S).is_err());
        let scope = ca.scope().clone();
        assert_eq!(
            ca.issue(&edge("a"), end + NS_PER_S, HOUR).err(),
            Some(PkiError::Authority(scope))
        );
    }

    #[test]
    fn a_loaded_ca_signs_like_the_created_one() {
        let created = region("a");
        let loaded = Authority::load(created.certificate_pem(), &created.key_pem()).unwrap();
        assert_eq!(loaded.scope(), created.scope());
        let leaf = loaded.issue(&edge("a"), NOW, HOUR).unwrap();
        let der = certificate_der(leaf.certificate_pem.as_bytes()).unwrap();
        let trust = TrustAnchors::from_pem(created.certificate_pem().as_bytes()).unwrap();
        assert!(trust.verify(&der, NOW).is_ok());
        let foreign = Authority::load(created.certificate_pem(), &region("a").key_pem());
        assert_eq!(
            foreign.err().unwrap().to_string(),
            "this key does not belong to this CA certificate"
        );
        assert!(Authority::load(&leaf.certificate_pem, &leaf.key_pem).is_err(), "a leaf is no CA");
    }
}
