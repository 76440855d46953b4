//! Decides how fast to ask again, how long to bear with a server, and how much to accept, so that a recovering fleet is not
//! knocked over by its own clients.
//!
//! A region that restarts meets every edge it serves at once. [`FullJitter`] spreads their retries;
//! [`TokenBucket`] caps what one caller may still ask of the server meanwhile, [`Budgets`] what each of
//! many may, and [`Seats`] what they may hold at a time. [`Freshness`] says when a server that does
//! answer must be left for another. All take time and chance as arguments, so the
//! simulator replays them exactly.
//!
//! # Deliberately absent
//!
//! No clocks, no sleeping, no queues: the caller waits, and an excess request is refused rather
//! than queued, because a queue only moves the overload to where nobody sees it.

mod backoff;
mod bucket;
mod budgets;
mod freshness;
mod seats;

pub use backoff::FullJitter;
pub use bucket::TokenBucket;
pub use budgets::{Budgets, Rate};
pub use freshness::{Freshness, Seen};
pub use seats::{Full, Quota, Seat, Seats};
