//! Watches, straight on HTTP/2: one loop carries every watch stream of a member.
//!
//! What is told to whom is decided by [`satrap_regional_core::watch::Hub`]. Here its messages are
//! encoded, once for all that get the same bytes, and sent as fast as each client takes them. A
//! stream costs its HTTP/2 state and a queue; a watch costs only what the hub holds. There is no
//! task for either.
//!
//! ```text
//!   front ── Exchange ──▶ Watches ──▶ Service ─┬─ Line per stream: requests in, frames out
//!                                              ├─ Hub: who is told what
//!   Backend.applied() ─────── wakes ───────────┘
//! ```
//!
//! # Invariants
//!
//! - **H1** A client that does not read holds a bounded queue, and nobody else waits for it.
//! - **H2** The keyspace is locked for one bounded step at a time.
//! - **H3** Requests of a stream are answered in their order, with etcd's fields and words.
//!
//! # Deliberately absent
//!
//! Who may connect and how many streams a connection has: the front. JSON: the gateway is a client.

mod bell;
mod command;
mod frames;
pub mod limits;
mod line;
mod service;
mod store;

use std::sync::Arc;
use std::time::Duration;

use satrap_host::meters::Gauge;
use tokio::sync::mpsc;

use crate::api::RequestLimits;
use crate::backend::{Backend, Unavailable};
use crate::exchange::Exchange;
use crate::grpc::Gone;
use crate::status::unavailable;
pub use service::Service;

/// What an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a watch that asked for it hears how far it is, if nothing else was told. Up to a
    /// tenth is added, so that streams that began together do not speak together.
    pub progress_interval: Duration,
    /// How long there may be no leader before streams that need one end.
    pub leaderless_max: Duration,
    /// How long a client may think about a question of a resync.
    pub resync_answer_max: Duration,
    /// A response of this size is split for clients that can join it; in etcd, the largest message that
    /// a client may send.
    pub fragment_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            progress_interval: Duration::from_mins(10),
            leaderless_max: Duration::from_secs(3),
            resync_answer_max: Duration::from_secs(30),
            fragment_bytes: RequestLimits::default().message_bytes_max(),
        }
    }
}

/// Which protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `etcdserverpb.Watch`: any number of watches.
    Etcd,
    /// `satrap.v1.StoreWatch`: one watch, which may be brought up to date.
    Store,
}

/// The way to the loop that carries all watches. Clones share it.
#[derive(Clone, Debug)]
pub struct Watches(mpsc::Sender<(Exchange, Dialect)>);

/// Both ends: what the front needs, and what is to be run, which counts open watches in `watchers`.
#[must_use]
pub fn watches(backend: Backend, settings: Settings, watchers: Arc<Gauge>) -> (Watches, Service) {
    let (sender, arrivals) = mpsc::channel(limits::STREAMS_WAITING_MAX);
    (Watches(sender), Service::new(backend, settings, watchers, arrivals))
}

impl Watches {
    /// Hands a stream over. What holds for all streams (learners, clients that want a leader) has
    /// been checked.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn carry(&self, exchange: Exchange, dialect: Dialect) -> Result<(), Gone> {
        // How many wait is bounded by how many may be open.
        match self.0.send((exchange, dialect)).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendError((exchange, _))) => {
                exchange.replies.finish(&unavailable(Unavailable::Stopped))
            }
        }
    }
}
