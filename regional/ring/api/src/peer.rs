//! Identifies the caller of a request, whose permissions apply to it.
//!
//! A client is identified by a bearer token, which the ring issued, or by the common name of its certificate, which the
//! listener verified. As in etcd, the token takes precedence, and an invalid token is an error even with a valid
//! certificate. Permissions are checked where the request is applied or read, not here, so that a revoked permission
//! takes effect at once.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use satrap_ring_core::{Caller, Keyspace, Refusal};

/// The headers with a token: etcd clients use `token`, HTTP clients `authorization`.
const TOKEN_HEADERS: [&str; 2] = ["token", "authorization"];

/// The other end of a connection, as the listener knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The common name of the verified client certificate. `None` for requests of the JSON gateway, which calls without
    /// one.
    pub common_name: Option<Arc<str>>,
}

/// The credentials of a request. Tonic services find it in a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    common_name: Option<Arc<str>>,
    token: Option<HeaderValue>,
}

impl Credentials {
    /// The credentials of a request with these headers from this peer.
    #[must_use]
    pub fn new(peer: &Peer, headers: &HeaderMap) -> Self {
        let token = TOKEN_HEADERS.iter().find_map(|name| headers.get(*name)).cloned();
        Self { common_name: peer.common_name.clone(), token }
    }

    /// The credentials of a request to a tonic service.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// The common name of the client's certificate.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// The caller that these credentials identify in this state.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidAuthToken`] if the ring did not issue the token, or it has expired.
    pub fn caller(&self, keyspace: &Keyspace) -> Result<Caller, Refusal> {
        let auth = keyspace.auth();
        if !auth.enabled() {
            return Ok(Caller::default());
        }
        match (&self.token, &self.common_name) {
            (Some(token), _) => {
                let token = token.to_str().map_err(|_| Refusal::InvalidAuthToken)?;
                // Some clients of the JSON gateway put the scheme before the token.
                let token = token.strip_prefix("Bearer ").unwrap_or(token);
                auth.caller_of_token(token, keyspace.now())
            }
            (None, Some(name)) => Ok(auth.caller_of_user(name)),
            (None, None) => Ok(Caller::default()),
        }
    }
}
