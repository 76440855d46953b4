//! The listener's TLS, with clients that rustls makes.

use std::{fs, os::unix::fs::PermissionsExt};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ConfigBuilder, ConnectionCommon, HandshakeKind,
    ProtocolVersion, ServerConnection, client::WantsClientCert,
};

use super::*;

/// Brings what `from` has to send to `to`.
fn carry<A, B>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), rustls::Error> {
    let mut sent = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut sent).unwrap();
    }
    let mut sent = &sent[..];
    while !sent.is_empty() {
        to.read_tls(&mut sent).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// The protocol that a client and a server agree on.
fn agreed(
    client: ClientConfig,
    server: &Arc<ServerConfig>,
) -> Result<(ProtocolVersion, CipherSuite), rustls::Error> {
    let (client, server) = connected(&Arc::new(client), server)?;
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    let suite = server.negotiated_cipher_suite().unwrap().suite();
    Ok((server.protocol_version().unwrap(), suite))
}

/// Both ends after the handshake, and after what follows it on its own.
fn connected(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = "localhost".try_into().unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        carry(&mut client, &mut server)?;
        carry(&mut server, &mut client)?;
    }
    carry(&mut server, &mut client)?;
    Ok((client, server))
}

/// A member's files and the client's side of them.
struct Files {
    _dir: tempfile::TempDir,
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    tls: EtcdTls,
}

impl Files {
    fn new() -> Self {
        let (mut ca, key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&key).unwrap();
        let issuer = Issuer::new(ca, key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: String| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let tls = EtcdTls {
            certificate: file("leaf", leaf.pem()),
            key: dir.path().join("key"),
            client_ca: file("ca", ca_certificate.pem()),
            client_certificate: ClientCertificate::Optional,
            min_version: TlsVersion::Tls12,
        };
        files::write_secret(&tls.key, key.serialize_pem().as_bytes()).unwrap();
        Self { _dir: dir, ca: ca_certificate.der().clone(), issuer, tls }
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
    }
}

/// A key that other users can read is refused, at the start and when it is read again.
#[test]
fn a_key_that_others_can_read_is_refused() {
    let files = Files::new();
    files.tls.load().unwrap();
    for mode in [0o640, 0o604] {
        fs::set_permissions(&files.tls.key, fs::Permissions::from_mode(mode)).unwrap();
        let error = files.tls.load().unwrap_err().to_string();
        assert!(error.starts_with("`etcd.tls.key`: "), "{error}");
        assert!(error.contains("expected 0600: run `chmod 600 "), "{error}");
    }
}

/// A certificate that expired since must not go on by the session of an earlier connection.
#[test]
fn no_session_is_resumed() {
    let mut files = Files::new();
    files.tls.client_certificate = ClientCertificate::Required;
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["alice".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &files.issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let (server, _) = files.tls.server_config().unwrap();
    for version in [&TLS12, &TLS13] {
        let client = files.client(&[version]);
        let chain = vec![leaf.der().clone()];
        let client = client.with_client_auth_cert(chain, key.clone_key()).unwrap();
        // It keeps sessions, as Go's does when it is asked to.
        let client = Arc::new(client);
        for _ in 0..2 {
            let (_, server) = connected(&client, &server).unwrap();
            let kind = server.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full), "{:?}", server.protocol_version());
            assert!(server.peer_certificates().is_some());
        }
    }
}

/// Go clients up to etcd's 3.5.7 speak no TLS beyond 1.2.
#[test]
fn old_clients_are_served_unless_the_operator_refuses_them() {
    let files = Files::new();
    let mut tls = files.tls.clone();
    let client = |versions: &[&'static SupportedProtocolVersion]| {
        files.client(versions).with_no_client_auth()
    };
    let (server, _) = tls.server_config().unwrap();
    let (version, suite) = agreed(client(&[&TLS12]), &server).unwrap();
    assert_eq!(version, ProtocolVersion::TLSv1_2);
    let name = format!("{suite:?}");
    assert!(name.starts_with("TLS_ECDHE_"), "{name}");
    assert!(name.contains("GCM") || name.contains("CHACHA20_POLY1305"), "{name}");
    let (version, _) = agreed(client(&[&TLS12, &TLS13]), &server).unwrap();
    assert_eq!(version, ProtocolVersion::TLSv1_3, "the newest that both speak");
    for suite in &server.crypto_provider().cipher_suites {
        let name = format!("{:?}", suite.suite());
        assert!(name.contains("GCM") || name.contains("CHACHA20_POLY1305"), "{name}");
    }
    tls.min_version = TlsVersion::Tls13;
    let (server, _) = tls.server_config().unwrap();
    agreed(client(&[&TLS12]), &server).expect_err("the operator wants none of it");
    let (version, _) = agreed(client(&[&TLS12, &TLS13]), &server).unwrap();
    assert_eq!(version, ProtocolVersion::TLSv1_3);
}

#[test]
fn streams_wait_three_elections_for_a_leader() {
    let config = EtcdConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        urls: Vec::new(),
        tls: None,
        metrics_listen: None,
        requests: RequestLimits { bytes_max: 1 << 20, txn_ops_max: 1 },
        watch_progress_interval: Duration::from_secs(5),
    };
    let watching = config.watching(Duration::from_millis(700));
    assert_eq!(watching.leaderless_max, Duration::from_millis(2_100));
    assert_eq!(watching.progress_interval, Duration::from_secs(5));
    assert_eq!(watching.fragment_bytes, (1 << 20) + 512 * 1024, "as in etcd");
}
