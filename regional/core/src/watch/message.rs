//! What a client asks of a watch stream, and what it is told.

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
    /// The client's id for it; zero lets the hub choose.
    pub watch_id: i64,
    /// Which keys.
    pub range: KeyRange,
    /// First revision to tell; zero is "what happens from now on".
    pub start: Revision,
    /// Leave out writes.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Tell what the key held before.
    pub prev_kv: bool,
    /// Tell now and then how far the watch is, if nothing else was told.
    pub progress_notify: bool,
    /// The client can join a response that was split.
    pub fragment: bool,
}

/// Something for the client of one stream, in order.
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
        /// Why.
        reason: Reason,
        /// The newest revision.
        revision: Revision,
    },
    /// The client canceled the watch.
    Canceled {
        /// Which.
        watch_id: i64,
        /// The newest revision.
        revision: Revision,
    },
    /// The hub canceled the watch because the client may not read its keys any more.
    Denied {
        /// Which.
        watch_id: i64,
        /// What the client lacks.
        refusal: Refusal,
        /// Everything the client could see before this was told.
        revision: Revision,
    },
    /// The hub canceled the watch because what it would tell next is compacted.
    Compacted {
        /// Which.
        watch_id: i64,
        /// The oldest revision that can be watched.
        compacted: Revision,
    },
    /// Something happened.
    Events {
        /// To which watch.
        watch_id: i64,
        /// The newest revision the hub had seen.
        revision: Revision,
        /// What.
        batch: Arc<Batch>,
        /// The response may be split.
        fragment: bool,
    },
    /// Nothing up to this revision is still to come.
    Progress {
        /// For which watch.
        of: Progress,
        /// See above.
        revision: Revision,
    },
}

/// Whom progress is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every watch of the stream.
    All,
    /// The watch of this id.
    Watch(i64),
}

/// Why a watch was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The start is negative.
    NegativeStart,
    /// The range ends before it begins.
    EmptyRange,
    /// The client's id is in use on this stream.
    DuplicateId,
    /// The client may not read these keys.
    Denied(Refusal),
    /// The stream, or the member, has as many watchers as it may have.
    TooMany,
}

impl Message {
    /// What it counts against its stream's buffer until it was sent.
    #[must_use]
    pub fn cost(&self) -> usize {
        const ENVELOPE: usize = 64;
        match self {
            Self::Events { batch, .. } => ENVELOPE + batch.cost,
            _ => ENVELOPE,
        }
    }
}
