//! Follows one server of a region, and says why the session ended.
//!
//! The server is not trusted with anything, not even with framing: [`UpdateStream`] bounds what it
//! sends before it is decoded. A server that sends bytes no honest server sends is refused by rule
//! (WIRE-1, WIRE-2) like one that lies about content.

use std::time::Duration;

use satrap_certify::{Position, SignedReport, Update};
use satrap_identity::{
    mtls::{Credentials, PeerRule},
    pki::{Role, SpiffeId},
};
use satrap_sync::client::{FollowError, Source, UpdateStream};

use crate::config::Server;

/// The edge's loop has a timer of its own, for silence and for stale state alike (PULL-3).
const PATIENCE: Duration = Duration::MAX;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Not provably the server's fault: unreachable, restarted, overloaded.
    #[error("{0}")]
    Lost(String),
    /// The server sent bytes that no honest server sends.
    #[error("{detail}")]
    Broken {
        /// WIRE-1 (not decodable), WIRE-2 (larger than any update may be).
        rule: &'static str,
        /// The fault.
        detail: String,
    },
}

/// An open stream to a server.
#[derive(Debug)]
pub struct Session(Box<UpdateStream>);

impl Session {
    /// Connects, proves both identities, and sends this edge's position.
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
        let source = Source { url: server.url.clone(), rule: PeerRule::Exactly(id) };
        let stream = UpdateStream::open(&source, credentials, position, PATIENCE).await?;
        Ok(Self(Box::new(stream)))
    }

    /// Waits for the next update, without a limit. The future may be dropped at any time: no piece of
    /// an update is lost.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub async fn next(&mut self) -> Result<Update, SessionError> {
        Ok(self.0.next(PATIENCE).await?)
    }

    /// Sends the server a report of the versions that run here.
    pub fn report(&self, report: &SignedReport) {
        self.0.report(report);
    }
}

impl From<FollowError> for SessionError {
    /// Tells a server that is away from one that misbehaves.
    fn from(error: FollowError) -> Self {
        let detail = error.to_string();
        match error {
            FollowError::TooLong(_) => Self::Broken { rule: "WIRE-2", detail },
            FollowError::Protocol(_) | FollowError::NotAnUpdate(_) => {
                Self::Broken { rule: "WIRE-1", detail }
            }
            FollowError::Connect(_)
            | FollowError::Ended(_)
            | FollowError::Closed
            | FollowError::Cut(_)
            | FollowError::Silent(_)
            | FollowError::Unread => Self::Lost(detail),
        }
    }
}
