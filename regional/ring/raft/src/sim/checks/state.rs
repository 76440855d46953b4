//! The rules of the members' states.
//!
//! - **RAFT-4** (HISTKV-7) Members that applied the same index are in the same state.
//! - HISTKV-2: A member holds the same events of a revision as it, and every other member, held
//!   before.

use std::collections::{BTreeMap, btree_map::Entry};

use satrap_history::{Event, MemberLog, Revision};
use satrap_ring_core::digest::StateDigest;

use crate::{
    sim::{words, world::Live},
    types::MemberName,
};

/// RAFT-4
#[derive(Default)]
pub struct States(BTreeMap<u64, StateDigest>);

impl States {
    /// Checks one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let (state, position) = live.ring.node.shared.lock();
        let Some(applied) = position.applied else { return Ok(()) };
        let digest = state.keyspace().digest();
        let known = *self.0.entry(applied.index).or_insert(digest);
        if known != digest {
            return Err(format!(
                "RAFT-4: {name} is at {digest} after {}, others at {known}",
                applied.index
            ));
        }
        Ok(())
    }
}

/// Records every revision before it is compacted, for the checkers of histories.
#[derive(Default)]
pub struct Recorder {
    events: BTreeMap<Revision, Vec<Event>>,
    seen: BTreeMap<MemberName, Revision>,
    /// All revisions up to this one are recorded.
    complete: Revision,
}

impl Recorder {
    /// Checks and records one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let seen = self.seen.entry(name.clone()).or_default();
        let (state, _position) = live.ring.node.shared.lock();
        let store = state.keyspace().store();
        // A restarted member goes through its revisions again.
        let from = (*seen + 1).min(store.revision()).max(store.first_event_revision());
        for events in store.events(from, usize::MAX) {
            let Some(revision) = events.first().map(|event| event.mod_revision) else { continue };
            let events: Vec<Event> = events.iter().map(|event| words::event(event)).collect();
            match self.events.entry(revision) {
                Entry::Vacant(entry) => {
                    entry.insert(events);
                }
                Entry::Occupied(entry) if *entry.get() != events => {
                    let known = entry.get();
                    return Err(format!(
                        "HISTKV-2: {name} holds {events:?} at {revision}, was {known:?}"
                    ));
                }
                Entry::Occupied(_) => {}
            }
        }
        *seen = store.revision();
        let mut next = self.complete.max(1) + 1;
        while self.events.contains_key(&next) {
            next += 1;
        }
        self.complete = next - 1;
        Ok(())
    }

    /// All revisions up to this one are recorded.
    pub fn complete(&self) -> Revision {
        self.complete
    }

    /// The record as one log: the checks have compared all members with it.
    pub fn log(&self) -> MemberLog {
        MemberLog { member: 0, entries: self.events.clone() }
    }
}
