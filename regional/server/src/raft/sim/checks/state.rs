//! What the states hold.
//!
//! - **R4**, **K7** Members that applied the same index are in the same state.
//! - **K2** What a member holds of a revision is what it, and everybody else, held of it before.

use std::collections::{BTreeMap, btree_map::Entry};

use satrap_history::{Event, MemberLog, Revision};
use satrap_regional_core::digest::StateDigest;

use crate::raft::{
    sim::{words, world::Live},
    types::MemberName,
};

/// R4
#[derive(Default)]
pub struct States(BTreeMap<u64, StateDigest>);

impl States {
    /// Looks at one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let (keyspace, standing) = live.ring.shared.lock();
        let Some(applied) = standing.applied else { return Ok(()) };
        let digest = keyspace.digest();
        let known = *self.0.entry(applied.index).or_insert(digest);
        if known != digest {
            return Err(format!(
                "R4: {name} is at {digest} after {}, others at {known}",
                applied.index
            ));
        }
        Ok(())
    }
}

/// Writes down every revision before it is compacted, for the checkers of histories.
#[derive(Default)]
pub struct Recorder {
    events: BTreeMap<Revision, Vec<Event>>,
    seen: BTreeMap<MemberName, Revision>,
    /// Everything up to here is written down.
    complete: Revision,
}

impl Recorder {
    /// Looks at one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let seen = self.seen.entry(name.clone()).or_default();
        let (keyspace, _standing) = live.ring.shared.lock();
        let store = keyspace.store();
        // A member that restarted goes through what it had seen again.
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
                        "K2: {name} holds {events:?} at {revision}, was {known:?}"
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

    /// Everything up to here is written down.
    pub fn complete(&self) -> Revision {
        self.complete
    }

    /// As one log: that members agree has been checked all along.
    pub fn log(&self) -> MemberLog {
        MemberLog { member: 0, entries: self.events.clone() }
    }
}
