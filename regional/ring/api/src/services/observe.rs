//! Observes an election: reports each leader, and every value that a leader proclaims, in order.
//!
//! ```text
//!            a key exists                           it is deleted
//!   Look ──────────────────▶ Follow(key) ──────────────────────────▶ Look
//!    │ none                      ▲
//!    └──────▶ Wait ──────────────┘ the first put under the name
//! ```
//!
//! No proclaimed value is left out unless its revision is compacted before the observer reads it. The observer then
//! reads the present leader and goes on, where etcd's would end.

use std::collections::VecDeque;

use satrap_proto::v3electionpb as pb;
use satrap_ring_core::Caller;
use satrap_ring_core::kv::Store;
use satrap_ring_core::kv::request::KeysOnly;
use satrap_ring_core::kv::request::{KeyRange, Revision};
use satrap_ring_core::kv::response::Event;
use tokio::sync::watch;

use super::recipe::{RecipeCall, RecipeError};
use crate::calls::Unavailable;
use crate::convert::kv;
use crate::limits::DELETIONS_REVISIONS_AT_ONCE;
use crate::members::AppliedMark;

/// One client that observes an election.
#[derive(Debug)]
pub(super) struct Observer {
    call: RecipeCall,
    caller: Caller,
    queue: KeyRange,
    applied: watch::Receiver<AppliedMark>,
    phase: Phase,
    /// Events to be sent, with the revision of their response header.
    found: VecDeque<(Revision, Event)>,
    /// The event that was sent last, so that reading the leader again does not send it twice.
    sent: Option<Event>,
}

#[derive(Clone, Debug)]
enum Phase {
    Look,
    /// Waits for the first put under the name, from this revision on.
    Wait(Revision),
    /// Reports the events of this key, from this revision on.
    Follow(Event, Revision),
}

/// The result of reading some events.
enum Seen {
    /// All events were read.
    Everything,
    /// There are more events to read or to send.
    Part,
}

impl Observer {
    pub fn new(call: RecipeCall, queue: KeyRange) -> Self {
        let applied = call.api.backend.applied();
        let (caller, found) = (Caller::default(), VecDeque::new());
        Self { call, caller, queue, applied, phase: Phase::Look, found, sent: None }
    }

    /// The next leader, or the next value that the leader proclaims.
    pub async fn next(&mut self) -> Result<pb::LeaderResponse, RecipeError> {
        loop {
            while let Some((revision, event)) = self.found.pop_front() {
                let sent = self.sent.replace(event.clone());
                if sent.is_none_or(|sent| sent != event) {
                    return self.response(revision, &event);
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

    fn response(
        &self,
        revision: Revision,
        event: &Event,
    ) -> Result<pb::LeaderResponse, RecipeError> {
        let backend = &self.call.api.backend;
        // Checked against the user's present permissions, as for every watch.
        let range = KeyRange::key(event.key_bytes());
        backend.inspect(|keyspace| keyspace.auth().check_watching(&self.caller, &range))?;
        let header = Some(backend.header_at(revision));
        Ok(pb::LeaderResponse { header, kv: Some(kv::key_value(event, KeysOnly::No)) })
    }

    async fn look(&mut self) -> Result<(), RecipeError> {
        self.call.api.backend.linearizable().await?;
        self.caller = self.call.caller()?;
        let (oldest, revision) = self.call.oldest(&self.queue)?;
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
        let Self { call, queue, phase, found, .. } = self;
        call.api.backend.inspect(|keyspace| {
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

/// Whether events from this revision on are missing: compacted, or of another history.
fn is_gap(store: &Store, from: Revision) -> bool {
    from < store.first_event_revision() || from > store.revision() + 1
}

type Found = VecDeque<(Revision, Event)>;

fn wait(store: &Store, queue: &KeyRange, mut from: Revision, found: &mut Found) -> (Phase, Seen) {
    for events in store.events(from, DELETIONS_REVISIONS_AT_ONCE) {
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
    for events in store.events(from, DELETIONS_REVISIONS_AT_ONCE) {
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
