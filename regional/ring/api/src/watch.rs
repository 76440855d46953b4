//! Serves watches on HTTP/2 without the tonic stack: one task, the watch loop, serves all watch streams of a member.
//!
//! [`satrap_ring_core::watch::Hub`] decides which watch gets which event. The watch loop encodes the hub's messages,
//! once for all watches that get the same bytes, and sends them as fast as each client reads. A stream costs its
//! HTTP/2 state and a queue, and a watch costs only its entry in the hub. Neither has a task of its own.
//!
//! ```text
//!   front ── Exchange ──▶ Watches ──▶ WatchLoop ─┬─ WatchStream per stream: requests in, frames out
//!                                                ├─ Hub: which watch gets which event
//!   Backend.applied() ─────── wakes ─────────────┘
//! ```
//!
//! # Invariants
//!
//! - **WATCHSTREAM-1** The queue of a client that does not read is bounded, and no other client waits for it.
//! - **WATCHSTREAM-2** The keyspace is locked for one bounded step at a time.
//! - **WATCHSTREAM-3** Requests of a stream are answered in their order, with etcd's fields and texts.
//!
//! # Deliberately absent
//!
//! Limits on connections and their streams: `front` has them. JSON: the gateway is a gRPC client.

mod command;
mod frames;
pub mod limits;
mod ready;
mod store;
mod stream;
mod watch_loop;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::api::Api;
use crate::calls::Unavailable;
use crate::exchange::Exchange;
use crate::grpc::Gone;
use crate::status::unavailable;
pub use watch_loop::WatchLoop;

/// Which protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `etcdserverpb.Watch`: any number of watches.
    Etcd,
    /// `satrap.v1.StoreWatch`: one watch, and a resync for a client that fell behind compaction.
    Store,
}

/// Hands new watch streams to the watch loop. Clones share it.
#[derive(Clone, Debug)]
pub struct Watches(mpsc::Sender<(Exchange, Dialect)>);

/// The watch loop, which is to be run, and the handle by which streams reach it.
#[must_use]
pub fn watches(api: Arc<Api>) -> (Watches, WatchLoop) {
    let (sender, arrivals) = mpsc::channel(limits::STREAMS_WAITING_MAX);
    (Watches(sender), WatchLoop::new(api, arrivals))
}

impl Watches {
    /// Hands a stream to the watch loop. The caller has checked that this member may serve it ([`Api::admit`]).
    ///
    /// # Errors
    ///
    /// [`Gone`] if the loop has stopped and the client could not be told so.
    pub async fn serve(&self, exchange: Exchange, dialect: Dialect) -> Result<(), Gone> {
        // The number of streams that wait here is bounded by the number that may be open.
        match self.0.send((exchange, dialect)).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendError((exchange, _))) => {
                exchange.replies.finish(&unavailable(Unavailable::Stopped))
            }
        }
    }
}
