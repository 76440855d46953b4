//! Follows one source over the sync protocol: position out, whole updates in.
//!
//! The source is not trusted, not even with framing. Pieces are put together up to the largest
//! update that an honest server sends, and decoded; every way in which a stream ends has an error of
//! its own, so that a follower can tell a source that is away from one that misbehaves.
//!
//! # Invariants
//!
//! - **UPDATES-1** An update that is longer than its follower's interest allows is refused before it is
//!   held: at most one such update and one piece are in memory per stream.
//! - **UPDATES-2** A source that sends no whole update in the follower's patience is reported as
//!   [`FollowError::Silent`], however many pieces it sends meanwhile.
//! - **UPDATES-3** [`UpdateStream::next`] may be dropped at any await: no piece is lost.
//!
//! # Deliberately absent
//!
//! No verification: a decoded update proves nothing, and the follower's replica judges it. No retry
//! and no choice of a source: that is policy, and differs between a region, an edge and an operator.

use std::time::Duration;

use bytes::BytesMut;
use satrap_certify::{
    Interest, Position, SignedReport, Update,
    limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX},
};
use satrap_identity::mtls::{self, ConnectError, Credentials, PeerRule};
use satrap_merkle::codec::{Canonical as _, DecodeError};
use satrap_proto::fault;
use satrap_proto::v1::{FollowReply, FollowRequest, follow_request::Body, sync_client::SyncClient};
use tokio::{
    sync::mpsc,
    task::{self, JoinError, JoinHandle},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::pieces::{ENVELOPE_BYTES, PIECE_BYTES};

/// Positions and reports that wait for the source to read them.
const REQUESTS_MAX: usize = 4;
/// Updates longer than this are decoded on another thread.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// The longest message of a source.
const MESSAGE_BYTES_MAX: usize = PIECE_BYTES + ENVELOPE_BYTES;

/// The address of a sync server, and the rule that its certificate must meet.
#[derive(Clone, Debug)]
pub struct Source {
    /// Address, as `https://HOST:PORT`.
    pub url: String,
    /// The identities that may answer there: a validator, a member of a region, or either.
    pub rule: PeerRule,
}

impl Source {
    /// Connects, and proves both identities.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] tells a source that is away from one with another identity.
    pub async fn connect(&self, credentials: &Credentials) -> Result<Channel, ConnectError> {
        mtls::connect(&self.url, credentials, self.rule.clone()).await
    }
}

/// Why a source gave no update.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The source cannot be reached, or has another identity.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The source ended the stream with a status, or the connection failed.
    #[error("the source ended the stream: {}", fault::describe(.0))]
    Ended(Status),
    /// The source ended the stream without a status, between two updates.
    #[error("the source closed the stream")]
    Closed,
    /// The source ended the stream within an update.
    #[error("the source closed the stream after {0} bytes of an update")]
    Cut(usize),
    /// No whole update came within the follower's patience.
    #[error("the source sent no update within {0:?}")]
    Silent(Duration),
    /// The source reads no requests, so it cannot learn the follower's position.
    #[error("the source reads no requests")]
    Unread,
    /// A message or an update exceeds its limit in bytes.
    #[error("the source sent more than {0} bytes for one update, which no honest source does")]
    TooLong(usize),
    /// The source sent bytes that are not the protocol.
    #[error("the source does not speak the sync protocol: {0}")]
    Protocol(String),
    /// The source sent an update that does not decode.
    #[error("the source sent bytes that are no update: {0}")]
    NotAnUpdate(#[from] DecodeError),
}

impl FollowError {
    /// Whether only a faulty or hostile source causes this.
    #[must_use]
    pub fn is_misbehavior(&self) -> bool {
        matches!(self, Self::TooLong(_) | Self::Protocol(_) | Self::NotAnUpdate(_))
    }
}

impl From<Status> for FollowError {
    fn from(status: Status) -> Self {
        match status.code() {
            // From tonic, for a message that exceeds the decoding limit set below.
            Code::OutOfRange => Self::TooLong(MESSAGE_BYTES_MAX),
            // From tonic, for a message that does not decode, or a violation of HTTP/2.
            Code::Internal => Self::Protocol(fault::describe(&status)),
            _ => Self::Ended(status),
        }
    }
}

/// The updates that one source sends to one follower.
///
/// Dropping it ends the stream.
#[derive(Debug)]
pub struct UpdateStream {
    requests: mpsc::Sender<FollowRequest>,
    replies: Streaming<FollowReply>,
    update_bytes_max: usize,
    /// The pieces of the next update that have arrived.
    pieces: BytesMut,
    /// A long update that is being decoded.
    decoding: Option<JoinHandle<Result<Update, DecodeError>>>,
}

impl UpdateStream {
    /// Connects to `source` and follows it from `position`. Both must succeed within `patience`.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub async fn open(
        source: &Source,
        credentials: &Credentials,
        position: &Position,
        patience: Duration,
    ) -> Result<Self, FollowError> {
        within(patience, async {
            let channel = source.connect(credentials).await?;
            Self::start(channel, position).await
        })
        .await
    }

    /// Follows the source behind `channel` from `position`; it must answer within `patience`.
    ///
    /// # Errors
    ///
    /// [`FollowError`].
    pub async fn on(
        channel: Channel,
        position: &Position,
        patience: Duration,
    ) -> Result<Self, FollowError> {
        within(patience, Self::start(channel, position)).await
    }

    async fn start(channel: Channel, position: &Position) -> Result<Self, FollowError> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        requests.try_send(said(position)).expect("an empty channel with a receiver has room");
        let mut client = SyncClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let replies = client.follow(ReceiverStream::new(outgoing)).await?.into_inner();
        let update_bytes_max = match position.interest {
            Interest::Everything => UPDATE_BYTES_MAX,
            Interest::Bundles(_) => EDGE_UPDATE_BYTES_MAX,
        };
        let pieces = BytesMut::new();
        Ok(Self { requests, replies, update_bytes_max, pieces, decoding: None })
    }

    /// Waits at most `patience` for the next whole update (UPDATES-2). A patience of zero fails at once,
    /// even if an update has arrived.
    ///
    /// # Errors
    ///
    /// [`FollowError`]. No later update follows any of them but [`FollowError::Silent`].
    pub async fn next(&mut self, patience: Duration) -> Result<Update, FollowError> {
        within(patience, self.received()).await
    }

    async fn received(&mut self) -> Result<Update, FollowError> {
        loop {
            if let Some(decoding) = &mut self.decoding {
                let decoded = decoding.await;
                self.decoding = None;
                return match decoded.map_err(JoinError::try_into_panic) {
                    Ok(decoded) => Ok(decoded?),
                    Err(Ok(panic)) => std::panic::resume_unwind(panic),
                    Err(Err(_)) => Err(Status::cancelled("this process is stopping").into()),
                };
            }
            let Some(FollowReply { update, more }) = self.replies.message().await? else {
                let end = match self.pieces.len() {
                    0 => FollowError::Closed,
                    got => FollowError::Cut(got),
                };
                return Err(end);
            };
            // UPDATES-1
            if self.pieces.len() + update.len() > self.update_bytes_max {
                return Err(FollowError::TooLong(self.update_bytes_max));
            }
            // A source could keep a follower busy with these for as long as its patience.
            if more && update.is_empty() {
                return Err(FollowError::Protocol("an empty piece of an update".into()));
            }
            self.pieces.extend_from_slice(&update);
            if more {
                continue;
            }
            let update = core::mem::take(&mut self.pieces).freeze();
            if update.len() <= INLINE_BYTES_MAX {
                return Ok(Update::from_canonical(&update)?);
            }
            self.decoding = Some(task::spawn_blocking(move || Update::from_canonical(&update)));
        }
    }

    /// Tells the source to go on from `position`, instead of from the last update that it sent. The
    /// interest must be the one that the stream was opened with.
    ///
    /// # Errors
    ///
    /// [`FollowError::Unread`], or [`FollowError::Closed`] if the stream has ended.
    pub fn go_on_from(&self, position: &Position) -> Result<(), FollowError> {
        self.requests.try_send(said(position)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => FollowError::Unread,
            mpsc::error::TrySendError::Closed(_) => FollowError::Closed,
        })
    }

    /// Sends a report of an edge. A source that reads no reports does not get this one: it must not
    /// hold up the edge, and the next report says what is true then.
    pub fn report(&self, report: &SignedReport) {
        let body = Some(Body::Report(report.to_canonical().into()));
        let _ = self.requests.try_send(FollowRequest { body });
    }
}

fn said(position: &Position) -> FollowRequest {
    FollowRequest { body: Some(Body::Position(position.to_canonical().into())) }
}

async fn within<T>(
    patience: Duration,
    step: impl Future<Output = Result<T, FollowError>>,
) -> Result<T, FollowError> {
    // A timeout of zero would still return what is ready.
    if patience.is_zero() {
        return Err(FollowError::Silent(patience));
    }
    timeout(patience, step).await.unwrap_or(Err(FollowError::Silent(patience)))
}
