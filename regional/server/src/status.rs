//! The one place where this tier's errors become gRPC codes.
//!
//! | whose fault | code |
//! |---|---|
//! | the caller may not do this | `PERMISSION_DENIED` |
//! | the caller sent something wrong: a `Rejection` | `INVALID_ARGUMENT` or as named, with the rule |
//! | too much of it | `RESOURCE_EXHAUSTED` |
//! | this process or one behind it; ask another | `UNAVAILABLE` |

use std::fmt::Display;

use satrap_certify::Rejection;
use tonic::{Code, Status};

/// The caller's certificate does not allow this.
#[must_use]
pub fn denied(why: &str) -> Status {
    Status::permission_denied(why)
}

/// What the caller sent breaks a rule.
#[must_use]
pub fn rejected(rejection: &Rejection) -> Status {
    Status::invalid_argument(format!("[{}] {rejection}", rejection.rule()))
}

/// The caller's fault, of the kind that `code` says.
#[must_use]
pub fn refused(code: Code, why: &impl Display) -> Status {
    Status::new(code, why.to_string())
}

/// Not the caller's fault; another member may answer.
#[must_use]
pub fn unavailable(why: &impl Display) -> Status {
    Status::unavailable(why.to_string())
}

/// As [`unavailable`], for `map_err`.
#[must_use]
pub fn unavailable_from<E: Display>(why: E) -> Status {
    unavailable(&why)
}
