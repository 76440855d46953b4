//! What a checkpoint writes, and how a state is rebuilt from one.

use core::fmt;
use std::collections::BTreeMap;

use satrap_merkle::codec::DecodeError;

use super::Keyspace;
use crate::{
    digest::{Multiset, StateDigest},
    kv::{self, Event},
    table::{Loaded, Paged},
};

/// Named pages: everything that is not history.
pub type Pages = BTreeMap<String, Vec<u8>>;

/// What changed since the last checkpoint.
#[derive(Debug, Default)]
pub struct Changes {
    /// Every write since, in order of revision and sub-revision.
    pub events: Vec<Event>,
    /// Pages to write over those of the same name.
    pub pages: Pages,
}

/// Why a checkpoint is not a state. Whoever made or kept it is not to be trusted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// A page does not decode.
    Page(String, DecodeError),
    /// A page that this version does not know.
    UnknownPage(String),
    /// A key lives by a lease, or a role is held by one, that does not exist.
    Lease(kv::LeaseId),
    /// The history contradicts itself.
    History(kv::RestoreError),
    /// Every part is well formed, and together they are not the state that was saved.
    Digest {
        /// What was saved.
        saved: StateDigest,
        /// What this is.
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
            Self::History(error) => error.fmt(f),
            Self::Digest { saved, found } => {
                write!(f, "the state has digest {found}, the one that was saved had {saved}")
            }
        }
    }
}

impl core::error::Error for RestoreError {}

/// The page that says what all the others and the history add up to.
const DIGEST_PAGE: &str = "digest";

fn decode_digest(page: &[u8]) -> Result<StateDigest, RestoreError> {
    let invalid = |_| RestoreError::Page(DIGEST_PAGE.to_owned(), DecodeError::Invalid("digest"));
    page.try_into().map(StateDigest).map_err(invalid)
}

impl Keyspace {
    fn tables(&self) -> Vec<&dyn Paged> {
        let own: [&dyn Paged; 8] = [
            &self.standing,
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
            &mut self.standing,
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

    /// What changed since the last call. The caller must make it durable as a whole, or stop.
    pub fn take_changes(&mut self) -> Changes {
        let mut pages = Pages::new();
        self.tables_mut().into_iter().for_each(|table| table.take_dirty(&mut pages));
        pages.insert(DIGEST_PAGE.to_owned(), self.digest().0.to_vec());
        Changes { events: self.store.take_events(), pages }
    }

    /// Rebuilds a state from all pages ever written, the newest of each name, and every event that
    /// [`kv::Store::holds`] said was needed, in order of revision and sub-revision. More events
    /// than that do no harm if they were dropped oldest first: a version whose deletion was dropped
    /// before it would come back, so that is refused by the digest.
    ///
    /// # Errors
    ///
    /// A [`RestoreError`] says what is wrong with the checkpoint.
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
        let compacted = keyspace.standing.get(&()).map_or(-1, |standing| standing.compacted);
        let store = kv::Store::restore(compacted, events).map_err(RestoreError::History)?;
        keyspace.store = store;
        keyspace.rebuild()?;
        // No page at all is a ring before its first checkpoint.
        let (saved, found) = (saved.unwrap_or_else(|| Self::new().digest()), keyspace.digest());
        if saved == found { Ok(keyspace) } else { Err(RestoreError::Digest { saved, found }) }
    }

    fn load(&mut self, name: &str, page: &[u8]) -> Result<(), RestoreError> {
        for table in self.tables_mut() {
            let loaded = table.load(name, page);
            match loaded.map_err(|error| RestoreError::Page(name.to_owned(), error))? {
                Loaded::Taken => return Ok(()),
                Loaded::OfAnother => {}
            }
        }
        Err(RestoreError::UnknownPage(name.to_owned()))
    }

    /// Rebuilds everything that follows from rows and live keys (G5).
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
        let mut standing = Vec::with_capacity(24);
        standing.extend_from_slice(&held.to_be_bytes());
        standing.extend_from_slice(&self.store.revision().to_be_bytes());
        sum.insert("history", &standing);
        sum.digest()
    }
}
