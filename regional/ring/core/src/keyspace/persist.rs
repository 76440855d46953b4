//! Checkpoints of the keyspace: taking its changes, and restoring a keyspace from pages and events.

use core::fmt;
use std::collections::BTreeMap;

use satrap_merkle::codec::DecodeError;

use super::Keyspace;
use crate::{
    digest::{Multiset, StateDigest},
    extension::Rejected,
    kv::{self, Event},
    recovery::{RecoveryKind, Signatories},
    table::{Loaded, Paged},
};

/// Named pages: all state but the history.
pub type Pages = BTreeMap<String, Vec<u8>>;

/// All changes since the last checkpoint.
#[derive(Debug, Default)]
pub struct Changes {
    /// Every write since then, in order of revision and sub-revision.
    pub events: Vec<Event>,
    /// Pages that replace those of the same name.
    pub pages: Pages,
}

/// A checkpoint is invalid. The disk that held it, or the peer that sent it, can no longer be
/// trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// A page cannot be decoded.
    Page(String, DecodeError),
    /// A page is unknown to this version.
    UnknownPage(String),
    /// A key or a role refers to a lease that does not exist.
    Lease(kv::LeaseId),
    /// A page of an extension is invalid.
    Extension(&'static str, Rejected),
    /// The record of the forced recovery with this epoch lacks signatures.
    Unsigned(u32),
    /// The history is inconsistent.
    History(kv::RestoreError),
    /// Every part is well formed, but together they are not the saved state.
    Digest {
        /// The digest that was saved.
        saved: StateDigest,
        /// The digest of this state.
        found: StateDigest,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(name, error) => write!(f, "page {name}: {error}"),
            Self::UnknownPage(name) => {
                write!(f, "page {name} is of a newer version than this program")
            }
            Self::Lease(id) => write!(f, "something lives by lease {id:x}, which does not exist"),
            Self::Extension(page, why) => write!(f, "page {page} does not verify: {why}"),
            Self::Unsigned(epoch) => {
                write!(f, "the forced recovery of epoch {epoch} is not signed by enough operators")
            }
            Self::History(error) => error.fmt(f),
            Self::Digest { saved, found } => {
                write!(f, "the state has digest {found}, the one that was saved had {saved}")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

/// The page with the digest of all other pages and the history.
const DIGEST_PAGE: &str = "digest";

fn decode_digest(page: &[u8]) -> Result<StateDigest, RestoreError> {
    let invalid = |_| RestoreError::Page(DIGEST_PAGE.to_owned(), DecodeError::Invalid("digest"));
    page.try_into().map(StateDigest).map_err(invalid)
}

impl Keyspace {
    fn tables(&self) -> Vec<&dyn Paged> {
        let own: [&dyn Paged; 8] = [
            &self.progress,
            &self.recoveries,
            &self.lessor.rows,
            &self.roles.rows,
            &self.alarms.raised,
            &self.quotas.rows,
            &self.members.invited,
            &self.members.published,
        ];
        own.into_iter().chain(self.auth.tables()).collect()
    }

    fn tables_mut(&mut self) -> Vec<&mut dyn Paged> {
        let own: [&mut dyn Paged; 8] = [
            &mut self.progress,
            &mut self.recoveries,
            &mut self.lessor.rows,
            &mut self.roles.rows,
            &mut self.alarms.raised,
            &mut self.quotas.rows,
            &mut self.members.invited,
            &mut self.members.published,
        ];
        own.into_iter().chain(self.auth.tables_mut()).collect()
    }

    /// Takes all changes since the last call. The caller must make them durable together, or stop.
    pub fn take_changes(&mut self) -> Changes {
        let mut pages = Pages::new();
        self.tables_mut().into_iter().for_each(|table| table.take_dirty(&mut pages));
        pages.insert(DIGEST_PAGE.to_owned(), self.digest().0.to_vec());
        Changes { events: self.store.take_events(), pages }
    }

    /// Restores a keyspace from the newest page of each name, and every event that
    /// [`kv::Store::holds`] still needed, in order of revision and sub-revision. Further events do
    /// no harm if earlier ones were dropped oldest first: a version whose deletion was dropped
    /// before it would come back, so the digest refuses that.
    ///
    /// # Errors
    ///
    /// A [`RestoreError`] names the fault in the checkpoint.
    pub fn restore(
        pages: &Pages,
        events: impl Iterator<Item = Event>,
    ) -> Result<Self, RestoreError> {
        let mut keyspace = Self::new();
        let mut saved = None;
        for (name, page) in pages {
            match name.as_str() {
                DIGEST_PAGE => saved = Some(decode_digest(page)?),
                _ => keyspace.load(name, page)?,
            }
        }
        let compacted = keyspace.progress.get(&()).map_or(-1, |progress| progress.compacted);
        let store = kv::Store::restore(compacted, events).map_err(RestoreError::History)?;
        keyspace.store = store;
        keyspace.rebuild()?;
        // A ring before its first checkpoint has no page.
        let (saved, found) = (saved.unwrap_or_else(|| Self::new().digest()), keyspace.digest());
        if saved == found { Ok(keyspace) } else { Err(RestoreError::Digest { saved, found }) }
    }

    /// Sets the signatories, and checks the forced recoveries in this state (RECOVERY-1).
    pub(crate) fn require(mut self, signatories: &Signatories) -> Result<Self, RestoreError> {
        let forced = self.recoveries().filter(|record| record.kind == RecoveryKind::Forced);
        for record in forced {
            signatories.check(record).map_err(|_| RestoreError::Unsigned(record.epoch))?;
        }
        self.signatories = signatories.clone();
        Ok(self)
    }

    fn load(&mut self, name: &str, page: &[u8]) -> Result<(), RestoreError> {
        for table in self.tables_mut() {
            let loaded = table.load(name, page);
            match loaded.map_err(|error| RestoreError::Page(name.to_owned(), error))? {
                Loaded::Stored => return Ok(()),
                Loaded::OtherTable => {}
            }
        }
        Err(RestoreError::UnknownPage(name.to_owned()))
    }

    /// Rebuilds the fields derived from rows and live keys (STATE-5).
    fn rebuild(&mut self) -> Result<(), RestoreError> {
        self.lessor.rebuild(self.now());
        self.auth.rebuild();
        self.roles.rebuild();
        let all = kv::RangeRequest::of(kv::KeyRange::all());
        let live = self.store.range(&all).map(|found| found.kvs).unwrap_or_default();
        self.lessor.attach_all(&live).map_err(RestoreError::Lease)?;
        if let Some(lost) = self.roles.leases().find(|id| !self.lessor.exists(*id)) {
            return Err(RestoreError::Lease(lost));
        }
        let of_prefix = |prefix: &bytes::Bytes| {
            let from = live.partition_point(|kv| kv.key() < &prefix[..]);
            let prefix = prefix.clone();
            live[from..]
                .iter()
                .map(AsRef::as_ref)
                .take_while(move |kv: &&kv::KeyValue| kv.key().starts_with(&prefix))
        };
        self.quotas.rebuild(of_prefix);
        Ok(())
    }

    /// Digest of the whole state; equal on all members that applied the same log.
    #[must_use]
    pub fn digest(&self) -> StateDigest {
        let mut sum = Multiset::default();
        self.tables().into_iter().for_each(|table| sum.join(table.sum()));
        let held = self.store.held().digest;
        let mut history = Vec::with_capacity(24);
        history.extend_from_slice(&held.to_be_bytes());
        history.extend_from_slice(&self.store.revision().to_be_bytes());
        sum.insert("history", &history);
        sum.digest()
    }
}
