//! Backoff, rate limits, concurrency limits and staleness, so that the clients of a recovering fleet do not
//! overload it again.
//!
//! A region that restarts meets every edge it serves at once. [`FullJitter`] spreads their retries;
//! [`TokenBucket`] caps what one caller may still ask of the server meanwhile, [`Budgets`] what each of
//! many may, and [`Permits`] what they may hold at a time. [`Freshness`] says when a server that does
//! answer must be left for another. All take time and chance as arguments, so the
//! simulator replays them exactly.
//!
//! # Deliberately absent
//!
//! No clocks, no sleeping, no queues: the caller waits, and an excess request is refused rather
//! than queued, because a queue hides an overload instead of ending it.

mod backoff;
mod bucket;
mod budgets;
mod freshness;
mod permits;

pub use backoff::FullJitter;
pub use bucket::TokenBucket;
pub use budgets::{Budgets, Rate};
pub use freshness::{Freshness, Seen};
pub use permits::{Full, Permit, Permits, Quota};
