//! Tells who leads an election, and everything a leader proclaims, in order.
//!
//! ```text
//!           a key is there                          it is deleted
//!   Look ──────────────────▶ Follow(key) ──────────────────────────▶ Look
//!    │ none                      ▲
//!    └──────▶ Wait ──────────────┘ the first put under the name
//! ```
//!
//! Nothing a leader says is left out unless the log was compacted under us; then the observer looks
//! again, where etcd's would end.

use std::collections::VecDeque;

use satrap_proto::v3electionpb as pb;
use satrap_regional_core::Caller;
use satrap_regional_core::kv::Store;
use satrap_regional_core::kv::request::{KeyRange, Revision};
use satrap_regional_core::kv::response::{Event, KeysOnly};
use tokio::sync::watch;

use super::recipe::{Trouble, Visit};
use crate::backend::{AppliedMark, Unavailable};
use crate::convert::kv;
use crate::limits::DEPARTURES_REVISIONS_AT_ONCE;

/// One client that observes an election.
#[derive(Debug)]
pub(super) struct Observer {
    visit: Visit,
    caller: Caller,
    queue: KeyRange,
    applied: watch::Receiver<AppliedMark>,
    phase: Phase,
    /// Found and not yet told, with the revision its header says.
    found: VecDeque<(Revision, Event)>,
    /// What was told last, so that looking again does not tell it twice.
    told: Option<Event>,
}

#[derive(Clone, Debug)]
enum Phase {
    Look,
    /// For the first put under the name, from this revision on.
    Wait(Revision),
    /// This key, from this revision on.
    Follow(Event, Revision),
}

/// What a look at the log gave.
enum Seen {
    /// Nothing more for now.
    Everything,
    /// There is more to look at, or to tell.
    Part,
}

impl Observer {
    pub fn new(visit: Visit, queue: KeyRange) -> Self {
        let applied = visit.gate.backend().applied();
        let (caller, found) = (Caller::default(), VecDeque::new());
        Self { visit, caller, queue, applied, phase: Phase::Look, found, told: None }
    }

    /// The next leader, or the next thing it says.
    pub async fn next(&mut self) -> Result<pb::LeaderResponse, Trouble> {
        loop {
            while let Some((revision, event)) = self.found.pop_front() {
                let told = self.told.replace(event.clone());
                if told.is_none_or(|told| told != event) {
                    return self.tell(revision, &event);
                }
            }
            if let Phase::Look = self.phase {
                self.look().await?;
                continue;
            }
            match self.read_log() {
                Seen::Part => tokio::task::yield_now().await,
                Seen::Everything => {
                    self.applied.changed().await.map_err(|_| Unavailable::Stopped)?;
                }
            }
        }
    }

    fn tell(&self, revision: Revision, event: &Event) -> Result<pb::LeaderResponse, Trouble> {
        let backend = self.visit.gate.backend();
        // Judged by what the user may read now, as every watch.
        let range = KeyRange::key(event.key_bytes());
        backend.read(|keyspace| keyspace.auth().check_watching(&self.caller, &range))?;
        let header = Some(backend.header_at(revision));
        Ok(pb::LeaderResponse { header, kv: Some(kv::key_value(event, KeysOnly::No)) })
    }

    async fn look(&mut self) -> Result<(), Trouble> {
        self.visit.gate.backend().linearizable().await?;
        self.caller = self.visit.caller()?;
        let (oldest, revision) = self.visit.oldest(&self.queue)?;
        self.phase = match oldest {
            Some(leader) => {
                self.found.push_back((revision, leader.clone()));
                Phase::Follow(leader, revision + 1)
            }
            None => Phase::Wait(revision + 1),
        };
        Ok(())
    }

    fn read_log(&mut self) -> Seen {
        let Self { visit, queue, phase, found, .. } = self;
        visit.gate.backend().read(|keyspace| {
            let store = keyspace.store();
            let (next, seen) = match phase.clone() {
                Phase::Look => return Seen::Part,
                Phase::Wait(from) if is_gap(store, from) => (Phase::Look, Seen::Part),
                Phase::Follow(_, from) if is_gap(store, from) => (Phase::Look, Seen::Part),
                Phase::Wait(from) => wait(store, queue, from, found),
                Phase::Follow(leader, from) => follow(store, leader, from, found),
            };
            *phase = next;
            seen
        })
    }
}

/// Whether the log lacks something from here on: compacted, or another history.
fn is_gap(store: &Store, from: Revision) -> bool {
    from < store.first_event_revision() || from > store.revision() + 1
}

type Found = VecDeque<(Revision, Event)>;

fn wait(store: &Store, queue: &KeyRange, mut from: Revision, found: &mut Found) -> (Phase, Seen) {
    for events in store.events(from, DEPARTURES_REVISIONS_AT_ONCE) {
        from += 1;
        let put = events.iter().find(|event| !event.is_deletion() && queue.contains(event.key()));
        if let Some(leader) = put {
            found.push_back((leader.mod_revision, leader.clone()));
            return (Phase::Follow(leader.clone(), from), Seen::Part);
        }
    }
    (Phase::Wait(from), seen_until(store, from))
}

fn follow(store: &Store, leader: Event, mut from: Revision, found: &mut Found) -> (Phase, Seen) {
    for events in store.events(from, DEPARTURES_REVISIONS_AT_ONCE) {
        from += 1;
        for event in events.iter().filter(|event| event.key() == leader.key()) {
            if event.is_deletion() {
                return (Phase::Look, Seen::Part);
            }
            found.push_back((store.revision(), event.clone()));
        }
    }
    let seen = if found.is_empty() { seen_until(store, from) } else { Seen::Part };
    (Phase::Follow(leader, from), seen)
}

fn seen_until(store: &Store, from: Revision) -> Seen {
    if from > store.revision() { Seen::Everything } else { Seen::Part }
}
