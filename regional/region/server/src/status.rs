//! Turns the errors of a region member into gRPC statuses.
//!
//! | whose fault | code |
//! |---|---|
//! | the caller may not do this | `PERMISSION_DENIED` |
//! | the caller sent something wrong: a `Rejection` | `INVALID_ARGUMENT` or as named, with the rule |
//! | a process behind this one; ask another | `UNAVAILABLE` |

use std::fmt::Display;

use satrap_certify::Rejection;
use satrap_proto::fault;
use tonic::{Code, Status};

/// The caller's certificate does not allow this.
#[must_use]
pub fn denied(why: &str) -> Status {
    fault::denied(why)
}

/// The caller's message breaks a rule.
#[must_use]
pub fn rejected(rejection: &Rejection) -> Status {
    fault::breaks(rejection.rule(), rejection.to_string())
}

/// The call is refused with `code`.
#[must_use]
pub fn refused(code: Code, why: &impl Display) -> Status {
    fault::refused(code, why.to_string())
}

/// This member forwarded the request, and does not know the outcome.
#[must_use]
pub fn undecided(why: &impl Display) -> Status {
    fault::undecided(why.to_string())
}
