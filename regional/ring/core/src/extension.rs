//! Extensions: states that a ring replicates beside its keyspace without knowing their meaning.
//!
//! The owner of a ring registers each extension with a tag and a page name. Commands that begin
//! with the tag are for that extension, and its snapshot is the page of that name, in checkpoints
//! and in snapshots for other members. A further extension is one implementation of [`Extension`]
//! and one [`Registration`].
//!
//! # Invariants
//!
//! - **STATE-1** An extension is a function of the commands that it applied: no clock, no randomness.
//! - **STATE-2** A refused command changes nothing. An extension is never changed in place: a
//!   command makes the next value, so readers keep the one they have, and a long command can be
//!   verified while the rest of the state is read and written.

use core::{any::Any, fmt};
use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{BATCH, Command, Entry, Prepared};

/// A replicated state besides the keyspace.
pub trait Extension: Any + fmt::Debug + Send + Sync {
    /// The state after a command; `body` is everything after the tag (STATE-1, STATE-2).
    ///
    /// # Errors
    ///
    /// [`Rejected`], on all members for the same reason.
    fn apply(&self, body: &Bytes) -> Result<Arc<dyn Extension>, Rejected>;

    /// A counter that never decreases. A member refuses a snapshot in which it is lower than in the
    /// member's state.
    fn version(&self) -> u64;

    /// The page from which [`Extension::restore`] restores this state.
    fn snapshot(&self) -> Vec<u8>;

    /// Restores the state from a page. The page may come from a peer, so all of it is verified
    /// again. Called on the initial state.
    ///
    /// # Errors
    ///
    /// [`Rejected`] names the fault.
    fn restore(&self, page: &[u8]) -> Result<Arc<dyn Extension>, Rejected>;
}

/// A command or a page that an extension refuses. The proposer's or the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The rule that is broken.
    pub rule: String,
    /// The fault.
    pub why: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.rule, self.why)
    }
}

impl core::error::Error for Rejected {}

/// One extension of a ring, before any command.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The first byte of its commands. Never changes: it is in every log.
    pub tag: u8,
    /// The name of its page. Never changes: it is in every checkpoint.
    pub page: &'static str,
    /// The state before any command.
    pub initial: Arc<dyn Extension>,
}

#[derive(Clone, Debug)]
struct Slot {
    page: &'static str,
    state: Arc<dyn Extension>,
    /// Whether it changed since the last checkpoint.
    changed: bool,
}

/// All extensions of a ring, by tag. A clone is a consistent view that no later command changes.
#[derive(Clone, Debug, Default)]
pub struct Extensions(BTreeMap<u8, Slot>);

impl Extensions {
    /// The extensions of a ring before any command.
    ///
    /// # Panics
    ///
    /// If two share a tag or a page, or one has the tag of batches: a bug in the program.
    #[must_use]
    pub fn new(registrations: impl IntoIterator<Item = Registration>) -> Self {
        let mut extensions = Self::default();
        for Registration { tag, page, initial } in registrations {
            assert!(tag != BATCH, "tag {tag} is that of batches");
            assert!(extensions.0.values().all(|slot| slot.page != page), "two pages `{page}`");
            let slot = Slot { page, state: initial, changed: false };
            assert!(extensions.0.insert(tag, slot).is_none(), "two extensions with tag {tag}");
        }
        extensions
    }

    /// The extension of this type.
    ///
    /// # Panics
    ///
    /// If none of this type is registered: a bug in the program.
    #[must_use]
    pub fn get<T: Extension>(&self) -> &T {
        let mut states = self.0.values().map(|slot| &*slot.state as &dyn Any);
        states.find_map(|state| state.downcast_ref()).expect("the ring's owner registered it")
    }

    /// Finds the extension that an entry is for. No other entry may be committed before this one.
    #[must_use]
    pub fn prepare(&self, entry: Entry) -> Prepared {
        let extension = match &entry {
            Entry::Command(Ok(Command::Extension { tag, .. })) => self.state(*tag),
            _ => None,
        };
        Prepared { extension: extension.cloned(), entry }
    }

    /// The page of the first extension with a higher version in `held` than here, and both
    /// versions.
    #[must_use]
    pub fn behind(&self, held: &Self) -> Option<(&'static str, u64, u64)> {
        let mut versions = self.0.iter().filter_map(|(tag, slot)| {
            Some((slot.page, slot.state.version(), held.state(*tag)?.version()))
        });
        versions.find(|(_, here, there)| here < there)
    }

    fn state(&self, tag: u8) -> Option<&Arc<dyn Extension>> {
        self.0.get(&tag).map(|slot| &slot.state)
    }

    pub(crate) fn replace(&mut self, tag: u8, state: Arc<dyn Extension>) {
        if let Some(slot) = self.0.get_mut(&tag) {
            (slot.state, slot.changed) = (state, true);
        }
    }

    /// The extensions that changed since the last call, with the names of their pages.
    pub(crate) fn take_changes(&mut self) -> Vec<(&'static str, Arc<dyn Extension>)> {
        let mut changed = Vec::new();
        for slot in self.0.values_mut().filter(|slot| slot.changed) {
            slot.changed = false;
            changed.push((slot.page, slot.state.clone()));
        }
        changed
    }

    /// Takes the extensions' pages out of `pages` and restores them. One without a page has its
    /// initial state.
    pub(crate) fn restore(
        &self,
        pages: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, (&'static str, Rejected)> {
        let mut restored = self.clone();
        for slot in restored.0.values_mut() {
            if let Some(page) = pages.remove(slot.page) {
                slot.state = slot.state.restore(&page).map_err(|why| (slot.page, why))?;
            }
        }
        Ok(restored)
    }
}
