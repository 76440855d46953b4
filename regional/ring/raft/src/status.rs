//! The mapping from errors of the ring service to gRPC codes.
//!
//! | party at fault | code |
//! |---|---|
//! | the caller may not do this | `PERMISSION_DENIED` |
//! | the caller sent something wrong | as named |
//! | this process; ask another | `UNAVAILABLE` |

use std::fmt::Display;

use tonic::{Code, Status};

/// The caller's certificate does not allow the request.
#[must_use]
pub fn denied(why: &str) -> Status {
    Status::permission_denied(why)
}

/// The caller's fault, with the given code.
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
