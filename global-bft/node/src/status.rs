//! The one place where this tier's errors become gRPC codes.
//!
//! | whose fault | code |
//! |---|---|
//! | the caller may not do this | `PERMISSION_DENIED` |
//! | the caller sent something wrong: a `Rejection` | `INVALID_ARGUMENT`, with the rule |
//! | this process is behind the state that the caller expects; ask another | `FAILED_PRECONDITION`, with the rule |
//! | too much of it | `RESOURCE_EXHAUSTED` |
//! | this process; ask another | `UNAVAILABLE` |
//! | the disk of this process | `INTERNAL` |

use std::fmt::Display;

use satrap_identity::mtls::{PeerIdentity, PeerRule};
use satrap_merkle::codec::DecodeError;
use satrap_proto::fault;
use tonic::{Request, Status};

use crate::mempool::Refusal;

/// The peer that sent `request`, if `rule` admits it.
///
/// # Errors
///
/// `PERMISSION_DENIED`.
pub fn peer<T>(request: &Request<T>, rule: &PeerRule) -> Result<PeerIdentity, Status> {
    let peer = request.extensions().get::<PeerIdentity>();
    let peer = peer.ok_or_else(|| denied("no client certificate"))?;
    admit(peer, rule)?;
    Ok(peer.clone())
}

/// Whether `rule` admits `peer`.
///
/// # Errors
///
/// `PERMISSION_DENIED`.
pub fn admit(peer: &PeerIdentity, rule: &PeerRule) -> Result<(), Status> {
    if rule.admits(&peer.id) {
        return Ok(());
    }
    Err(denied(&format!("{} may not call this; expected {rule:?}", peer.id)))
}

/// The caller's certificate does not allow this.
#[must_use]
pub fn denied(why: &str) -> Status {
    fault::denied(why)
}

/// Too much of it; later it may work.
#[must_use]
pub fn busy(why: &str) -> Status {
    fault::limited(why, None)
}

/// Bytes that are not what they should be.
#[must_use]
pub fn malformed(error: DecodeError) -> Status {
    fault::breaks("E1", error.to_string())
}

/// The request breaks a rule.
#[must_use]
pub fn rejected(rule: &str, why: &impl Display) -> Status {
    fault::breaks(rule, why.to_string())
}

/// A submission that was refused.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Rejected(why) => rejected(why.rule(), why),
        Refusal::Behind(why) => fault::behind(why.rule(), why.to_string()),
        Refusal::Full { .. } => busy(&refusal.to_string()),
    }
}

/// A submission whose outcome this validator will not learn; another one may.
#[must_use]
pub fn undecided(why: &str) -> Status {
    fault::undecided(why)
}

/// The disk of this process.
#[must_use]
pub fn internal(why: &impl Display) -> Status {
    fault::internal(why.to_string())
}
