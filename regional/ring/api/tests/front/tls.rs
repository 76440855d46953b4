//! Certificates: who may connect, and as whom they are judged.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use satrap_proto::etcdserverpb::auth_client::AuthClient;
use satrap_proto::etcdserverpb::kv_client::KvClient;
use satrap_proto::etcdserverpb::{self as pb};
use satrap_ring_api::front::{ALPN, Security};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::common::solo;
use crate::harness::Member;
use crate::kv::{put, range};
use crate::limits::{message_bytes_max, put_of};

struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, common_name: &str) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn server(&self) -> Security {
        let (certificate, key) = self.leaf("server");
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        Security::Tls(Arc::new(config))
    }

    /// Completes the client's half of the handshake; a server may still refuse after that.
    async fn connect(
        &self,
        member: &Member,
        common_name: Option<&str>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match common_name {
            None => config.with_no_client_auth(),
            Some(name) => {
                let (certificate, key) = self.leaf(name);
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(config)), member.address);
        let connect = service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                let tls = connector.connect("localhost".try_into().unwrap(), tcp).await?;
                Ok::<_, io::Error>(TokioIo::new(tls))
            }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await
    }
}

/// Adds these users, without passwords, the first of them as administrator.
async fn enable_authentication(channel: Channel, users: &[&str]) {
    let mut auth = AuthClient::new(channel);
    for name in users {
        let options = Some(satrap_proto::authpb::UserAddOptions { no_password: true });
        let name = (*name).to_owned();
        let user = pb::AuthUserAddRequest { name, options, ..Default::default() };
        auth.user_add(user).await.unwrap();
    }
    auth.role_add(pb::AuthRoleAddRequest { name: "root".to_owned() }).await.unwrap();
    let user = users[0].to_owned();
    let grant = pb::AuthUserGrantRoleRequest { user, role: "root".to_owned() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
}

/// The common name of a verified certificate speaks for the client once authentication is on.
#[tokio::test]
async fn a_certificate_is_a_user() {
    let ca = Ca::new();
    let member = Member::serve(solo::start().0, ca.server()).await;
    let root = ca.connect(&member, Some("root")).await.unwrap();
    enable_authentication(root.clone(), &["root", "reader"]).await;

    KvClient::new(root).put(put("k", "v")).await.unwrap();
    let reader = ca.connect(&member, Some("reader")).await.unwrap();
    let error = KvClient::new(reader.clone()).range(range("k", "")).await.unwrap_err();
    let denied = (Code::PermissionDenied, "etcdserver: permission denied");
    assert_eq!((error.code(), error.message()), denied);

    let mut request = tonic::Request::new(range("k", ""));
    request.metadata_mut().insert("token", "made-up.1".parse().unwrap());
    let error = KvClient::new(reader).range(request).await.unwrap_err();
    let unknown = (Code::Unauthenticated, "etcdserver: invalid auth token");
    assert_eq!((error.code(), error.message()), unknown, "a token goes first");
}

/// etcd writes down who asks by certificate, and bounds the entry that holds it.
#[tokio::test]
async fn the_name_of_a_certificate_counts_in_the_size_of_a_request() {
    let ca = Ca::new();
    let member = Member::serve(solo::start().0, ca.server()).await;
    let root = ca.connect(&member, Some("root")).await.unwrap();
    // Tag and length of the name, the name, and tag and value of a small revision of authentication.
    let bytes_max = message_bytes_max(&member) - (2 + "root".len()) - 2;
    let mut kv = KvClient::new(root.clone());
    for enabled in [false, true] {
        if enabled {
            enable_authentication(root.clone(), &["root"]).await;
        }
        kv.put(put_of(bytes_max)).await.unwrap();
        let error = kv.put(put_of(bytes_max + 1)).await.unwrap_err();
        let too_large = (Code::InvalidArgument, "etcdserver: request is too large");
        assert_eq!((error.code(), error.message()), too_large, "authentication: {enabled}");
    }
}

#[tokio::test]
async fn a_stranger_is_not_served() {
    let ca = Ca::new();
    let member = Member::serve(solo::start().0, ca.server()).await;
    let strangers = [ca.connect(&member, None).await, Ca::new().connect(&member, None).await];
    // In TLS 1.3 a client may learn only with its first request that it was refused.
    for channel in strangers.into_iter().flatten() {
        KvClient::new(channel).put(put("k", "v")).await.unwrap_err();
    }
    let revision = member.backend.inspect(|keyspace| keyspace.store().revision());
    assert_eq!(revision, 1, "nothing was written");
}
