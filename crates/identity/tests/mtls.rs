//! Real TLS over loopback: who is let in, who is not, and what a hostile peer can hold.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{HOUR, Home, ask, authority, bundle, credentials, leaf, run, serve, ticks, who};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, PKCS_ED25519, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use satrap_identity::mtls::{Credentials, Limits, PeerRule, connect, connect_lazy};
use satrap_identity::pki::{Authority, Leaf, Role, SpiffeId};
use satrap_runtime::{TaskGroup, clock, files, runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const MEMBER: &str = "spiffe://c/region/a/member/m";
const EDGE: &str = "spiffe://c/region/a/edge/e";

fn edges() -> PeerRule {
    PeerRule::Edge("a".to_owned())
}

fn members() -> PeerRule {
    PeerRule::Member("a".to_owned())
}

/// Signs any names, as a compromised CA would.
fn forge(authority: &Authority, ids: &[&str]) -> Leaf {
    let ca_key = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(authority.certificate_pem(), ca_key).unwrap();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        ids.iter().map(|id| SanType::URI((*id).try_into().unwrap())).collect();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Leaf {
        certificate_pem: params.signed_by(&key, &issuer).unwrap().pem(),
        key_pem: key.serialize_pem().into(),
    }
}

/// A TLS client that follows no rule of ours.
async fn raw_tls(
    address: std::net::SocketAddr,
    chain: &[&str],
    key_pem: Option<&str>,
    alpn: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    #[derive(Debug)]
    struct Gullible;
    impl rustls::client::danger::ServerCertVerifier for Gullible {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            unreachable!("TLS 1.3 only")
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ED25519]
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match key_pem {
        None => config.with_no_client_auth(),
        Some(key) => {
            let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()));
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain.collect::<Result<_, _>>().unwrap(), key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("x").unwrap(), tcp).await
}

/// Whether the server ends this connection without a word of HTTP/2.
async fn is_refused(stream: std::io::Result<tokio_rustls::client::TlsStream<TcpStream>>) -> bool {
    let Ok(mut stream) = stream else { return true };
    // The client's half of the handshake ends before the server judges its certificate.
    let mut byte = [0];
    !matches!(stream.read(&mut byte).await, Ok(1..))
}

#[test]
fn peers_learn_each_others_names_and_keys() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let edge = credentials(&leaf(&region, EDGE), &trust);
    run(async |group| {
        let server = serve(&group, &server_home, edges(), Limits::EDGES).await;
        let me = edge.current();
        let expected = format!("{EDGE} {:02x?}", me.signer.public().0);
        assert_eq!(ask(&server.url, &edge, members()).await.unwrap(), expected);
        let lazy = connect_lazy(&server.url, &edge, members()).unwrap();
        assert_eq!(who(lazy).await.unwrap(), expected);
    });
}

#[test]
fn a_server_refuses_whom_it_must_and_goes_on() {
    let (a, b) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/b"));
    let validators = authority("spiffe://c/validator");
    let impostor = authority("spiffe://c/region/a");
    let trust = bundle(&[&a, &b, &validators]);
    // The client needs the first to trust the server, and the second to load its own credentials.
    let with_impostor = bundle(&[&a, &impostor]);
    let stale = a.issue(&EDGE.parse().unwrap(), clock::now() - 7_200_000_000_000, HOUR).unwrap();
    let server_home = credentials(&leaf(&a, MEMBER), &trust);
    let good = credentials(&leaf(&a, EDGE), &trust);
    let refused = [
        ("wrong role", credentials(&leaf(&validators, "spiffe://c/validator/v"), &trust)),
        ("same region, wrong role", credentials(&leaf(&a, MEMBER), &trust)),
        ("other region", credentials(&leaf(&b, "spiffe://c/region/b/edge/e"), &trust)),
        ("CA of another realm", credentials(&leaf(&impostor, EDGE), &with_impostor)),
        ("expired", credentials(&stale, &trust)),
    ];
    run(async |group| {
        let server = serve(&group, &server_home, edges(), Limits::EDGES).await;
        for (case, home) in refused {
            let outcome = ask(&server.url, &home, members()).await;
            assert!(outcome.is_err(), "{case}: {outcome:?}");
            assert!(ask(&server.url, &good, members()).await.is_ok(), "after {case}");
        }
    });
}

/// Leaves that no honest CA issues and that [`Credentials`] would not load.
#[test]
fn a_server_refuses_forgeries() {
    let (a, b) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/b"));
    let validators = authority("spiffe://c/validator");
    let server_home = credentials(&leaf(&a, MEMBER), &bundle(&[&a, &b, &validators]));
    let everyone =
        PeerRule::AnyOf(vec![edges(), PeerRule::Edge("b".into()), PeerRule::AnyValidator]);
    let good = leaf(&a, EDGE);

    // A region mints a CA with the subject of the validators' CA, and a validator below it.
    let region_key = KeyPair::from_pem(&a.key_pem()).unwrap();
    let region = Issuer::from_ca_cert_pem(a.certificate_pem(), region_key).unwrap();
    let fake_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "spiffe://c/validator");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::URI("spiffe://c/validator".try_into().unwrap())];
    let fake_ca_pem = params.signed_by(&fake_key, &region).unwrap().pem();
    let fake_ca = Authority::load(&fake_ca_pem, &fake_key.serialize_pem()).unwrap();
    let minted = forge(&fake_ca, &["spiffe://c/validator/v"]);

    let sideways = forge(&a, &["spiffe://c/region/b/edge/e"]);
    let upwards = forge(&a, &["spiffe://c/validator/v"]);
    let two_names = forge(&a, &[EDGE, "spiffe://c/region/a/edge/f"]);
    let nameless = forge(&a, &[]);
    let odd = forge(&a, &["spiffe://c/region/a/edge/../../../validator/v"]);
    let h2: &[&[u8]] = &[b"h2"];
    let cases = [
        ("other region's name", vec![&*sideways.certificate_pem], &sideways, h2),
        ("validator's name", vec![&*upwards.certificate_pem], &upwards, h2),
        ("minted CA", vec![&*minted.certificate_pem, &*fake_ca_pem], &minted, h2),
        ("minted CA, left out", vec![&*minted.certificate_pem], &minted, h2),
        ("two names", vec![&*two_names.certificate_pem], &two_names, h2),
        ("no name", vec![&*nameless.certificate_pem], &nameless, h2),
        ("path traversal", vec![&*odd.certificate_pem], &odd, h2),
        ("wrong protocol", vec![&*good.certificate_pem], &good, &[b"http/1.1"]),
        ("no protocol", vec![&*good.certificate_pem], &good, &[]),
    ];
    run(async |group| {
        let server = serve(&group, &server_home, everyone, Limits::EDGES).await;
        for (case, chain, leaf, alpn) in cases {
            let stream = raw_tls(server.address, &chain, Some(&leaf.key_pem), alpn).await;
            assert!(is_refused(stream).await, "{case}");
        }
        assert!(is_refused(raw_tls(server.address, &[], None, h2).await).await, "no certificate");
        // The same raw client with a good leaf is answered, so the cases fail for their own reason.
        let good_pem = [&*good.certificate_pem];
        let stream = raw_tls(server.address, &good_pem, Some(&good.key_pem), h2).await;
        let mut stream = stream.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        assert!(!is_refused(Ok(stream)).await);
    });
}

#[test]
fn a_client_refuses_whom_it_must_and_says_why() {
    let (a, b) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/b"));
    let impostor = authority("spiffe://c/region/a");
    let trust = bundle(&[&a, &b]);
    let edge = credentials(&leaf(&a, EDGE), &trust);
    let stale = a.issue(&MEMBER.parse().unwrap(), clock::now() - 7_200_000_000_000, HOUR).unwrap();
    let cases = [
        (leaf(&a, EDGE), "is not admitted here"),
        (leaf(&b, "spiffe://c/region/b/member/m"), "is not admitted here"),
        (leaf(&impostor, MEMBER), "is refused: "),
        (stale, "is refused: it expired at "),
    ];
    run(async |group| {
        for (server_leaf, why) in cases {
            let home = credentials(&server_leaf, &bundle(&[&a, &b, &impostor]));
            let server = serve(&group, &home, edges(), Limits::EDGES).await;
            let refusal = ask(&server.url, &edge, members()).await.unwrap_err();
            assert!(refusal.contains(why), "expected {why:?} in {refusal:?}");
        }
        let unreachable = connect("https://127.0.0.1:1", &edge, members()).await.unwrap_err();
        assert!(unreachable.to_string().starts_with("cannot connect to https://127.0.0.1:1: "));
    });
}

#[test]
fn stalled_handshakes_are_cut_and_block_no_other() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let good = leaf(&region, EDGE);
    let edge = credentials(&good, &trust);
    let limits = Limits { handshake_timeout: Duration::from_secs(2), ..Limits::EDGES };
    run(async |group| {
        let server = serve(&group, &server_home, edges(), limits).await;
        let mut stalled = Vec::new();
        for _ in 0..50 {
            stalled.push(TcpStream::connect(server.address).await.unwrap());
        }
        // Authenticated, and then silent instead of speaking HTTP/2.
        let chain = [&*good.certificate_pem];
        let silent = raw_tls(server.address, &chain, Some(&good.key_pem), &[b"h2"]).await;
        let started = clock::monotonic();
        ask(&server.url, &edge, members()).await.unwrap();
        assert!(clock::monotonic() - started < Duration::from_secs(2), "stalled peers block");
        for mut stream in stalled {
            assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        }
        assert!(is_refused(silent).await);
    });
}

#[test]
fn connections_at_the_limit_and_over_it() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let edge = credentials(&leaf(&region, EDGE), &trust);
    let other = credentials(&leaf(&region, "spiffe://c/region/a/edge/f"), &trust);
    let third = credentials(&leaf(&region, "spiffe://c/region/a/edge/g"), &trust);
    let limits = Limits { connections_max: 3, connections_per_identity_max: 2, ..Limits::EDGES };
    run(async |group| {
        let server = serve(&group, &server_home, edges(), limits).await;
        let open = async |home: &Credentials| {
            let channel = connect(&server.url, home, members()).await.unwrap();
            who(channel.clone()).await.map(|_| channel)
        };
        let (_first, second) = (open(&edge).await.unwrap(), open(&edge).await.unwrap());
        assert!(open(&edge).await.is_err(), "one name over its limit");
        let _other = open(&other).await.unwrap();
        assert!(open(&third).await.is_err(), "all together over the limit");
        drop(second);
        // The slot is free once the server has seen the connection close.
        while open(&third).await.is_err() {}
    });
}

#[test]
fn an_old_connection_is_cut_even_if_its_stream_never_ends() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let edge = credentials(&leaf(&region, EDGE), &trust);
    let limits = Limits {
        connection_age_max: Duration::from_millis(300),
        connection_grace: Duration::from_millis(300),
        ..Limits::EDGES
    };
    run(async |group| {
        let server = serve(&group, &server_home, edges(), limits).await;
        let channel = connect(&server.url, &edge, members()).await.unwrap();
        let started = clock::monotonic();
        let mut stream = ticks(channel.clone()).await.unwrap();
        assert_eq!(stream.message().await.unwrap().unwrap(), "0");
        assert!(stream.message().await.is_err(), "cut while waiting for the next tick");
        assert!(clock::monotonic() - started >= Duration::from_millis(500), "grace was given");
        assert!(who(channel).await.is_ok(), "the channel reconnects");
    });
}

/// A server whose CA was removed from the trust file kept its clients for as long as it liked: it
/// alone ended connections.
#[test]
fn a_client_leaves_a_server_that_never_ends_a_connection() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let server_home = credentials(&leaf(&region, MEMBER), &trust);
    let edge_home = Home::new(&leaf(&region, EDGE), &trust);
    let edge = edge_home.credentials();
    let limits = Limits { connection_age_max: 10 * HOUR, ..Limits::EDGES };
    // Not `run`, whose deadline the hour below would pass.
    runtime::current_thread().unwrap().block_on(async {
        let group = TaskGroup::new();
        let server = serve(&group, &server_home, edges(), limits).await;
        let channel = connect(&server.url, &edge, members()).await.unwrap();
        let mut stream = ticks(channel.clone()).await.unwrap();
        assert_eq!(stream.message().await.unwrap().unwrap(), "0");
        // The region is not trusted any more, but for the edge's own certificate.
        let other = authority("spiffe://c/region/a");
        edge_home.install(&leaf(&other, EDGE), &bundle(&[&other]));
        edge.reload().unwrap();
        tokio::time::pause();
        tokio::time::advance(HOUR).await;
        tokio::time::resume();
        server.ticks.send_replace(1);
        let heard = stream.message().await;
        assert!(heard.is_err(), "after an hour the server still speaks: {heard:?}");
        assert!(who(channel).await.is_err(), "it cannot prove its name again");
        group.shutdown().request();
        group.run(Duration::from_secs(10)).await.unwrap();
    });
}

/// Add the new CA, reissue, retire the old CA: a live stream notices none of it.
#[test]
fn a_ca_is_rotated_under_a_live_stream() {
    let (old, new) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/a"));
    let (both, only_new) = (bundle(&[&old, &new]), bundle(&[&new]));
    let (old_member, old_edge) = (leaf(&old, MEMBER), leaf(&old, EDGE));
    let (new_member, new_edge) = (leaf(&new, MEMBER), leaf(&new, EDGE));
    let server_home = Home::new(&old_member, &bundle(&[&old]));
    let edge_home = Home::new(&old_edge, &bundle(&[&old]));
    let (member, edge) = (server_home.credentials(), edge_home.credentials());
    let late = credentials(&old_edge, &both);
    run(async |group| {
        let server = serve(&group, &member, edges(), Limits::EDGES).await;
        let channel = connect(&server.url, &edge, members()).await.unwrap();
        let mut stream = ticks(channel).await.unwrap();
        assert_eq!(stream.message().await.unwrap().unwrap(), "0");
        let before = ask(&server.url, &edge, members()).await.unwrap();
        let steps = [
            (&old_member, &old_edge, &both),
            (&new_member, &old_edge, &both),
            (&new_member, &new_edge, &both),
            (&new_member, &new_edge, &only_new),
        ];
        for (step, (member_leaf, edge_leaf, trust)) in (1..).zip(steps) {
            server_home.install(member_leaf, trust);
            member.reload().unwrap();
            edge_home.install(edge_leaf, trust);
            edge.reload().unwrap();
            server.ticks.send_replace(step);
            assert_eq!(stream.message().await.unwrap().unwrap(), step.to_string());
            ask(&server.url, &edge, members()).await.unwrap();
        }
        let after = ask(&server.url, &edge, members()).await.unwrap();
        assert_ne!(before, after, "new connections prove the name with the new key");
        assert!(ask(&server.url, &late, members()).await.is_err(), "the old CA is retired");

        files::write(&server_home.files().trust, b"not a certificate").unwrap();
        assert!(member.reload().is_err());
        assert!(ask(&server.url, &edge, members()).await.is_ok(), "a bad reload changes nothing");
    });
}

#[test]
fn credentials_of_another_name_are_refused_at_the_start_and_at_a_reload() {
    let region = authority("spiffe://c/region/a");
    let trust = bundle(&[&region]);
    let home = Home::new(&leaf(&region, MEMBER), &trust);
    let member = home.credentials();
    let role = |name: &str| Role::Member { region: "a".into(), name: name.into() };
    member.check_name("c", role("m")).unwrap();
    let file = home.files().certificate.display().to_string();
    for (chain, name, expected) in [
        ("c", "other", "spiffe://c/region/a/member/other"),
        ("d", "m", "spiffe://d/region/a/member/m"),
    ] {
        let error = member.check_name(chain, role(name)).unwrap_err().to_string();
        let told = format!(
            "`tls.cert`: the certificate {file} is for {MEMBER}, this configuration for {expected}; \
             install the certificate of {expected}, or correct `region`, `name` and `genesis`"
        );
        assert_eq!(error, told);
    }
    let error = member.check_name("c", role("no name")).unwrap_err().to_string();
    assert!(error.starts_with("`name`: ") && error.contains("is not a SPIFFE id"), "{error}");

    home.install(&leaf(&region, EDGE), &trust);
    let error = member.reload().unwrap_err().to_string();
    assert!(error.contains(&file) && error.contains(&format!("is for {EDGE}")), "{error}");
    assert_eq!(member.current().id.to_string(), MEMBER, "the credentials before stay in use");
    home.install(&leaf(&region, MEMBER), &trust);
    member.reload().unwrap();
}

#[test]
fn unusable_credentials_are_refused_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let (a, b) = (authority("spiffe://c/region/a"), authority("spiffe://c/region/b"));
    let elsewhere = authority("spiffe://d/region/a");
    let refusal = |leaf: &Leaf, trust: &str| {
        Credentials::load(Home::new(leaf, trust).files()).unwrap_err().to_string()
    };
    let good = leaf(&a, EDGE);
    assert!(refusal(&good, &bundle(&[&b])).contains("no CA of spiffe://c/region/a"));
    assert!(refusal(&good, &bundle(&[&a, &elsewhere])).contains("different chains"));
    assert!(refusal(&good, "").contains("holds no PEM certificate"));
    assert!(refusal(&good, &good.certificate_pem).contains("expected a CA certificate"));
    let mixed = Leaf { key_pem: leaf(&a, EDGE).key_pem, ..good.clone() };
    assert!(refusal(&mixed, &bundle(&[&a])).contains("install both from the same leaf"));
    let sideways = forge(&a, &["spiffe://c/region/b/edge/e"]);
    assert!(refusal(&sideways, &bundle(&[&a, &b])).contains("is refused: "));

    let home = Home::new(&good, &bundle(&[&a]));
    let key = home.files().key;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Credentials::load(home.files()).unwrap_err().to_string();
    assert!(error.contains("has mode 0644, expected 0600: run `chmod 600 "), "{error}");
    std::fs::remove_file(&key).unwrap();
    assert!(
        Credentials::load(home.files()).unwrap_err().to_string().contains("cannot read the key")
    );

    let id: SpiffeId = EDGE.parse().unwrap();
    let stale = a.issue(&id, clock::now() - 7_200_000_000_000, HOUR).unwrap();
    let offline = credentials(&stale, &bundle(&[&a]));
    assert_eq!(offline.current().id, id, "an expired edge still starts");
}
