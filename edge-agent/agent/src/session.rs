//! One connection to one server: what was asked, what came, and how it ended.
//!
//! The server is not trusted with anything, not even with framing: what it sends is bounded
//! before it is decoded, and a peer that sends bytes no honest server sends is refused by rule
//! (W1, W2) like one that lies about content.

use std::time::Duration;

use satrap_certify::{Position, SignedReport, Update, limits::EDGE_UPDATE_BYTES_MAX};
use satrap_host::{
    clock,
    follow::{self, Replies, ReplyError},
    mtls::{self, Credentials, PeerRule},
    pki::{Role, SpiffeId},
};
use satrap_merkle::codec::Canonical as _;
use satrap_pressure::Freshness;
use satrap_proto::v1::{FollowRequest, follow_request::Body};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::config::Server;

/// Position and reports that wait for the server to read them.
const OUTGOING_MAX: usize = 4;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Not the server's fault, or not provably: unreachable, restarted, overloaded.
    #[error("{0}")]
    Lost(String),
    /// Its state was old or not complete for this long (P3).
    #[error("no fresh and complete state in {0:?}; another server may have it")]
    Stale(Duration),
    /// The server sent what no honest server sends.
    #[error("{detail}")]
    Broken {
        /// W1 (not decodable), W2 (larger than any update may be).
        rule: &'static str,
        /// What came.
        detail: String,
    },
}

/// An open stream to a server.
#[derive(Debug)]
pub struct Session {
    outgoing: mpsc::Sender<FollowRequest>,
    incoming: Replies,
}

impl Session {
    /// Connects, proves both identities, and says where this edge stands.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn open(
        server: &Server,
        credentials: &Credentials,
        position: &Position,
    ) -> Result<Self, SessionError> {
        let role =
            Role::Member { region: server.region.to_string(), name: server.name.to_string() };
        let id = SpiffeId::new(credentials.current().id.chain(), role)
            .map_err(|e| SessionError::Lost(e.to_string()))?;
        let channel = mtls::connect(&server.url, credentials, PeerRule::Exactly(id))
            .await
            .map_err(|e| SessionError::Lost(e.to_string()))?;
        let (outgoing, requests) = mpsc::channel(OUTGOING_MAX);
        let session_open = outgoing.try_send(position_message(position));
        session_open.expect("the channel is empty and its receiver is alive");
        let incoming = follow::client(channel)
            .follow(ReceiverStream::new(requests))
            .await
            .map_err(|status| blame(&status))?
            .into_inner();
        Ok(Self { outgoing, incoming: Replies::new(incoming, EDGE_UPDATE_BYTES_MAX) })
    }

    /// Waits for the next update. For how long is the caller's to decide ([`within`]).
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn next(&mut self) -> Result<Update, SessionError> {
        let update = self.incoming.next().await.map_err(|error| match error {
            ReplyError::Status(status) => blame(&status),
            ReplyError::TooLong(_) => {
                SessionError::Broken { rule: "W2", detail: error.to_string() }
            }
        })?;
        let closed = || SessionError::Lost("the server closed the stream".into());
        Update::from_canonical(&update.ok_or_else(closed)?)
            .map_err(|e| SessionError::Broken { rule: "W1", detail: format!("update: {e}") })
    }

    /// Tells the server what runs here.
    pub fn report(&self, report: &SignedReport) {
        let body = Some(Body::Report(report.to_canonical().into()));
        // A server that does not read reports gets the next one; it must not stop this edge.
        let _ = self.outgoing.try_send(FollowRequest { body });
    }
}

/// Waits for `step` of a session as long as `freshness` bears with its server (P3).
///
/// # Errors
///
/// Those of `step`, and [`SessionError::Stale`].
pub async fn within<T>(
    freshness: &Freshness,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    let stale = || SessionError::Stale(freshness.limit());
    // Asked first: a timeout of zero would still take a message that is there already.
    let patience = freshness.patience(clock::monotonic()).ok_or_else(stale)?;
    timeout(patience, step).await.unwrap_or_else(|_| Err(stale()))
}

fn position_message(position: &Position) -> FollowRequest {
    FollowRequest { body: Some(Body::Position(position.to_canonical().into())) }
}

/// Tells a server that is away from one that misbehaves.
fn blame(status: &Status) -> SessionError {
    let detail = status.to_string();
    match status.code() {
        // What tonic reports when a frame exceeds the limit given above.
        Code::OutOfRange => SessionError::Broken { rule: "W2", detail },
        // What it reports when a message does not decode or HTTP/2 is violated.
        Code::Internal => SessionError::Broken { rule: "W1", detail },
        _ => SessionError::Lost(detail),
    }
}
