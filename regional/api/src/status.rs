//! The one mapping of what went wrong to a gRPC code and text.
//!
//! Clients of etcd decide by both, so every text that etcd has is exactly etcd's; see
//! [`satrap_regional_core::Refusal`] for those that the keyspace decides.

use satrap_regional_core::Refusal;
use tonic::{Code, Status};

use crate::backend::{Failure, Unavailable};

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => refused(&refusal),
            Failure::Unavailable(unavailable) => self::unavailable(unavailable),
        }
    }
}

/// The caller's fault.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    Status::new(Code::from_i32(refusal.code() as i32), refusal.message())
}

/// Nobody's fault.
#[must_use]
pub fn unavailable(unavailable: Unavailable) -> Status {
    let code = match unavailable {
        Unavailable::TooManyRequests => Code::ResourceExhausted,
        Unavailable::NoLeader
        | Unavailable::LeaderChanged
        | Unavailable::Timeout
        | Unavailable::Stopped => Code::Unavailable,
    };
    Status::new(code, unavailable.to_string())
}
