//! Maps every failure of a request to its gRPC status.
//!
//! etcd clients compare code and text, so every text that etcd has is exactly etcd's; see [`crate::refusal`]. Clients of
//! `satrap.v1` read the [`Fault`] in the details, which is more precise than the code.

use satrap_proto::fault::{self, Fault};
use satrap_proto::v1::FaultKind;
use satrap_ring_core::Refusal;
use tonic::{Code, Status};

use crate::calls::{Failure, Unavailable};
use crate::refusal;

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => refused(&refusal),
            Failure::Unavailable(unavailable) => self::unavailable(unavailable),
        }
    }
}

/// The status of a refusal, which is the caller's fault.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    let (code, text) = (refusal::code(refusal), refusal::text(refusal));
    match refusal {
        // A voter serves it.
        Refusal::NotSupportedForLearner => Fault::new(FaultKind::Unavailable).status(code, text),
        _ => fault::refused(code, text),
    }
}

/// The status of a failure that is not the caller's fault. Its kind tells whether a write may have happened.
#[must_use]
pub fn unavailable(unavailable: Unavailable) -> Status {
    let (code, kind) = match unavailable {
        Unavailable::TooManyRequests => (Code::ResourceExhausted, FaultKind::Limited),
        Unavailable::NoLeader => (Code::Unavailable, FaultKind::Unavailable),
        Unavailable::LeaderChanged | Unavailable::Timeout | Unavailable::Stopped => {
            (Code::Unavailable, FaultKind::Undecided)
        }
    };
    Fault::new(kind).status(code, unavailable.to_string())
}
