//! The messages of a watch stream: the client's requests, and the responses.

use std::sync::Arc;

use super::view::Batch;
use crate::{
    kv::request::{KeyRange, Revision},
    refusal::Refusal,
};

/// Opens a watch. The fields are etcd's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of etcd's request")]
pub struct Open {
    /// The client's id for the watch; with zero the hub chooses one.
    pub watch_id: i64,
    /// The keys.
    pub range: KeyRange,
    /// The start revision; zero is the next revision.
    pub start: Revision,
    /// Whether to omit puts.
    pub no_put: bool,
    /// Whether to omit deletions.
    pub no_delete: bool,
    /// Whether to include previous versions.
    pub prev_kv: bool,
    /// Whether to send progress regularly when there are no events.
    pub progress_notify: bool,
    /// Whether the client accepts split responses.
    pub fragment: bool,
}

/// A message to the client of one stream; messages are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The watch is open.
    Created {
        /// Its id.
        watch_id: i64,
        /// The newest revision when it was opened.
        revision: Revision,
    },
    /// The watch was not opened.
    Refused {
        /// The reason.
        reason: Reason,
        /// The newest revision.
        revision: Revision,
    },
    /// The client canceled the watch.
    Canceled {
        /// The id of the watch.
        watch_id: i64,
        /// The newest revision.
        revision: Revision,
    },
    /// The hub canceled the watch because the client may no longer read its keys.
    Denied {
        /// The id of the watch.
        watch_id: i64,
        /// The permission that the client lacks.
        refusal: Refusal,
        /// The newest revision sent before.
        revision: Revision,
    },
    /// The hub canceled the watch because its next event is compacted.
    Compacted {
        /// The id of the watch.
        watch_id: i64,
        /// The oldest revision at which a watch can start.
        compacted: Revision,
    },
    /// Events of a watch.
    Events {
        /// The id of the watch.
        watch_id: i64,
        /// The newest revision the hub had seen.
        revision: Revision,
        /// The events.
        batch: Arc<Batch>,
        /// Whether the response may be split.
        fragment: bool,
    },
    /// Progress: all events up to the revision have been sent.
    Progress {
        /// The watches concerned.
        of: Progress,
        /// The revision.
        revision: Revision,
    },
}

/// The watches that progress is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every watch of the stream.
    All,
    /// The watch of this id.
    Watch(i64),
}

/// The reason why a watch was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The start revision is negative.
    NegativeStart,
    /// The range ends before it begins.
    EmptyRange,
    /// The client's id is in use on this stream.
    DuplicateId,
    /// The client may not read these keys.
    Denied(Refusal),
    /// The stream or the member has the maximum number of watches.
    TooMany,
}

impl Message {
    /// The cost of the message in its stream's buffer until it is sent.
    #[must_use]
    pub fn cost(&self) -> usize {
        const ENVELOPE: usize = 64;
        match self {
            Self::Events { batch, .. } => ENVELOPE + batch.cost,
            _ => ENVELOPE,
        }
    }
}
