//! The store's log: the events of each revision, as each member reports them.
//!
//! [`Timeline`] is the merged log, indexed by key, so that a checker can ask for the state at any
//! revision. Building it already judges the log itself.
//!
//! # Invariants
//!
//! - HISTKV-2: Revisions are dense and unique: every mutating transaction is one, the next is one more.
//! - HISTKV-7: Members that hold the same revision hold the same events for it.

use std::collections::BTreeMap;

use crate::{KeyValue, Revision, Rule, Span, Violation};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(new) => &new.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision that changed it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(new) => new.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// The key after the change.
    #[must_use]
    pub fn after(&self) -> Option<&KeyValue> {
        match self {
            Self::Put(new) => Some(new),
            Self::Delete { .. } => None,
        }
    }
}

/// The revisions that one member holds, in order, each with its events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberLog {
    /// The member.
    pub member: u64,
    /// Its revisions. A member that was behind a compaction may miss some.
    pub entries: BTreeMap<Revision, Vec<Event>>,
}

/// A member's claim about its whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The member.
    pub member: u64,
    /// The revision of the state.
    pub revision: Revision,
    /// The revision below which it was compacted.
    pub compacted: Revision,
    /// The digest.
    pub hash: u64,
}

/// The merged log, with the versions of each key.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    entries: BTreeMap<Revision, Vec<Event>>,
    versions: BTreeMap<String, Vec<(Revision, Option<KeyValue>)>>,
}

impl Timeline {
    /// Merges the logs of the members, and reports where they break HISTKV-2 or HISTKV-7.
    #[must_use]
    pub fn merge(logs: &[MemberLog]) -> (Self, Vec<Violation>) {
        let mut found = Vec::new();
        let mut timeline = Self::default();
        let mut holders = BTreeMap::new();
        for log in logs {
            for (revision, events) in &log.entries {
                let held = timeline.entries.entry(*revision).or_insert_with(|| events.clone());
                let holder = *holders.entry(*revision).or_insert(log.member);
                if held != events {
                    found.push(Violation::new(
                        Rule::MembersAgree,
                        format!(
                            "revision {revision}: member {holder:x} holds {held:?}, member {:x} \
                             holds {events:?}",
                            log.member
                        ),
                    ));
                }
            }
        }
        timeline.index(&mut found);
        (timeline, found)
    }

    fn index(&mut self, found: &mut Vec<Violation>) {
        let mut next = 2;
        for (revision, events) in &self.entries {
            if *revision != next {
                let what = format!("revision {next} is missing, revision {revision} follows");
                found.push(Violation::new(Rule::Dense, what));
            }
            next = revision + 1;
            for event in events {
                let versions = self.versions.entry(event.key().to_owned()).or_default();
                let before = versions.last().and_then(|(_, kv)| kv.as_ref());
                let twice = versions.last().is_some_and(|(r, _)| r == revision);
                if twice || event.revision() != *revision || !follows(before, event) {
                    let what = format!("revision {revision}: {event:?} does not follow {before:?}");
                    found.push(Violation::new(Rule::Dense, what));
                }
                versions.push((*revision, event.after().cloned()));
            }
        }
    }

    /// Adds a revision behind the last one.
    pub fn push(&mut self, revision: Revision, events: Vec<Event>) {
        for event in &events {
            let versions = self.versions.entry(event.key().to_owned()).or_default();
            versions.push((revision, event.after().cloned()));
        }
        self.entries.insert(revision, events);
    }

    /// Takes back the last revision.
    pub fn pop(&mut self) -> Option<(Revision, Vec<Event>)> {
        let (revision, events) = self.entries.pop_last()?;
        for event in &events {
            self.versions.get_mut(event.key()).and_then(Vec::pop);
        }
        Some((revision, events))
    }

    /// The last revision; 1 for an empty store.
    #[must_use]
    pub fn head(&self) -> Revision {
        self.entries.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// The events of a revision.
    #[must_use]
    pub fn events(&self, revision: Revision) -> Option<&[Event]> {
        self.entries.get(&revision).map(Vec::as_slice)
    }

    /// All revisions from `first` on, in order.
    pub fn since(&self, first: Revision) -> impl Iterator<Item = (Revision, &[Event])> {
        self.entries.range(first..).map(|(revision, events)| (*revision, events.as_slice()))
    }

    /// A key as it was at a revision.
    #[must_use]
    pub fn at(&self, key: &str, revision: Revision) -> Option<&KeyValue> {
        let versions = self.versions.get(key)?;
        let behind = versions.partition_point(|(r, _)| *r <= revision);
        versions.get(behind.checked_sub(1)?).and_then(|(_, kv)| kv.as_ref())
    }

    /// The keys that a span ever held.
    pub fn keys<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = &'a str> {
        self.versions
            .range::<str, _>((
                std::ops::Bound::Included(span.key.as_str()),
                std::ops::Bound::Unbounded,
            ))
            .map(|(key, _)| key.as_str())
            .take_while(|key| span.holds(key))
    }
}

/// Whether the fields of an event fit what was there before it.
fn follows(before: Option<&KeyValue>, event: &Event) -> bool {
    match (event, before) {
        (Event::Put(new), None) => new.version == 1 && new.created == new.modified,
        (Event::Put(new), Some(old)) => {
            new.version == old.version + 1 && new.created == old.created
        }
        (Event::Delete { .. }, before) => before.is_some(),
    }
}

/// HISTKV-7 for whole states: equal digests at an equal revision and compaction.
#[must_use]
pub fn check_digests(digests: &[Digest]) -> Vec<Violation> {
    let mut seen: BTreeMap<_, &Digest> = BTreeMap::new();
    let mut found = Vec::new();
    for digest in digests {
        let first = seen.entry((digest.revision, digest.compacted)).or_insert(digest);
        if first.hash != digest.hash {
            let what = format!("{first:?} and {digest:?} differ");
            found.push(Violation::new(Rule::MembersAgree, what));
        }
    }
    found
}
