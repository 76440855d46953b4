//! Configures and starts the client listener and the monitoring listener of a member, on one thread of their own.
//!
//! etcd clients are users with a name, not processes of the realm. So the listener shows a certificate from a CA of
//! the region's operators, which etcd clients check against host names, and verifies client certificates from such
//! a CA. The realm's own certificates, which name roles by SPIFFE id, are accepted by neither side.
//!
//! The certificate and key are read again every minute and on SIGHUP, because certificates expire sooner than
//! processes end. A changed client CA takes effect at the next start.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use satrap_runtime::{Fault, TaskGroup, Unusable, files, runtime};
use tokio::sync::oneshot;

use crate::{
    Backend,
    api::{Api, RingMetrics},
    front::{ALPN, BindError, ClientListener, Monitoring, Security},
    introspect,
    limits::{RequestLimits, WatchSettings},
    services,
};

/// The largest file of certificates or keys that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The settings of the client listener and the monitoring listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// The address of the client listener.
    pub listen: SocketAddr,
    /// The URLs by which clients reach it; `member list` shows these.
    pub urls: Vec<String>,
    /// TLS of the client listener. Without it connections are plaintext.
    pub tls: Option<EtcdTls>,
    /// The address of the monitoring listener: metrics and health probes, in plaintext.
    pub metrics_listen: Option<SocketAddr>,
    /// The limits of one request.
    pub requests: RequestLimits,
    /// The interval of progress notifications to watches that asked for them.
    pub watch_progress_interval: Duration,
}

/// The files and policy of a listener with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The certificate chain, PEM, leaf first; names the hosts of `urls`.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// CAs of client certificates, PEM.
    pub client_ca: PathBuf,
    /// Whether a client needs a certificate.
    pub client_certificate: ClientCertificate,
    /// The oldest TLS version that is accepted.
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 with AEAD suites and ephemeral keys only. Programs built with etcd's Go client up to 3.5.7 support
    /// no newer version.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// This version and newer ones.
    fn supported(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::Tls12 => vec![&TLS13, &TLS12],
            Self::Tls13 => vec![&TLS13],
        }
    }
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Every client needs one.
    Required,
    /// A client may have one. Without it, the client authenticates by name and password.
    Optional,
}

/// The certificate that the listener shows now.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl EtcdTls {
    fn file<T>(
        (key, path): (&'static str, &Path),
        expected: &'static str,
        content: io::Result<impl AsRef<[u8]>>,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, Unusable> {
        let wrong = |why: String| {
            let why = format!("{}: {why}", path.display());
            Unusable::new(key, Fault::Setting, why, format_args!("name a file with {expected}"))
        };
        let content = content.map_err(|error| wrong(error.to_string()))?;
        parse(content.as_ref()).map_err(wrong)
    }

    fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err("holds no certificate".into()),
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(error.to_string()),
        }
    }

    fn load(&self) -> Result<Arc<CertifiedKey>, Unusable> {
        let file = ("etcd.tls.cert", &*self.certificate);
        let content = files::read(&self.certificate, FILE_BYTES_MAX);
        let chain = Self::file(file, "a PEM certificate chain", content, Self::certificates)?;
        let file = ("etcd.tls.key", &*self.key);
        let content = files::read_secret(&self.key, FILE_BYTES_MAX);
        let expected = "the PEM key of `etcd.tls.cert` and mode 0600";
        let key = Self::file(file, expected, content, |bytes| {
            let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| error.to_string())?;
            let provider = aws_lc_rs::default_provider();
            CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => "it is not the certificate's key".to_owned(),
                error => error.to_string(),
            })
        })?;
        Ok(Arc::new(key))
    }

    fn server_config(&self) -> Result<(Arc<ServerConfig>, Arc<Shown>), Unusable> {
        let shown = Arc::new(Shown(ArcSwap::new(self.load()?)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let file = ("etcd.tls.client_ca", &*self.client_ca);
        let content = files::read(&self.client_ca, FILE_BYTES_MAX);
        let verifier = Self::file(file, "PEM certificates of CAs", content, |bytes| {
            let mut roots = RootCertStore::empty();
            for certificate in Self::certificates(bytes)? {
                roots.add(certificate).map_err(|error| error.to_string())?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let verifier = match self.client_certificate {
                ClientCertificate::Required => verifier,
                ClientCertificate::Optional => verifier.allow_unauthenticated(),
            };
            verifier.build().map_err(|error| error.to_string())
        })?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.min_version.supported());
        let config = config.expect("the provider has suites for both versions");
        let mut config =
            config.with_client_cert_verifier(verifier).with_cert_resolver(shown.clone());
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // A resumed session keeps the client certificate of the first one without checking its expiry again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok((Arc::new(config), shown))
    }
}

/// The bound addresses of a member's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of the client listener.
    pub clients: SocketAddr,
    /// Of the monitoring listener, if it has one.
    pub metrics: Option<SocketAddr>,
}

/// The ring that the listeners serve.
pub struct Served {
    /// Resolves once this member belongs to the ring.
    pub services: oneshot::Receiver<Backend>,
    /// The metrics of the ring.
    pub metrics: RingMetrics,
}

impl EtcdConfig {
    /// As in etcd, streams that need a leader end when there has been none for three elections.
    fn watching(&self, election_max: Duration) -> WatchSettings {
        WatchSettings {
            progress_interval: self.watch_progress_interval,
            leaderless_max: 3 * election_max,
            fragment_bytes: self.requests.message_bytes_max(),
            ..WatchSettings::default()
        }
    }

    async fn bind(&self, security: Security) -> Result<Bound, Unusable> {
        let unusable = |setting| {
            move |error| match error {
                BindError::Io(address, error) => Unusable::listen(setting, address, &error),
                needs_tls @ BindError::NeedsTls(_) => {
                    Unusable::new(setting, Fault::Setting, needs_tls, "add `[etcd.tls]`")
                }
            }
        };
        let of_clients = unusable("etcd.listen");
        let listener = ClientListener::bind(self.listen, security).await.map_err(&of_clients)?;
        let clients =
            listener.local_address().map_err(|e| of_clients(BindError::Io(self.listen, e)))?;
        let Some(address) = self.metrics_listen else {
            let addresses = Addresses { clients, metrics: None };
            return Ok(Bound { listener, monitoring: None, addresses });
        };
        let of_metrics = unusable("etcd.metrics_listen");
        let monitoring = Monitoring::bind(address).await.map_err(&of_metrics)?;
        let metrics =
            monitoring.local_address().map_err(|e| of_metrics(BindError::Io(address, e)))?;
        let addresses = Addresses { clients, metrics: Some(metrics) };
        Ok(Bound { listener, monitoring: Some(monitoring), addresses })
    }
}

/// The bound listeners of a member.
struct Bound {
    listener: ClientListener,
    monitoring: Option<Monitoring>,
    addresses: Addresses,
}

/// Binds the listeners and returns their addresses; serves on a thread of `group` once `ring` and
/// then its services have arrived. `election_max` is the longest election timeout of the ring.
///
/// # Errors
///
/// [`Unusable`] names the setting; nothing listens then.
pub async fn start(
    config: &EtcdConfig,
    election_max: Duration,
    ring: oneshot::Receiver<Served>,
    group: &TaskGroup,
) -> Result<Addresses, Unusable> {
    let security = match &config.tls {
        Some(tls) => {
            let (server, shown) = tls.server_config()?;
            let tls = tls.clone();
            group.keep_fresh("certificate for etcd clients", move || {
                tls.load().map(|fresh| shown.0.store(fresh))
            });
            Security::Tls(server)
        }
        None => Security::Plaintext,
    };
    let (watching, requests) = (config.watching(election_max), config.requests);
    let (config, shutdown) = (config.clone(), group.shutdown());
    let (bound, addresses) = oneshot::channel();
    let thread = move || {
        let runtime = runtime::current_thread();
        let runtime = runtime.map_err(|error| Unusable::resources("etcd.listen", &error))?;
        runtime.block_on(async move {
            // Bind on the runtime that serves the listeners. The caller reports the addresses or the error.
            let Bound { listener, monitoring, addresses } = match config.bind(security).await {
                Ok(listeners) => listeners,
                Err(error) => {
                    shutdown.request();
                    let _ = bound.send(Err(error));
                    return Ok(());
                }
            };
            // If the caller is gone, it has stopped the group, which ends the tasks below.
            let _ = bound.send(Ok(addresses));
            let served = async {
                let Served { services, metrics } = ring.await.ok()?;
                Some((services.await.ok()?, metrics))
            };
            let served = tokio::select! {
                served = served => served,
                () = shutdown.requested() => None,
            };
            // Without a ring there is nothing to serve. The ring has logged why it stopped.
            let Some((backend, metrics)) = served else { return Ok(()) };
            let mut api = Api::new(backend);
            (api.watching, api.requests) = (watching, requests);
            api.ring_metrics = Some(metrics);
            let api = Arc::new(api);
            let routes = services::routes(&api, services::Settings::default());
            let routes = introspect::add(routes, &shutdown);
            let monitored = async {
                if let Some(monitoring) = monitoring {
                    monitoring.serve(api.clone(), shutdown.requested()).await;
                }
                Ok(())
            };
            let served = listener.serve(api.clone(), routes, shutdown.requested());
            // An error ends the process: without its listener, it would look healthy to its supervisor.
            tokio::try_join!(served, monitored)?;
            shutdown.requested().await;
            Ok::<_, Box<dyn Error>>(())
        })
    };
    let refused = |error| Unusable::resources("etcd.listen", &error);
    group.spawn_thread("etcd", thread).map_err(refused)?;
    let gone = |_| refused(io::Error::other("its thread ended, and the log says why"));
    addresses.await.map_err(gone)?
}

#[cfg(test)]
mod tests;
