//! The part of a member's configuration that is about clients of etcd. Settings are etcd's, and so are
//! their defaults.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use satrap_host::config::{ConfigError, refuse};
use satrap_regional_api::{
    api::RequestLimits,
    limits::{REQUEST_BYTES, TXN_OPS},
    watch::{self, limits::PROGRESS_INTERVAL_S},
};
use serde::Deserialize;

use super::check_range;
use crate::etcd::{ClientCertificate, EtcdConfig, EtcdTls, TlsVersion};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEtcd {
    listen: SocketAddr,
    urls: Vec<String>,
    /// Without it connections are not protected, and the address must be a loopback one.
    tls: Option<RawEtcdTls>,
    metrics_listen: Option<SocketAddr>,
    request_bytes_max: Option<usize>,
    txn_ops_max: Option<usize>,
    watch_progress_interval_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEtcdTls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    /// Also lets clients in that have no certificate; they log in with a password.
    #[serde(default)]
    client_cert_optional: bool,
    min_tls_version: Option<String>,
}

impl RawEtcd {
    pub(super) fn check(self, base: &Path) -> Result<EtcdConfig, ConfigError> {
        let scheme = if self.tls.is_some() { "https://" } else { "http://" };
        if self.urls.is_empty() || self.urls.iter().any(|url| !url.starts_with(scheme)) {
            let why = format!("{:?}: expected at least one `{scheme}HOST:PORT`", self.urls);
            return Err(refuse("etcd.urls", why));
        }
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            let why = format!("{} can be reached from other hosts: add `[etcd.tls]`", self.listen);
            return Err(refuse("etcd.listen", why));
        }
        let default = RequestLimits::default();
        let requests = RequestLimits {
            bytes_max: self.request_bytes_max.unwrap_or(default.bytes_max),
            txn_ops_max: self.txn_ops_max.unwrap_or(default.txn_ops_max),
        };
        check_range("etcd.request_bytes_max", "bytes", requests.bytes_max, REQUEST_BYTES)?;
        check_range("etcd.txn_ops_max", "operations", requests.txn_ops_max, TXN_OPS)?;
        let interval = watch::Settings::default().progress_interval;
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
