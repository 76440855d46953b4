//! Decides within the handshake whether the peer may connect (MTLS-1, MTLS-2).
//!
//! One verifier serves both ends, and it looks at the credentials of the moment. So a TLS config is
//! built once per listener or channel, and a rotation needs no rebuild.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};

use super::Credentials;
use crate::pki::{ED25519, Role, SpiffeId};

const ALPN: &[u8] = b"h2";
/// The only signatures that prove a name, in certificates and in handshakes.
const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[ED25519],
    mapping: &[(SignatureScheme::ED25519, &[ED25519])],
};

/// The peers that a listener admits, or that a channel expects to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRule {
    /// Any validator.
    AnyValidator,
    /// The validator of this name.
    Validator(String),
    /// Any member of any region.
    AnyMember,
    /// Any member of this region.
    Member(String),
    /// Any edge of this region.
    Edge(String),
    /// Any operator.
    Operator,
    /// The bearer of this name.
    Exactly(SpiffeId),
    /// The peers that any of these rules admits; no peer if empty.
    AnyOf(Vec<PeerRule>),
}

impl PeerRule {
    /// Whether this rule admits `id`. For RPCs that are narrower than their listener.
    #[must_use]
    pub fn admits(&self, id: &SpiffeId) -> bool {
        match (self, id.role()) {
            (Self::AnyValidator, Role::Validator { .. })
            | (Self::AnyMember, Role::Member { .. })
            | (Self::Operator, Role::Operator { .. }) => true,
            (Self::Validator(wanted), Role::Validator { name }) => wanted == name,
            (Self::Member(wanted), Role::Member { region, .. })
            | (Self::Edge(wanted), Role::Edge { region, .. }) => wanted == region,
            (Self::Exactly(wanted), _) => wanted == id,
            (Self::AnyOf(rules), _) => rules.iter().any(|rule| rule.admits(id)),
            _ => false,
        }
    }
}

/// Why the peer was refused, in words. The library prints such errors with `Debug`.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn refuse(why: &impl fmt::Display) -> Error {
    let why = Arc::new(Refusal(why.to_string()));
    Error::InvalidCertificate(CertificateError::Other(OtherError(why)))
}

/// The config of a listener that admits whom `rule` admits.
pub(super) fn server_config(credentials: Credentials, rule: PeerRule) -> ServerConfig {
    let session = Arc::new(Session { credentials, rule });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(session.clone())
        .with_cert_resolver(session);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config
}

/// The config of a channel that expects whom `rule` admits.
pub(super) fn client_config(credentials: Credentials, rule: PeerRule) -> ClientConfig {
    let session = Arc::new(Session { credentials, rule });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(session.clone())
        .with_client_cert_resolver(session);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// Whether both ends agreed on HTTP/2; rustls lets a peer that offers no protocol at all pass.
pub(super) fn agreed_on_h2(connection: &rustls::CommonState) -> bool {
    connection.alpn_protocol() == Some(ALPN)
}

/// The provider's default order puts X25519MLKEM768 first, asserted by a test.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        signature_verification_algorithms: SIGNATURES,
        ..aws_lc_rs::default_provider()
    })
}

struct Session {
    credentials: Credentials,
    rule: PeerRule,
}

impl Session {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if !intermediates.is_empty() {
            return Err(refuse(&"the peer sent more than its own certificate"));
        }
        let now_ns = u64::try_from(Duration::from_secs(now.as_secs()).as_nanos())
            .expect("the clock is set before 2554");
        let trust = &self.credentials.current().trust;
        let peer = trust.verify(leaf, now_ns).map_err(|why| refuse(&why))?;
        if !self.rule.admits(&peer.id) {
            let (id, rule) = (&peer.id, &self.rule);
            return Err(refuse(&format_args!("{id} is not admitted here; expected {rule:?}")));
        }
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} expects {:?}", self.credentials, self.rule)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not offered here".to_owned()))
}

impl ServerCertVerifier for Session {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl ClientCertVerifier for Session {
    /// Empty: strangers do not learn which scopes exist.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

impl ResolvesServerCert for Session {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.credentials.current().certified_key.clone())
    }
}

impl rustls::client::ResolvesClientCert for Session {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.credentials.current().certified_key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_key_exchange_is_preferred() {
        let first = provider().kx_groups[0].name();
        assert_eq!(first, rustls::NamedGroup::X25519MLKEM768);
    }

    /// Every rule against every role; `1` where the rule admits.
    #[test]
    fn rules_admit_exactly_their_roles() {
        let ids = [
            "spiffe://c/validator/x",
            "spiffe://c/validator/y",
            "spiffe://c/region/x/member/x",
            "spiffe://c/region/y/member/x",
            "spiffe://c/region/x/edge/x",
            "spiffe://c/region/y/edge/x",
            "spiffe://c/operator/x",
        ]
        .map(|id| id.parse::<SpiffeId>().unwrap());
        let x = || "x".to_owned();
        for (rule, expected) in [
            (PeerRule::AnyValidator, "1100000"),
            (PeerRule::Validator(x()), "1000000"),
            (PeerRule::AnyMember, "0011000"),
            (PeerRule::Member(x()), "0010000"),
            (PeerRule::Edge(x()), "0000100"),
            (PeerRule::Operator, "0000001"),
            (PeerRule::Exactly(ids[3].clone()), "0001000"),
            (PeerRule::AnyOf(vec![]), "0000000"),
            (PeerRule::AnyOf(vec![PeerRule::Operator, PeerRule::Member(x())]), "0010001"),
        ] {
            let admitted: String =
                ids.iter().map(|id| if rule.admits(id) { '1' } else { '0' }).collect();
            assert_eq!(admitted, expected, "{rule:?}");
        }
    }
}
