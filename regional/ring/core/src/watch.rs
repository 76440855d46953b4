//! Watches: the hub between the ring's state and watchers decides which events go to which watcher,
//! and when.
//!
//! A watcher asks for events of some keys from some revision on. A *synced* watcher has received
//! all events, and each new event finds it by its keys. A *lagging* watcher started in the past, or
//! its client was slow; it reads the log in bounded steps until it is synced. A *parked* watcher
//! waits until its client receives the buffered messages. So a slow client costs memory up to a
//! limit, delays no other client, and loses nothing.
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
//! - **WATCH-1** Ordered, unique, reliable: a watcher gets every matching event from its start on,
//!   once, in the order of revisions.
//! - **WATCH-2** Atomic: all events of one revision for a watcher are in one response.
//! - **WATCH-3** Bookmarkable: progress at a revision is sent after every event up to it.
//! - **WATCH-4** Resumable: a watch from the revision after the last one received misses nothing;
//!   if that is compacted it is canceled with the compacted revision, never continued with a gap.
//! - **WATCH-5** A watcher never gets an event before its start revision, which may be in the future, nor
//!   one older than an event that it got, also after a snapshot has replaced the member's state.
//! - **WATCH-6** Every event is sent only to callers that may read its key when it is sent, not
//!   only when the watch was opened.
//! - **WATCH-7** A step processes a bounded number of events and watchers, so the state is never
//!   read for long, and a lagging watcher does not delay a synced one.
//!
//! # Deliberately absent
//!
//! Frames, sockets, tasks: `satrap-ring-api` sends the messages of [`Hub::take_outbox`] and reports
//! with [`Hub::sent`] which left. Time is an argument of [`Hub::tick`].

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
pub use view::{Batch, View, WatchEvent};
