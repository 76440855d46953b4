//! Every decision an edge agent takes, without a socket or a file.
//!
//! [`follow`] decides which server to follow and for how long (with [`pull`]: which one comes next,
//! and when), [`accept`] whether an answer may become the active config, [`kept`] what of it must
//! survive everything, [`report`] what a status report names. The caller is `edge-agent/agent/src/run.rs` in
//! production and `sim` in tests.

pub mod accept;
pub mod follow;
pub mod kept;
pub mod pull;
pub mod refusals;
pub mod report;

pub use accept::{Acceptor, Active, Candidate, Effect, Event};
pub use follow::{Due, Failure, Follower};
pub use kept::Kept;
pub use pull::{Attempt, Ended, Pull, Source};
pub use refusals::Refusals;
