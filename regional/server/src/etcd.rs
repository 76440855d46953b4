//! Where clients of etcd reach this member: its own listener, on its own thread.
//!
//! Clients of etcd are users with a name, not processes of the realm. So their certificates are
//! ordinary ones, from a CA of the region's operators, checked against host names as every client of
//! etcd does; the realm's own certificates, which name roles, are good for nothing here.
//!
//! The certificate and key are read again every minute and on SIGHUP, because certificates live
//! shorter than processes. A changed client CA takes effect at the next start.

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
use satrap_host::{Fault, TaskGroup, Unusable, files, runtime};
use satrap_regional_api::{
    Backend,
    api::{Api, RequestLimits, RingMetrics},
    front::{ALPN, BindError, Front, Monitoring, Security},
    introspect, services, watch as watches,
};
use tokio::{
    sync::{oneshot, watch},
    time::{MissedTickBehavior, interval},
};

use crate::raft::Timing;

/// How soon a rotated certificate is used.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// A larger file holds no certificates that a listener shows or trusts.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The listener for clients of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where clients reach it; `member list` shows these.
    pub urls: Vec<String>,
    /// How connections are protected.
    pub tls: Option<EtcdTls>,
    /// Where monitoring reads figures and asks for health, in plaintext and without a certificate.
    pub metrics_listen: Option<SocketAddr>,
    /// What one request may be.
    pub requests: RequestLimits,
    /// How often a watch that asked for it hears how far it is.
    pub watch_progress_interval: Duration,
}

/// Files of a listener with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The chain, PEM, leaf first; names the hosts of `urls`.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// CAs of client certificates, PEM.
    pub client_ca: PathBuf,
    /// Whether a client needs a certificate.
    pub client_certificate: ClientCertificate,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// With suites that authenticate what they encrypt and keys that are thrown away. Clients that were
    /// built with etcd's client up to 3.5.7 speak no newer one.
    Tls12,
    /// The newest.
    Tls13,
}

impl TlsVersion {
    /// This and newer ones.
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
    /// Every client does.
    Required,
    /// A client may have one, or a name and password.
    Optional,
}

/// The certificate that is shown now.
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
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, Unusable> {
        let wrong = |why: String| {
            let why = format!("{}: {why}", path.display());
            Unusable::new(key, Fault::Setting, why, format_args!("name a file with {expected}"))
        };
        let bytes = files::read(path, FILE_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
        read(&bytes).map_err(wrong)
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
        let chain = Self::file(file, "a PEM certificate chain", Self::certificates)?;
        let file = ("etcd.tls.key", &*self.key);
        let key = Self::file(file, "the PEM key of `etcd.tls.cert`", |bytes| {
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
        let verifier = Self::file(file, "PEM certificates of CAs", |bytes| {
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
        // A resumed session shows the certificate of the first one, and its expiry is not judged again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok((Arc::new(config), shown))
    }
}

/// Where a member can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// By clients of etcd.
    pub clients: SocketAddr,
    /// By monitoring, if it has a listener of its own.
    pub metrics: Option<SocketAddr>,
}

/// A ring to serve.
pub struct Served {
    /// Arrives once this member belongs to it.
    pub services: oneshot::Receiver<Backend>,
    /// Its counters.
    pub metrics: RingMetrics,
}

impl EtcdConfig {
    /// As in etcd, streams that need a leader end when there has been none for three elections.
    fn watching(&self, timing: Timing) -> watches::Settings {
        watches::Settings {
            progress_interval: self.watch_progress_interval,
            leaderless_max: 3 * timing.election_max,
            fragment_bytes: self.requests.message_bytes_max(),
            ..watches::Settings::default()
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
        let front = Front::bind(self.listen, security).await.map_err(&of_clients)?;
        let clients =
            front.local_address().map_err(|e| of_clients(BindError::Io(self.listen, e)))?;
        let Some(address) = self.metrics_listen else {
            let addresses = Addresses { clients, metrics: None };
            return Ok(Bound { front, monitoring: None, addresses });
        };
        let of_metrics = unusable("etcd.metrics_listen");
        let monitoring = Monitoring::bind(address).await.map_err(&of_metrics)?;
        let metrics =
            monitoring.local_address().map_err(|e| of_metrics(BindError::Io(address, e)))?;
        let addresses = Addresses { clients, metrics: Some(metrics) };
        Ok(Bound { front, monitoring: Some(monitoring), addresses })
    }
}

/// Listeners of a member.
struct Bound {
    front: Front,
    monitoring: Option<Monitoring>,
    addresses: Addresses,
}

/// Binds the listeners and returns their addresses; serves on a thread of `group` once `ring`, whose
/// clocks are `timing`, and then its services have arrived.
///
/// # Errors
///
/// [`Unusable`] names the setting; nothing listens then.
pub async fn start(
    config: &EtcdConfig,
    timing: Timing,
    ring: oneshot::Receiver<Served>,
    group: &TaskGroup,
) -> Result<Addresses, Unusable> {
    let (security, reload) = match &config.tls {
        Some(tls) => {
            let (server, shown) = tls.server_config()?;
            (Security::Tls(server), Some((tls.clone(), shown)))
        }
        None => (Security::Plaintext, None),
    };
    let (watching, requests) = (config.watching(timing), config.requests);
    let (config, reloads, shutdown) = (config.clone(), group.reloads(), group.shutdown());
    let (bound, addresses) = oneshot::channel();
    let thread = move || {
        let runtime = runtime::current_thread();
        let runtime = runtime.map_err(|error| Unusable::resources("etcd.listen", &error))?;
        runtime.block_on(async move {
            // Bound on the runtime that serves them. Where they are, or why not, is the caller's to say.
            let Bound { front, monitoring, addresses } = match config.bind(security).await {
                Ok(listeners) => listeners,
                Err(error) => {
                    shutdown.request();
                    let _ = bound.send(Err(error));
                    return Ok(());
                }
            };
            // A caller that is gone has stopped the group, which ends what follows.
            let _ = bound.send(Ok(addresses));
            let served = async {
                let Served { services, metrics } = ring.await.ok()?;
                Some((services.await.ok()?, metrics))
            };
            let served = tokio::select! {
                served = served => served,
                () = shutdown.requested() => None,
            };
            // Without a ring there is nothing to serve; the ring says why it stopped.
            let Some((backend, metrics)) = served else { return Ok(()) };
            let routes = services::routes(&backend, services::Settings::default());
            let routes = introspect::add(routes, &shutdown);
            let mut api = Api::new(backend);
            (api.watching, api.requests) = (watching, requests);
            api.ring_metrics = Some(metrics);
            let api = Arc::new(api);
            let monitored = async {
                if let Some(monitoring) = monitoring {
                    monitoring.serve(api.clone(), shutdown.requested()).await;
                }
                Ok(())
            };
            let served = front.serve(api.clone(), routes, shutdown.requested());
            // An error ends the process, which would look alive to its supervisor without a listener.
            tokio::select! {
                served = async { tokio::try_join!(served, monitored) } => { served?; }
                () = keep_fresh(reload, reloads) => {}
            }
            shutdown.requested().await;
            Ok::<_, Box<dyn Error>>(())
        })
    };
    let refused = |error| Unusable::resources("etcd.listen", &error);
    group.spawn_thread("etcd", thread).map_err(refused)?;
    let gone = |_| refused(io::Error::other("its thread ended, and the log says why"));
    addresses.await.map_err(gone)?
}

/// Never ends.
async fn keep_fresh(reload: Option<(EtcdTls, Arc<Shown>)>, mut asked: watch::Receiver<()>) {
    let Some((tls, shown)) = reload else { return std::future::pending().await };
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The group that sends outlives its threads.
            _ = asked.changed() => {}
        }
        match tls.load() {
            Ok(fresh) => shown.0.store(fresh),
            Err(error) => tracing::error!(%error, "kept the old certificate for clients of etcd"),
        }
    }
}

#[cfg(test)]
mod tests;
