//! Daemons end with their parent, and serve new credentials after SIGHUP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod realm;

use std::{fs, net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};

use realm::{TestRealm, addresses, plan};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use satrap_identity::pki::{self, Authority, Leaf, Role, SpiffeId, WebAuthority};
use satrap_realm::EtcdPlan;
use satrap_runtime::{clock, files};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// Generous, because the machine may be busy; reaching it is a failure. Shorter than a minute, after
/// which certificates are read again without a signal.
const WAIT: Duration = Duration::from_secs(50);

/// Waits until the log of a process has `text`.
async fn logs(realm: &TestRealm, process: usize, text: &str) {
    let process = &realm.processes[process];
    let logged = async {
        while !process.log_tail().contains(text) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let name = &process.name;
    timeout(WAIT, logged)
        .await
        .unwrap_or_else(|_| panic!("{name} did not log {text}: {}", process.log_tail()));
}

#[test]
fn sighup_reads_credentials_again_and_ends_no_daemon() {
    satrap_runtime::runtime::current_thread().unwrap().block_on(async {
        let mut realm = TestRealm::start(plan(1, &["eu"], 1));
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        let [validator, member, edge] = [0, 1, 4];
        logs(&realm, validator, "validator is listening").await;
        logs(&realm, member, "serving").await;
        // It writes its status once it handles signals.
        while realm.edge_status(0).is_none() {
            sleep(Duration::from_millis(20)).await;
        }
        let files = &realm.files;
        let dirs = [&files.validators[0].dir, &files.members[0].dir, &files.edges[0].dir];
        let dirs = dirs.map(Clone::clone);
        for (process, dir) in [validator, member, edge].into_iter().zip(dirs) {
            fs::write(dir.join("tls.crt"), "no certificate").unwrap();
            let pid = realm.processes[process].pid().to_string();
            assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
            // Without the signal they would be read again within a minute, and the log says why.
            logs(&realm, process, "SIGHUP").await;
            logs(&realm, process, "credentials not reloaded").await;
        }
        for process in [validator, member, edge] {
            // Panics if it has ended.
            realm.processes[process].kill().await;
        }
    });
}

/// A TLS client that takes any certificate and remembers it.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("the client speaks TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The certificate that a listener shows, if it can be reached.
async fn shown(address: SocketAddr) -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.ok()?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tls.connect(ServerName::try_from("x").unwrap(), tcp).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates()?;
    Some(chain.first()?.to_vec())
}

/// Waits until a listener shows the certificate of `leaf`.
async fn shows(address: SocketAddr, leaf: &Leaf) {
    let wanted = pki::certificate_der(leaf.certificate_pem.as_bytes()).unwrap();
    let look = async {
        while shown(address).await.as_deref() != Some(wanted.as_ref()) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(WAIT, look)
        .await
        .unwrap_or_else(|_| panic!("{address} does not show its new certificate"));
}

fn install(dir: &Path, name: &str, leaf: &Leaf) {
    files::write_secret(&dir.join(format!("{name}.key")), leaf.key_pem.as_bytes()).unwrap();
    files::write(&dir.join(format!("{name}.crt")), leaf.certificate_pem.as_bytes()).unwrap();
}

/// Every listener of a validator and of a member shows a renewed certificate at once: without the
/// signal it would within a minute, which is longer than this test waits.
#[test]
fn a_renewed_certificate_is_served_after_sighup() {
    satrap_runtime::runtime::current_thread().unwrap().block_on(async {
        let mut plan = plan(1, &["eu"], 0);
        let listen = addresses(1)[0];
        let etcd = EtcdPlan { listen, url: format!("https://{listen}") };
        plan.regions[0].members[0].etcd = Some(etcd);
        let realm = TestRealm::start(plan);
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        let (validator, member) = (&realm.plan.validators[0], &realm.plan.regions[0].members[0]);
        let dirs = [&realm.files.validators[0].dir, &realm.files.members[0].dir];
        let etcd = listen;
        for address in [validator.listen, validator.mesh_listen, member.client_listen, etcd] {
            let up = async {
                while shown(address).await.is_none() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(WAIT, up).await.unwrap_or_else(|_| panic!("{address} does not listen"));
        }

        let ca = |name: &str| {
            let read = |ending: &str| {
                fs::read_to_string(realm.files.dir.join(format!("ca/{name}.{ending}"))).unwrap()
            };
            Authority::load(&read("crt"), &read("key")).unwrap()
        };
        let (now, ttl) = (clock::now(), Duration::from_secs(12 * 3600));
        let issue = |ca: &Authority, role| {
            let id = SpiffeId::new(realm.genesis.realm().chain_id(), role).unwrap();
            ca.issue(&id, now, ttl).unwrap()
        };
        let of_validator = issue(&ca("validator"), Role::Validator { name: "v0".into() });
        let role = Role::Member { region: "eu".into(), name: "a".into() };
        let of_member = issue(&ca("region-eu"), role);
        let web = WebAuthority::create("etcd", now, ttl).unwrap();
        let of_etcd = web.server(&[etcd.ip().to_string()], now, ttl).unwrap();
        install(dirs[0], "tls", &of_validator);
        install(dirs[1], "tls", &of_member);
        install(dirs[1], "etcd", &of_etcd);
        for process in &realm.processes[..2] {
            let pid = process.pid().to_string();
            assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        }
        shows(validator.listen, &of_validator).await;
        shows(validator.mesh_listen, &of_validator).await;
        shows(member.client_listen, &of_member).await;
        shows(member.peer_listen, &of_member).await;
        shows(etcd, &of_etcd).await;
    });
}

#[test]
fn a_daemon_ends_with_its_parent() {
    satrap_runtime::runtime::current_thread().unwrap().block_on(async {
        let mut realm = TestRealm::start(plan(1, &["eu"], 1));
        let client = realm.client(realm.validator_urls());
        realm.read(&client).await;
        for process in realm.processes.drain(..) {
            let name = process.name.clone();
            // Closes the pipe, as the kernel does when the parent ends.
            let mut orphan = process.orphan();
            let status = timeout(WAIT, orphan.wait()).await;
            let status = status.unwrap_or_else(|_| panic!("{name} outlived its parent")).unwrap();
            assert!(status.success(), "{name}: {status}");
        }
    });
}
