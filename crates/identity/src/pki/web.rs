//! Ordinary certificates, for the listener of etcd's clients.
//!
//! etcd clients check host names and know nothing of SPIFFE; some of them know nothing of Ed25519
//! either. So a region has a second CA whose servers are named by hosts and whose clients are named by
//! users. It vouches for nothing else: no other listener of a realm trusts it.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use zeroize::Zeroizing;

use super::{
    Leaf, PkiError,
    authority::{date, validity},
};

/// A self-signed CA for the servers and clients of one etcd API.
pub struct WebAuthority {
    issuer: Issuer<'static, KeyPair>,
    not_after_s: i64,
    certificate_pem: String,
}

impl WebAuthority {
    /// Creates a CA called `name` that is valid for `ttl` from `now_ns`.
    ///
    /// # Errors
    ///
    /// [`PkiError::Create`] if the certificate library fails.
    pub fn create(name: &str, now_ns: u64, ttl: Duration) -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(name, &[], now_ns, ttl)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(&key)?.pem();
        let not_after_s = validity(now_ns, ttl).not_after_s;
        Ok(Self { issuer: Issuer::new(params, key), not_after_s, certificate_pem })
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

    /// A certificate for the server that is reached under `hosts`, names or addresses.
    ///
    /// # Errors
    ///
    /// [`PkiError::Create`] if a host is neither.
    pub fn server(&self, hosts: &[String], now_ns: u64, ttl: Duration) -> Result<Leaf, PkiError> {
        let name = hosts.first().map_or("", String::as_str);
        self.issue(name, hosts, ExtendedKeyUsagePurpose::ServerAuth, (now_ns, ttl))
    }

    /// A certificate for the user `name`.
    ///
    /// # Errors
    ///
    /// [`PkiError::Create`] if the certificate library fails.
    pub fn client(&self, name: &str, now_ns: u64, ttl: Duration) -> Result<Leaf, PkiError> {
        self.issue(name, &[], ExtendedKeyUsagePurpose::ClientAuth, (now_ns, ttl))
    }

    fn issue(
        &self,
        name: &str,
        hosts: &[String],
        usage: ExtendedKeyUsagePurpose,
        (now_ns, ttl): (u64, Duration),
    ) -> Result<Leaf, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(name, hosts, now_ns, ttl)?;
        // No leaf outlives its CA.
        params.not_after = params.not_after.min(date(self.not_after_s)?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        Ok(Leaf {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn params(
    name: &str,
    hosts: &[String],
    now_ns: u64,
    ttl: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(hosts)?;
    let validity = validity(now_ns, ttl);
    params.not_before = date(validity.not_before_s)?;
    params.not_after = date(validity.not_after_s)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: u64 = 1_800_000_000_000_000_000;

    #[test]
    fn servers_are_named_by_hosts_and_clients_by_users_and_none_outlives_the_ca() {
        let ca = WebAuthority::create("etcd of eu", NOW, HOUR).unwrap();
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let server = ca.server(&hosts, NOW, 10 * HOUR).unwrap();
        let der = crate::pki::certificate_der(server.certificate_pem.as_bytes()).unwrap();
        let (_, server) = X509Certificate::from_der(&der).unwrap();
        let names = server.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [GeneralName::IPAddress(&[127, 0, 0, 1]), GeneralName::DNSName("localhost")]
        );
        let end_s = i64::try_from(NOW / 1_000_000_000).unwrap() + 3_600;
        assert_eq!(server.validity().not_after.timestamp(), end_s);
        let client = ca.client("alice", NOW, HOUR).unwrap();
        let der = crate::pki::certificate_der(client.certificate_pem.as_bytes()).unwrap();
        let (_, client) = X509Certificate::from_der(&der).unwrap();
        let name = client.subject().iter_common_name().next().unwrap();
        assert_eq!(name.as_str().unwrap(), "alice");
        assert!(!client.is_ca());
    }
}
