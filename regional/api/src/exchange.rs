//! One request and its answer on an HTTP/2 stream, as the calls that carry the load see them.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tonic::Status;

use crate::backend::{Backend, ReadMode, Unavailable};
use crate::grpc::{Replies, Requests};
use crate::peer::{Credentials, Peer};
use crate::status::unavailable;

/// A request whose headers have arrived.
#[derive(Debug)]
pub struct Exchange {
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// Metadata.
    pub headers: HeaderMap,
    /// What the client sends.
    pub requests: Requests,
    /// What we send.
    pub replies: Replies,
}

impl Exchange {
    /// What it offers to say who sent it.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials::new(&self.peer, &self.headers)
    }
}

/// Whether the client wants to be refused, or cut off, while there is no leader.
#[must_use]
pub fn requires_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|value| value == "true")
}

/// Refuses a client that [`requires_leader`] while there is none.
///
/// # Errors
///
/// `Unavailable`, in etcd's words.
pub fn check_leader(headers: &HeaderMap, backend: &Backend) -> Result<(), Status> {
    match requires_leader(headers) && backend.status().leader == 0 {
        true => Err(unavailable(Unavailable::NoLeader)),
        false => Ok(()),
    }
}

/// How fresh a read shall be, for clients of etcd's API that opt in to less work by the metadata
/// `satrap-read-mode: lease`.
///
/// # Errors
///
/// If it names no mode.
pub fn read_mode(headers: &HeaderMap) -> Result<ReadMode, Status> {
    match headers.get("satrap-read-mode").map(HeaderValue::as_bytes) {
        None | Some(b"linearizable") => Ok(ReadMode::Linearizable),
        Some(b"lease") => Ok(ReadMode::Lease),
        Some(_) => Err(Status::invalid_argument("no such read mode")),
    }
}

/// How long the client will wait, if it says so and we can read it.
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
