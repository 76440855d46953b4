//! A copy of a range of keys that follows the ring, and survives having fallen behind.
//!
//! The copy is listed once, page by page at one revision, and then watched. When the ring has
//! compacted what would come next, or was restored, it does not fail and is not listed again: both
//! sides compare digests and only keys that differ are sent (see `satrap_merkle::keyset`).
//!
//! ```text
//!             opened                 resync                 done
//!   Closed ───────────▶ Following ───────────▶ Comparing ───────────▶ Following
//!     ▲                     │                      │
//!     └── stream ended ─────┴──────────────────────┘   the copy stays as it was
//! ```
//!
//! # Invariants
//!
//! - **MIRROR-1** Between two calls the copy is exactly what the ring had at [`Mirror::revision`]: a
//!   comparison is carried out only when it is complete.
//! - **MIRROR-2** [`Mirror::revision`] never decreases within an epoch.
//!
//! # Deliberately absent
//!
//! Background tasks: the copy moves when [`Mirror::next`] is polled, and the connection holds back
//! what comes meanwhile. Persistence: a caller that stores a copy can hand it to [`Mirror::resume`].

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use satrap_pressure::FullJitter;
use satrap_proto::mvccpb;
use satrap_proto::v1::{self, store_watch_request, store_watch_response::Step};
use satrap_runtime::{clock, rng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::error::Error;
use crate::ring::{Ring, answer};

mod compare;

use compare::Comparison;

const RETRY_BASE: Duration = Duration::from_millis(200);
const STABLE_PERIOD: Duration = Duration::from_secs(10);
/// Requests on their way to the ring; it asks one question at a time.
const REQUESTS_MAX: usize = 4;
/// Lists that compaction may cut short before that is an error.
const LISTS_MAX: u32 = 8;

/// One key of the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its value.
    pub value: Bytes,
    /// Revision of its last write.
    pub mod_revision: i64,
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub key: Bytes,
    /// After the last; empty for one key, one zero byte for everything from `key` on.
    pub end: Bytes,
}

impl Range {
    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key: Bytes = prefix.into();
        let kept = key.iter().rposition(|byte| *byte != u8::MAX).map_or(0, |last| last + 1);
        let mut end = key[..kept].to_vec();
        match end.last_mut() {
            Some(last) => *last += 1,
            // No key is beyond these: to the end, and from the start if there is no prefix.
            None => end.push(0),
        }
        let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
        Self { key, end: end.into() }
    }
}

/// The change of the copy since the call before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// That many events were applied.
    Events(usize),
    /// History was missing and the copy was compared with the ring.
    Resynced {
        /// Keys that the copy did not have, or at another revision.
        received: usize,
        /// Keys that the ring no longer has.
        forgotten: usize,
    },
}

/// A copy of a range.
#[derive(Debug)]
pub struct Mirror {
    ring: Ring,
    range: Range,
    content: BTreeMap<Bytes, Held>,
    revision: i64,
    epoch: u64,
    stream: Option<Stream>,
    backoff: FullJitter,
}

/// An open stream.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<v1::StoreWatchRequest>,
    responses: Streaming<v1::StoreWatchResponse>,
    comparison: Option<Comparison>,
    since: Duration,
}

impl Mirror {
    /// Lists a range. Nothing is watched until [`Mirror::next`] is called.
    ///
    /// # Errors
    ///
    /// Why the ring refused, or [`Error::Contended`] if lists were compacted away again and again.
    pub async fn open(ring: &Ring, range: Range) -> Result<Self, Error> {
        for _ in 0..LISTS_MAX {
            let mut mirror = Self::resume(ring, range.clone(), BTreeMap::new(), (0, 0));
            match mirror.list().await {
                Err(Error::Ring(status)) if status.code() == Code::OutOfRange => {}
                listed => return listed.map(|()| mirror),
            }
        }
        Err(Error::Contended(LISTS_MAX))
    }

    /// Goes on with a copy that was complete at a revision of an epoch. It may be arbitrarily old.
    #[must_use]
    pub fn resume(
        ring: &Ring,
        range: Range,
        content: BTreeMap<Bytes, Held>,
        (epoch, revision): (u64, i64),
    ) -> Self {
        let backoff = FullJitter::new(RETRY_BASE, STABLE_PERIOD);
        Self { ring: ring.clone(), range, content, revision, epoch, stream: None, backoff }
    }

    /// The copy (MIRROR-1).
    #[must_use]
    pub fn content(&self) -> &BTreeMap<Bytes, Held> {
        &self.content
    }

    /// The revision up to which the copy has every change of the ring.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Of the revision; a restore begins another, in which revisions may be smaller.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Waits for the next change and applies it. May be dropped and called again. Reconnects by
    /// itself for as long as the ring cannot be reached.
    ///
    /// # Errors
    ///
    /// Why the ring refused for good. The copy is still good as of its revision.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            let moved = self.advance().await;
            let Err(error) = moved else {
                if let Ok(Some(change)) = moved {
                    return Ok(change);
                }
                continue;
            };
            if let Some(stream) = self.stream.take() {
                self.backoff.connection_ended(clock::monotonic().saturating_sub(stream.since));
            }
            if !error.is_transient() {
                return Err(error);
            }
            tokio::time::sleep(self.backoff.next_delay(rng::u64())).await;
        }
    }

    /// [`Mirror::next`] until the copy has everything up to `revision`.
    ///
    /// # Errors
    ///
    /// As [`Mirror::next`].
    pub async fn follow_to(&mut self, revision: i64) -> Result<(), Error> {
        while self.revision < revision {
            self.next().await?;
        }
        Ok(())
    }

    async fn list(&mut self) -> Result<(), Error> {
        let mut page_token = Bytes::new();
        loop {
            let request = v1::ListPageRequest {
                key: self.range.key.clone(),
                range_end: self.range.end.clone(),
                page_token,
                ..Default::default()
            };
            let page = answer(self.ring.store().list_page(request)).await?;
            self.epoch = page.header.ok_or(Error::Nonsense("a page without a header"))?.epoch;
            self.revision = page.list_revision;
            self.content.extend(page.kvs.into_iter().map(held));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(());
            }
        }
    }

    /// Takes one message of the stream.
    async fn advance(&mut self) -> Result<Option<Change>, Error> {
        if self.stream.is_none() {
            self.stream = Some(self.connect().await?);
        }
        let stream = self.stream.as_mut().expect("it was opened above");
        let response = stream.responses.message().await?;
        let response = response.ok_or_else(|| tonic::Status::unavailable("the watch ended"))?;
        let header = response.header.ok_or(Error::Nonsense("a response without a header"))?;
        match (response.step.ok_or(Error::Nonsense("an empty response"))?, &mut stream.comparison) {
            (Step::Opened(_), None) => {
                // A new epoch is announced by a resync, and is ours only after that.
                if self.epoch == 0 {
                    self.epoch = header.epoch;
                }
                Ok(None)
            }
            (Step::Events(events), None) => {
                let count = events.events.len();
                self.revision = self.revision.max(events.complete_through);
                events.events.into_iter().filter_map(|event| event.kv).for_each(|kv| self.take(kv));
                Ok(Some(Change::Events(count)))
            }
            (Step::Resync(_), None) => {
                let (comparison, first) = Comparison::begin(&self.content);
                stream.comparison = Some(comparison);
                stream.say(first)?;
                Ok(None)
            }
            (Step::Verdict(verdict), Some(comparison)) => {
                if let Some(answer) = comparison.follow(verdict)? {
                    stream.say(answer)?;
                }
                Ok(None)
            }
            (Step::Put(put), Some(comparison)) => {
                comparison.received.extend(put.kvs);
                Ok(None)
            }
            (Step::Done(done), Some(_)) => {
                let comparison = stream.comparison.take().expect("it was there above");
                (self.epoch, self.revision) = (header.epoch, done.revision);
                Ok(Some(self.carry_out(comparison)))
            }
            _ => Err(Error::Nonsense("a step of the resync out of order")),
        }
    }

    /// MIRROR-1: all at once.
    fn carry_out(&mut self, comparison: Comparison) -> Change {
        let (received, forgotten) = (comparison.received.len(), comparison.forgotten.len());
        for key in comparison.forgotten {
            self.content.remove(&key);
        }
        self.content.extend(comparison.received.into_iter().map(held));
        Change::Resynced { received, forgotten }
    }

    fn take(&mut self, kv: mvccpb::KeyValue) {
        // Only what is no longer there has no version.
        match kv.version {
            0 => _ = self.content.remove(&kv.key),
            _ => self.content.extend([held(kv)]),
        }
    }

    async fn connect(&self) -> Result<Stream, Error> {
        let open = v1::WatchOpen {
            key: self.range.key.clone(),
            range_end: self.range.end.clone(),
            start_revision: self.revision + 1,
            epoch: self.epoch,
            prev_kv: false,
            resync: true,
        };
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let first = v1::StoreWatchRequest { step: Some(store_watch_request::Step::Open(open)) };
        requests.try_send(first).expect("a new channel has room");
        let responses = answer(self.ring.store_watch().watch(ReceiverStream::new(asked))).await?;
        Ok(Stream { requests, responses, comparison: None, since: clock::monotonic() })
    }
}

impl Stream {
    /// Does not wait, so that a call that is dropped leaves no question half answered.
    fn say(&self, answer: v1::MirrorAnswer) -> Result<(), Error> {
        let request =
            v1::StoreWatchRequest { step: Some(store_watch_request::Step::Answer(answer)) };
        let said = self.requests.try_send(request);
        said.map_err(|_| tonic::Status::unavailable("the watch takes no answers").into())
    }
}

fn held(kv: mvccpb::KeyValue) -> (Bytes, Held) {
    (kv.key, Held { value: kv.value, mod_revision: kv.mod_revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        let end = |prefix: &'static [u8]| Range::prefix(prefix).end;
        assert_eq!(end(b"k/"), Bytes::from_static(b"k0"));
        assert_eq!(end(b"k\xff\xff"), Bytes::from_static(b"l"));
        assert_eq!(end(b"\xff"), Bytes::from_static(b"\0"));
        assert_eq!(Range::prefix(&b""[..]).key, Bytes::from_static(b"\0"));
    }
}
