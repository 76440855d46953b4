//! Opens gRPC channels to other processes over mutual TLS, and checks that the server has the expected name.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::aging::Aging;
use super::limits::{
    CHANNEL_AGE_MAX, CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, LOCAL_ERROR_RESET_STREAMS_MAX, STREAM_WINDOW_BYTES,
};
use super::verifier::{agreed_on_h2, client_config};
use super::{Credentials, PeerRule};
use satrap_proto::fault;
use satrap_runtime::coalesce::Coalesce;

/// Name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SCHEME: &str = "https://";

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configured URL is malformed.
    #[error("{0:?} is not an address; expected https://HOST:PORT")]
    Url(String),
    /// The peer proved a name that is not admitted, or none that is believed here.
    #[error("{url} is not trusted here: {why}")]
    Untrusted {
        /// Where to.
        url: String,
        /// The reason of the refusal.
        why: String,
    },
    /// The peer is away, or refused this process; try again later.
    #[error("cannot connect to {url}: {why}")]
    Unreachable {
        /// Where to.
        url: String,
        /// The chain of causes.
        why: String,
    },
}

/// Connects to `url` and verifies that `rule` admits the server.
///
/// The channel reconnects on its next use after a failure, with the credentials of that moment, and a
/// connection fails at its age at the latest (MTLS-4), so that a server must prove its name again. A
/// server refuses *our* certificate only after this returns: the first request then fails.
///
/// # Errors
///
/// [`ConnectError`]
pub async fn connect(
    url: &str,
    credentials: &Credentials,
    rule: PeerRule,
) -> Result<Channel, ConnectError> {
    let (endpoint, target) = endpoint(url)?;
    let connector = connector(target, credentials, rule);
    endpoint
        .connect_with_connector(service_fn(move |_| connector()))
        .await
        .map_err(|error| refused(url, &error))
}

/// Whether this process refused the peer's certificate, or there was no connection.
fn refused(url: &str, error: &(dyn std::error::Error + 'static)) -> ConnectError {
    let url = url.to_owned();
    let chain = std::iter::successors(Some(error), |error| error.source());
    let tls = chain.filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref());
    let untrusted = tls.filter_map(|error| error.downcast_ref::<rustls::Error>()).find_map(
        |error| match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(why)) => {
                Some(why.to_string())
            }
            rustls::Error::InvalidCertificate(why) => Some(why.to_string()),
            _ => None,
        },
    );
    match untrusted {
        Some(why) => ConnectError::Untrusted { url, why },
        None => ConnectError::Unreachable { url, why: fault::causes(error) },
    }
}

/// Like [`connect`], but the first use connects. For peers that may start later than we do.
///
/// # Errors
///
/// [`ConnectError::Url`]
pub fn connect_lazy(
    url: &str,
    credentials: &Credentials,
    rule: PeerRule,
) -> Result<Channel, ConnectError> {
    let (endpoint, target) = endpoint(url)?;
    let connector = connector(target, credentials, rule);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_| connector())))
}

/// Refuses what [`connect`] would not even try, for configurations.
///
/// # Errors
///
/// [`ConnectError::Url`]
pub fn check_url(url: &str) -> Result<(), ConnectError> {
    endpoint(url).map(drop)
}

fn endpoint(url: &str) -> Result<(Endpoint, Arc<str>), ConnectError> {
    let refuse = || ConnectError::Url(url.to_owned());
    let target = url.strip_prefix(SCHEME).ok_or_else(refuse)?.trim_end_matches('/');
    // The library insists on doing TLS itself for `https`; here the connector does it.
    let endpoint = Endpoint::from_shared(format!("http://{target}")).map_err(|_| refuse())?;
    let uri = endpoint.uri();
    let bare = uri.path() == "/" && uri.query().is_none();
    let complete = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
    if !bare || !complete {
        return Err(refuse());
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_max_local_error_reset_streams(LOCAL_ERROR_RESET_STREAMS_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok((endpoint, target.into()))
}

type TlsIo = TokioIo<Aging<Coalesce<tokio_rustls::client::TlsStream<TcpStream>>>>;

fn connector(
    target: Arc<str>,
    credentials: &Credentials,
    rule: PeerRule,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = io::Result<TlsIo>> + Send>> + Send + 'static
{
    let tls = TlsConnector::from(Arc::new(client_config(credentials.clone(), rule)));
    // Neither sent nor compared (MTLS-2); the library wants one.
    let unused = ServerName::try_from("peer.invalid").expect("a valid DNS name");
    move || {
        let (target, tls, unused) = (target.clone(), tls.clone(), unused.clone());
        Box::pin(async move {
            let tcp = TcpStream::connect(&*target).await?;
            tcp.set_nodelay(true)?;
            let stream = tls.connect(unused, tcp).await?;
            if !agreed_on_h2(stream.get_ref().1) {
                return Err(io::Error::other("the server does not speak HTTP/2"));
            }
            Ok(TokioIo::new(Aging::new(Coalesce::new(stream), CHANNEL_AGE_MAX)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_a_port_and_nothing_else() {
        for good in ["https://localhost:1", "https://127.0.0.1:443/", "https://[::1]:9"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "localhost:1",
            "http://localhost:1",
            "https://localhost",
            "https://:1",
            "https://h:1/x",
            "https://h:1?q",
        ] {
            assert!(matches!(endpoint(bad), Err(ConnectError::Url(_))), "{bad}");
        }
    }
}
