//! One request and its answers on an HTTP/2 stream, for calls that are served without the tonic stack.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tonic::Status;

use crate::calls::ReadMode;
use crate::grpc::{Replies, Requests};
use crate::peer::{Credentials, Peer};

/// A request whose headers have arrived.
#[derive(Debug)]
pub struct Exchange {
    /// The sender of the request.
    pub peer: Arc<Peer>,
    /// The headers of the request, with gRPC metadata.
    pub headers: HeaderMap,
    /// The messages of the client.
    pub requests: Requests,
    /// The messages to the client.
    pub replies: Replies,
}

impl Exchange {
    /// The credentials of the request.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials::new(&self.peer, &self.headers)
    }
}

/// Whether the client requires a leader: its calls and streams fail while there is none.
#[must_use]
pub fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value == "true")
}

/// The freshness of a read, which clients of etcd's API choose by the metadata `satrap-read-mode`. Lease reads need no
/// round to a quorum.
///
/// # Errors
///
/// `InvalidArgument` for an unknown mode.
pub fn read_mode(headers: &HeaderMap) -> Result<ReadMode, Status> {
    match headers.get("satrap-read-mode").map(HeaderValue::as_bytes) {
        None | Some(b"linearizable") => Ok(ReadMode::Linearizable),
        Some(b"lease") => Ok(ReadMode::Lease),
        Some(_) => {
            Err(Status::invalid_argument("unknown satrap-read-mode; use `linearizable` or `lease`"))
        }
    }
}

/// The deadline of the client from the `grpc-timeout` header; `None` if there is none or it is malformed.
#[must_use]
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}
