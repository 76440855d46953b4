//! Where clients of etcd reach this member: its own listener, on its own thread.
//!
//! Clients of etcd are users with a name, not processes of the realm. So their certificates are
//! ordinary ones, from a CA of the region's operators, checked against host names as every client of
//! etcd does; the realm's own certificates, which name roles, are good for nothing here.
//!
//! The certificate and key are read again while the process runs, because certificates live shorter
//! than processes. A changed client CA takes effect at the next start.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use satrap_host::{TaskGroup, runtime};
use satrap_regional_api::{
    Backend,
    api::{Api, RingMetrics},
    front::{ALPN, BindError, Front, Security},
    introspect, services, watch,
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use crate::raft::Timing;

/// How soon a rotated certificate is used.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// The listener for clients of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where clients reach it; `member list` shows these.
    pub urls: Vec<String>,
    /// How connections are protected.
    pub tls: Option<EtcdTls>,
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
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Every client does.
    Required,
    /// A client may have one, or a name and password.
    Optional,
}

/// Why the listener cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file cannot be read or used.
    #[error("{path}: {why}; expected {expected}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread or runtime.
    #[error("thread of the etcd listener: {0}")]
    Thread(#[from] io::Error),
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
        path: &PathBuf,
        expected: &'static str,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, EtcdError> {
        let wrong = |why| EtcdError::File { path: path.clone(), why, expected };
        let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
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

    fn load(&self) -> Result<Arc<CertifiedKey>, EtcdError> {
        let chain = Self::file(&self.certificate, "a PEM certificate chain", Self::certificates)?;
        let key = Self::file(&self.key, "the certificate's PEM key", |bytes| {
            let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| error.to_string())?;
            let provider = aws_lc_rs::default_provider();
            CertifiedKey::from_der(chain, key, &provider).map_err(|error| error.to_string())
        })?;
        Ok(Arc::new(key))
    }

    fn server_config(&self) -> Result<(Arc<ServerConfig>, Arc<Shown>), EtcdError> {
        let shown = Arc::new(Shown(ArcSwap::new(self.load()?)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Self::file(&self.client_ca, "PEM certificates of CAs", |bytes| {
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
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| EtcdError::File {
            path: self.certificate.clone(),
            why: error.to_string(),
            expected: "a TLS library that supports TLS 1.3",
        })?;
        let mut config =
            config.with_client_cert_verifier(verifier).with_cert_resolver(shown.clone());
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok((Arc::new(config), shown))
    }
}

/// The ring that is served.
pub struct Served {
    /// Arrives once this member belongs to it.
    pub services: oneshot::Receiver<Backend>,
    /// Its clocks.
    pub timing: Timing,
    /// What it counts.
    pub metrics: RingMetrics,
}

/// As in etcd, streams that need a leader end when there has been none for three elections.
fn watching(timing: Timing) -> watch::Settings {
    watch::Settings { leaderless_max: 3 * timing.election_max, ..watch::Settings::default() }
}

/// Binds the listener and serves on a thread of `group`, once the ring's services have arrived;
/// returns the bound address.
///
/// # Errors
///
/// [`EtcdError`]; nothing listens then.
pub async fn start(
    config: &EtcdConfig,
    ring: Served,
    group: &TaskGroup,
) -> Result<SocketAddr, EtcdError> {
    let Served { services, timing, metrics } = ring;
    let runtime = runtime::current_thread()?;
    let (security, reload) = match &config.tls {
        Some(tls) => {
            let (server, shown) = tls.server_config()?;
            (Security::Tls(server), Some((tls.clone(), shown)))
        }
        None => (Security::Plaintext, None),
    };
    // Bound on the runtime that will serve it.
    let _entered = runtime.enter();
    let front = Front::bind(config.listen, security).await?;
    let address = front.local_address()?;
    let shutdown = group.shutdown();
    drop(_entered);
    group.spawn_thread("etcd", move || {
        runtime.block_on(async move {
            let backend = tokio::select! {
                backend = services => backend.ok(),
                () = shutdown.requested() => None,
            };
            // Without a ring there is nothing to serve; the ring says why it stopped.
            let Some(backend) = backend else { return Ok::<_, EtcdError>(()) };
            let routes = services::routes(&backend, services::Settings::default());
            let routes = introspect::add(routes);
            let mut api = Api::new(backend);
            (api.watching, api.ring_metrics) = (watching(timing), Some(metrics));
            let serve = front.serve(Arc::new(api), routes, shutdown.requested());
            tokio::select! {
                () = serve => {}
                () = keep_fresh(reload) => {}
            }
            shutdown.requested().await;
            Ok(())
        })
    })?;
    Ok(address)
}

/// Never ends.
async fn keep_fresh(reload: Option<(EtcdTls, Arc<Shown>)>) {
    let Some((tls, shown)) = reload else { return std::future::pending().await };
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tls.load() {
            Ok(fresh) => shown.0.store(fresh),
            Err(error) => tracing::error!(%error, "kept the old certificate for clients of etcd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_wait_three_elections_for_a_leader() {
        let timing = Timing { election_max: Duration::from_millis(700), ..Timing::default() };
        assert_eq!(watching(timing).leaderless_max, Duration::from_millis(2_100));
    }
}
