//! Every decision an edge agent takes, without a socket or a file.
//!
//! [`pull`] decides which server to ask and when, [`accept`] whether an answer may become the active
//! config, [`kept`] what of it must survive everything, [`report`] what a status report names. The
//! caller is `agent/src/run.rs` in production and `sim` in tests.

pub mod accept;
pub mod kept;
pub mod pull;
pub mod refusals;
pub mod report;

pub use accept::{Acceptor, Active, Effect, Event};
pub use kept::Kept;
pub use pull::{Attempt, Ended, Pull, Source};
pub use refusals::Refusals;
