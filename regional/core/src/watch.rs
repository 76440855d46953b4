//! Decides which watcher is told what, and when: the hub between the ring's state and its watchers.
//!
//! A watcher asks for events of some keys from some revision on. One that has seen everything is
//! *synced* and is found by the keys of each new event. One that started in the past, or whose
//! client was slow, is *lagging* and reads the log in bounded steps until it is synced. One whose
//! client does not take what is waiting for it is *parked* until the client does. So a slow client
//! costs memory up to a limit and nobody else's time, and loses nothing.
//!
//! ```text
//!              start in the past                  reached the newest revision
//!   created ─────────────────────▶ lagging ─────────────────────────────────▶ synced
//!      │                            ▲   │ buffer full                            │
//!      │               client reads │   ▼                        buffer full     │
//!      │                            parked ◀─────────────────────────────────────┤
//!      └── start now or later ───────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//!
//! - **W1** Ordered, unique, reliable: a watcher is told every matching event from its start on,
//!   once, in the order of revisions.
//! - **W2** Atomic: what one revision did to a watcher's keys is in one response.
//! - **W3** Bookmarkable: progress at a revision is told after every event up to it.
//! - **W4** Resumable: a watch from the revision after the last one told misses nothing; if that is
//!   compacted it is canceled with the compacted revision, never continued with a gap.
//! - **W5** Nothing before the start, be it in the future, and nothing older than what was told
//!   before, be it that the member's state was replaced by a snapshot.
//! - **W6** Every event is told only to who may read its key when it is told, not only when the
//!   watch was opened.
//! - **W7** A step looks at a bounded number of events and watchers, so the state is never read
//!   for long, and one watcher's past does not delay another's present.
//!
//! # Deliberately absent
//!
//! Frames, sockets, tasks: `satrap-regional-api` sends what [`Hub::take_outbox`] gives and reports
//! with [`Hub::sent`] what left. Time is an argument of [`Hub::tick`].

mod catch_up;
mod dispatch;
mod hub;
mod index;
mod interval;
mod keyspace;
pub mod limits;
mod members;
mod message;
mod progress;
mod state;
mod tell;
mod view;

#[cfg(test)]
mod tests;

pub use hub::{Hub, StreamId};
pub use message::{Message, Open, Progress, Reason};
pub use view::{Batch, Told, View};
