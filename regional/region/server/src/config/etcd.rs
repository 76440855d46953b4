//! The `[etcd]` section of `region.toml`: the listener, TLS and limits for etcd clients.
//!
//! Request limits, the watch progress interval and the minimum TLS version default to etcd's values.
//! Client authentication is stricter: a client certificate is required unless
//! `client_cert_optional` is set, and plaintext is allowed on loopback only.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_identity::config::{ConfigError, refuse};
use satrap_ring_api::{
    limits::{REQUEST_BYTES, RequestLimits, TXN_OPS, WatchSettings},
    listener::{ClientCertificate, EtcdConfig, EtcdTls, TlsVersion},
    watch::limits::PROGRESS_INTERVAL_S,
};
use serde::Deserialize;
use tonic::transport::Uri;

use super::check_range;

/// The etcd API of a member.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEtcd {
    /// Address to listen on for etcd clients (`--listen-client-urls` of etcd). Must be a loopback
    /// address unless `tls` is set.
    listen: SocketAddr,
    /// URLs that the member list gives to clients for this member (`--advertise-client-urls` of
    /// etcd).
    urls: Vec<String>,
    /// TLS for clients. Without it connections are plaintext.
    tls: Option<RawEtcdTls>,
    /// Address of a plaintext listener for monitoring only: `/metrics`, `/health`, `/livez`,
    /// `/readyz` and `/version` (`--listen-metrics-urls` of etcd). Without it, only `listen` serves
    /// these paths.
    metrics_listen: Option<SocketAddr>,
    /// Maximum size of a request, 1 KiB to 6 MiB (`--max-request-bytes` of etcd).
    ///
    /// Default: `RequestLimits::bytes_max`.
    request_bytes_max: Option<usize>,
    /// Maximum number of operations in a transaction, 1 to 4096 (`--max-txn-ops` of etcd).
    ///
    /// Default: `RequestLimits::txn_ops_max`.
    txn_ops_max: Option<usize>,
    /// Interval of progress notifications to idle watches with `progress_notify`; 1 s to 1 day.
    ///
    /// Default: `WatchSettings::progress_interval`.
    watch_progress_interval_s: Option<u64>,
}

/// TLS for etcd clients.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEtcdTls {
    /// PEM file with the certificate chain that this member presents to clients.
    cert: PathBuf,
    /// PEM file with the private key of `cert`; mode 0600.
    key: PathBuf,
    /// PEM file with the CAs whose client certificates are accepted.
    client_ca: PathBuf,
    /// Accepts clients without a certificate as well. Once authentication is on they log in with user
    /// name and password; before that, they may do everything.
    #[serde(default)]
    client_cert_optional: bool,
    /// Minimum TLS version, `1.2` or `1.3`.
    ///
    /// Default: 1.2.
    min_tls_version: Option<String>,
}

impl RawEtcd {
    pub(super) fn check(self, base: &Path) -> Result<EtcdConfig, ConfigError> {
        let (scheme, is_set) = match &self.tls {
            Some(_) => ("https", "is set"),
            None => ("http", "is not set"),
        };
        if self.urls.is_empty() || !self.urls.iter().all(|url| is_client_url(url, scheme)) {
            let why = format!(
                "{:?}: expected one or more URLs, each {scheme}://HOST:PORT, because [etcd.tls] \
                 {is_set}",
                self.urls
            );
            return Err(refuse("etcd.urls", why));
        }
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            let why = format!(
                "{} can be reached from other hosts: add [etcd.tls], or listen on a loopback address",
                self.listen
            );
            return Err(refuse("etcd.listen", why));
        }
        let default = RequestLimits::default();
        let requests = RequestLimits {
            bytes_max: self.request_bytes_max.unwrap_or(default.bytes_max),
            txn_ops_max: self.txn_ops_max.unwrap_or(default.txn_ops_max),
        };
        check_range("etcd.request_bytes_max", "bytes", requests.bytes_max, REQUEST_BYTES)?;
        check_range("etcd.txn_ops_max", "operations", requests.txn_ops_max, TXN_OPS)?;
        let interval = WatchSettings::default().progress_interval;
        let interval = self.watch_progress_interval_s.map_or(interval, Duration::from_secs);
        let interval_s = interval.as_secs();
        check_range("etcd.watch_progress_interval_s", "s", interval_s, PROGRESS_INTERVAL_S)?;
        Ok(EtcdConfig {
            listen: self.listen,
            urls: self.urls,
            tls: self.tls.map(|tls| tls.check(base)).transpose()?,
            metrics_listen: self.metrics_listen,
            requests,
            watch_progress_interval: interval,
        })
    }
}

/// Whether `url` is `{scheme}://HOST:PORT` and nothing more, which is what etcd's clients dial.
fn is_client_url(url: &str, scheme: &str) -> bool {
    let Ok(url) = url.parse::<Uri>() else { return false };
    url.scheme_str() == Some(scheme)
        && url.host().is_some_and(|host| !host.is_empty())
        && url.port_u16().is_some()
        && url.path() == "/"
        && url.query().is_none()
}

impl RawEtcdTls {
    fn check(self, base: &Path) -> Result<EtcdTls, ConfigError> {
        let min_version = match self.min_tls_version.as_deref() {
            None | Some("1.2") => TlsVersion::Tls12,
            Some("1.3") => TlsVersion::Tls13,
            Some(other) => {
                let why = format!("{other:?}: expected \"1.2\" or \"1.3\"");
                return Err(refuse("etcd.tls.min_tls_version", why));
            }
        };
        Ok(EtcdTls {
            certificate: base.join(self.cert),
            key: base.join(self.key),
            client_ca: base.join(self.client_ca),
            client_certificate: match self.client_cert_optional {
                true => ClientCertificate::Optional,
                false => ClientCertificate::Required,
            },
            min_version,
        })
    }
}
