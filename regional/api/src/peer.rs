//! Decides as whom a request is judged.
//!
//! Two things may speak for a client: a bearer token, which the ring issued, and the common name of
//! its certificate, which the listener verified. A token goes first, as in etcd, and a token that is
//! wrong is an error even if a certificate is there. What a user may do is not decided here but where
//! the request is applied or read, so that a revoked permission takes effect at once.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use satrap_regional_core::{Caller, Refusal};
use tonic::Status;

use crate::backend::Backend;
use crate::status::refused;

/// Where etcd's clients put their token; HTTP clients use `authorization`.
const TOKEN_HEADERS: [&str; 2] = ["token", "authorization"];

/// The other end of a connection, as the listener knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of a verified client certificate. Never set for what comes through the JSON gateway: there
    /// the certificate would be ours.
    pub common_name: Option<Arc<str>>,
}

/// What a request offers to say who sent it. Tonic services find it in a request's extensions.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    common_name: Option<Arc<str>>,
    token: Option<HeaderValue>,
}

impl Credentials {
    /// Of a request with these headers from this peer.
    #[must_use]
    pub fn new(peer: &Peer, headers: &HeaderMap) -> Self {
        let token = TOKEN_HEADERS.iter().find_map(|name| headers.get(*name)).cloned();
        Self { common_name: peer.common_name.clone(), token }
    }

    /// Of a request to a tonic service.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// Of the client's certificate.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// As whom the request is judged, as of now. A read asks after it has waited for its turn, so
    /// that a change of permissions meanwhile counts.
    ///
    /// # Errors
    ///
    /// `Unauthenticated` if the token is none of the ring's, or no longer.
    pub fn caller(&self, backend: &Backend) -> Result<Caller, Status> {
        backend
            .read(|keyspace| {
                let auth = keyspace.auth();
                if !auth.enabled() {
                    return Ok(Caller::default());
                }
                match (&self.token, &self.common_name) {
                    (Some(token), _) => {
                        let token = token.to_str().map_err(|_| Refusal::InvalidAuthToken)?;
                        // Some clients of the JSON gateway say what kind of token it is.
                        let token = token.strip_prefix("Bearer ").unwrap_or(token);
                        auth.caller_of_token(token, keyspace.now())
                    }
                    (None, Some(name)) => Ok(auth.caller_of_user(name)),
                    (None, None) => Ok(Caller::default()),
                }
            })
            .map_err(|refusal| refused(&refusal))
    }
}
