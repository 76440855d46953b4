//! Connects to the members of a ring as an etcd client does, by ordinary TLS with the region's own CA and a certificate
//! that names a user, and finds a member that a majority answers.

use std::{fs, io, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use satrap_proto::etcdserverpb::{
    Member, MemberListRequest, StatusRequest, cluster_client::ClusterClient,
    maintenance_client::MaintenanceClient,
};
use satrap_proto::fault;
use satrap_realm::description::Client as Files;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{error::Error, text::one_line};

/// Bound on name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An etcd client's credentials, and the addresses of the members.
#[derive(Clone)]
pub struct EtcdClient {
    tls: TlsConnector,
    /// Where the members listen.
    pub endpoints: Vec<String>,
}

impl EtcdClient {
    /// Loads the credentials, and opens no connection yet.
    ///
    /// # Errors
    ///
    /// If a file is missing or wrong.
    pub fn open(files: &Files, endpoints: Vec<String>) -> Result<Self, Error> {
        let read = |path: &std::path::PathBuf| {
            fs::read(path).map_err(|e| Error::file("etcd credentials", path, &e))
        };
        let wrong = |path: &std::path::PathBuf, why: &dyn std::fmt::Display| {
            Error::usage(format!("etcd credentials {}: {why}", path.display()))
        };
        let certificates = |path: &std::path::PathBuf| {
            let pem = read(path)?;
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            certificates.map_err(|e| wrong(path, &e))
        };
        let (authorities, chain) = (certificates(&files.ca)?, certificates(&files.cert)?);
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|e| wrong(&files.ca, &e))?;
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?);
        let key = key.map_err(|e| wrong(&files.key, &e))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(Error::internal)?.with_root_certificates(roots);
        let config = config.with_client_auth_cert(chain, key);
        let mut config = config.map_err(|e| wrong(&files.cert, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), endpoints })
    }

    /// A channel to one member.
    ///
    /// # Errors
    ///
    /// If no server answers there, or the server is not the one that the address names.
    pub async fn connect(&self, url: &str) -> Result<Channel, Error> {
        let failed = |why: &dyn std::fmt::Display| Error::unavailable(format!("{url}: {why}"));
        let target = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/').to_owned();
        // tonic does TLS itself for `https`; here the connector does it.
        let endpoint = Endpoint::from_shared(format!("http://{target}"));
        let endpoint = endpoint.map_err(|e| failed(&e))?.connect_timeout(CONNECT_TIMEOUT);
        let host = endpoint.uri().host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let host = ServerName::try_from(host).map_err(|e| failed(&e))?;
        let tls = self.tls.clone();
        let connector = service_fn(move |_| {
            let (target, tls, host) = (target.clone(), tls.clone(), host.clone());
            async move {
                let tcp = TcpStream::connect(&target).await?;
                tcp.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(tls.connect(host, tcp).await?))
            }
        });
        let channel = endpoint.connect_with_connector(connector).await;
        channel.map_err(|e| failed(&fault::causes(&e)))
    }

    /// A channel to the first member that answers, and that a majority of the ring answers: one that was
    /// removed or partitioned would fail, or return stale state.
    ///
    /// # Errors
    ///
    /// If there is none, with each one's reason.
    pub async fn any(&self) -> Result<Channel, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::usage("the region has no endpoint for etcd clients"));
        }
        let mut asked: FuturesUnordered<_> =
            self.endpoints.iter().map(|url| self.of_majority(url)).collect();
        let mut reasons = Vec::new();
        while let Some(answered) = asked.next().await {
            match answered {
                Ok(channel) => return Ok(channel),
                Err(error) => reasons.push(format!("  {}", one_line(&error.message))),
            }
        }
        reasons.sort();
        Err(Error::unavailable(format!(
            "no member of the ring answers for a majority; start its members again, or see \
             deploy/runbooks/forced-recovery.md if their disks are lost\n{}",
            reasons.join("\n")
        )))
    }

    /// Asks the member with this id no more, unless it is the only one that is known. Members say who they are:
    /// one that has just started may not have told the ring its addresses.
    pub async fn leave_out(&mut self, id: u64) {
        let urls = std::mem::take(&mut self.endpoints);
        let asked = join_all(urls.iter().map(|url| self.member_at(url))).await;
        let any_stays = asked.iter().any(|answered| *answered != Some(id));
        let stays = |answered: Option<u64>| answered != Some(id) || !any_stays;
        let kept = urls.iter().zip(asked).filter(|(_, answered)| stays(*answered));
        self.endpoints = kept.map(|(url, _)| url.clone()).collect();
    }

    /// The id of the member that answers at an address; none if none does.
    async fn member_at(&self, url: &str) -> Option<u64> {
        let mut maintenance = MaintenanceClient::new(self.connect(url).await.ok()?);
        let status = timeout(CONNECT_TIMEOUT, maintenance.status(StatusRequest {})).await;
        Some(status.ok()?.ok()?.into_inner().header?.member_id)
    }

    /// A channel to this member, if a majority answers it; learners refuse.
    async fn of_majority(&self, url: &str) -> Result<Channel, Error> {
        let channel = self.connect(url).await?;
        let listed = members(&mut ClusterClient::new(channel.clone())).await;
        listed.map_err(|error| Error { message: format!("{url}: {}", error.message), ..error })?;
        Ok(channel)
    }

    /// The cluster service, at the first member that answers.
    ///
    /// # Errors
    ///
    /// As [`EtcdClient::any`].
    pub async fn cluster(&self) -> Result<ClusterClient<Channel>, Error> {
        Ok(ClusterClient::new(self.any().await?))
    }

    /// The maintenance service, at the first member that answers.
    ///
    /// # Errors
    ///
    /// As [`EtcdClient::any`].
    pub async fn maintenance(&self) -> Result<MaintenanceClient<Channel>, Error> {
        Ok(MaintenanceClient::new(self.any().await?))
    }
}

/// The members of the ring, invited ones included, by a linearizable read.
///
/// # Errors
///
/// The ring's refusal, or that it does not answer.
pub async fn members(cluster: &mut ClusterClient<Channel>) -> Result<Vec<Member>, Error> {
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await;
    list.map(|reply| reply.into_inner().members).map_err(|status| answer(&status))
}

/// The error for a server that refused, or could not answer.
#[must_use]
pub fn answer(status: &Status) -> Error {
    // Members prefix their own messages with `satrap: `, as etcd does; so does this program.
    let text = fault::text(status);
    let text = match one_line(text.strip_prefix("satrap: ").unwrap_or(&text)) {
        text if text.is_empty() => fault::no_reason(status.code()),
        text => text,
    };
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => {
            Error::unavailable(text)
        }
        _ => Error::refused(text),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_refusal_without_a_text_is_named_by_its_code() {
        let refused = answer(&Status::new(Code::FailedPrecondition, "satrap: "));
        assert_eq!(refused.message, "the server answered FailedPrecondition and gave no reason");
        assert_eq!(refused.kind, Kind::Refused);
        assert_eq!(
            answer(&Status::new(Code::NotFound, "satrap: no such member")).message,
            "no such member"
        );
    }
}
