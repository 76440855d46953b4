//! The guarantees of watches.
//!
//! HISTWATCH-1 to HISTWATCH-7 and the two on values are etcd's, with the definitions of its own validator; the last
//! three are what its users ask for in addition. Each watch is compared with the merged log, which
//! [`crate::replay`] has tied to what clients were told.
//!
//! # Invariants
//!
//! The rules `Watch*` of [`Rule`], each in one function or one branch below.

use std::collections::BTreeMap;

use crate::{
    Event, KeyValue, Nanos, Operation, Outcome, Recording, Request, Revision, Rule, Span, Timeline,
    Violation,
};

/// One watch on one stream. A watcher that resumes after a break leaves several, in order, under
/// one client number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The watcher.
    pub client: u32,
    /// The member watched.
    pub member: u64,
    /// The request.
    pub request: WatchRequest,
    /// When it was asked.
    pub called_ns: Nanos,
    /// The deliveries, in order.
    pub deliveries: Vec<Delivery>,
    /// When the stream broke or was closed; `None` if it was open to the end of the recording.
    pub closed_ns: Option<Nanos>,
}

/// The request of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub span: Span,
    /// The first revision wanted; 0 for the next one.
    pub start: Revision,
    /// The events left out.
    pub filter: Filter,
    /// Whether the values before each event are wanted.
    pub before: bool,
    /// Whether the store may split a revision over responses.
    pub fragment: bool,
}

/// The kinds of events that a watcher leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// None.
    Nothing,
    /// Puts.
    Puts,
    /// Deletes.
    Deletes,
}

/// One response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it came.
    pub at_ns: Nanos,
    /// The content.
    pub what: Delivered,
}

/// The kinds of responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The watch exists; the store was at this revision.
    Created(Revision),
    /// Events.
    Events {
        /// In order.
        events: Vec<WatchEvent>,
        /// Whether the next response goes on with the same revision.
        fragment: bool,
    },
    /// All events up to this revision were delivered.
    Progress(Revision),
    /// The store ended the watch.
    Canceled {
        /// The revision of the compaction that ended it; 0 if something else did.
        compacted: Revision,
        /// The reason in the store's words.
        reason: String,
    },
}

/// An event with the value before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The event.
    pub event: Event,
    /// The key before the event, if that was asked for and known.
    pub before: Option<KeyValue>,
}

impl WatchRequest {
    /// Whether an event is of the kind and the keys asked for.
    #[must_use]
    pub fn matches(&self, event: &Event) -> bool {
        let kind = match (self.filter, event) {
            (Filter::Puts, Event::Put(_)) | (Filter::Deletes, Event::Delete { .. }) => false,
            (Filter::Nothing | Filter::Puts | Filter::Deletes, _) => true,
        };
        kind && self.span.holds(event.key())
    }
}

impl Watch {
    /// The events delivered, in order, with their times.
    pub fn events(&self) -> impl Iterator<Item = (Nanos, &WatchEvent)> {
        self.deliveries.iter().flat_map(|delivery| {
            let events = match &delivery.what {
                Delivered::Events { events, .. } => events.as_slice(),
                _ => &[],
            };
            events.iter().map(|event| (delivery.at_ns, event))
        })
    }

    /// The revisions that the watcher learned of, with the times.
    pub fn revisions(&self) -> impl Iterator<Item = (Nanos, Revision)> {
        self.deliveries.iter().filter_map(|delivery| match &delivery.what {
            Delivered::Created(revision) | Delivered::Progress(revision) => {
                Some((delivery.at_ns, *revision))
            }
            Delivered::Events { events, .. } => {
                events.last().map(|last| (delivery.at_ns, last.event.revision()))
            }
            Delivered::Canceled { .. } => None,
        })
    }

    /// The first revision that the watcher must receive.
    fn first_wanted(&self) -> Option<Revision> {
        if self.request.start > 0 {
            return Some(self.request.start);
        }
        self.deliveries.iter().find_map(|delivery| match delivery.what {
            Delivered::Created(revision) => Some(revision + 1),
            _ => None,
        })
    }

    /// The first revision that the watcher has not been told of; `None` if it does not know yet.
    #[must_use]
    pub fn next_wanted(&self) -> Option<Revision> {
        self.first_wanted().map(|first| first.max(self.last_seen() + 1))
    }

    /// The last revision whose events the watcher must have: that of its last event or progress.
    fn last_seen(&self) -> Revision {
        let seen = self.deliveries.iter().filter_map(|delivery| match &delivery.what {
            Delivered::Events { events, .. } => events.last().map(|last| last.event.revision()),
            Delivered::Progress(revision) => Some(*revision),
            Delivered::Created(_) | Delivered::Canceled { .. } => None,
        });
        seen.max().unwrap_or(0)
    }

    fn says(&self, rule: Rule, what: impl std::fmt::Display) -> Violation {
        let (client, request) = (self.client, &self.request);
        Violation::new(rule, format!("watcher {client} at {:x}, {request:?}: {what}", self.member))
    }
}

/// By when open watches must have caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Healed {
    /// When the last fault was over.
    pub at_ns: Nanos,
    /// The time given from there.
    pub within_ns: Nanos,
    /// The revision to reach, which was written behind the last fault.
    pub revision: Revision,
}

/// Checks all watches of a recording against its merged log.
#[must_use]
pub fn check(recording: &Recording, timeline: &Timeline) -> Vec<Violation> {
    let mut found = Vec::new();
    let compactions: Vec<_> = recording.operations.iter().filter_map(compacted).collect();
    let mut watchers: BTreeMap<u32, Vec<&Watch>> = BTreeMap::new();
    for watch in &recording.watches {
        watchers.entry(watch.client).or_default().push(watch);
    }
    for watches in watchers.values() {
        in_order(watches, &mut found);
    }
    for watch in &recording.watches {
        complete(watch, timeline, &mut found);
        values(watch, timeline, &compactions, &mut found);
        canceled(watch, &compactions, &mut found);
        if let Some(healed) = recording.healed {
            live(watch, timeline, healed, &mut found);
        }
    }
    found
}

/// When a compaction that may have happened was called, and to which revision.
fn compacted(operation: &Operation) -> Option<(Nanos, Revision)> {
    match (&operation.request, &operation.outcome) {
        (Request::Compact(_), Outcome::Fail(_)) => None,
        (Request::Compact(revision), _) => Some((operation.call_ns, *revision)),
        _ => None,
    }
}

/// HISTWATCH-1, HISTWATCH-2, HISTWATCH-3, HISTWATCH-6, over all streams of one watcher.
fn in_order(watches: &[&Watch], found: &mut Vec<Violation>) {
    let (mut last, mut progress, mut continues) = (0, 0, false);
    let mut keys_at_last: Vec<&str> = Vec::new();
    for watch in watches {
        for delivery in &watch.deliveries {
            match &delivery.what {
                Delivered::Events { events, fragment } => {
                    let first = events.first().map(|first| first.event.revision());
                    if first == Some(last) && !continues {
                        let what = format!("revision {last} is split over responses");
                        found.push(watch.says(Rule::WatchAtomic, what));
                    }
                    for WatchEvent { event, .. } in events {
                        if event.revision() < last {
                            let what = format!("{event:?} came after revision {last}");
                            found.push(watch.says(Rule::WatchOrdered, what));
                        }
                        if event.revision() <= progress {
                            let what = format!("{event:?} came after progress {progress}");
                            found.push(watch.says(Rule::WatchBookmarkable, what));
                        }
                        if event.revision() != last {
                            keys_at_last.clear();
                        }
                        if keys_at_last.contains(&event.key()) {
                            let what = format!("{event:?} came twice");
                            found.push(watch.says(Rule::WatchUnique, what));
                        }
                        last = event.revision();
                        keys_at_last.push(event.key());
                    }
                    continues = *fragment;
                }
                Delivered::Progress(revision) => {
                    if *revision < progress || *revision < last {
                        let what = format!("progress {revision} came after {last} and {progress}");
                        found.push(watch.says(Rule::WatchBookmarkable, what));
                    }
                    progress = *revision;
                }
                Delivered::Created(_) | Delivered::Canceled { .. } => {}
            }
        }
        // A stream that broke in the middle of a revision is resumed at that revision.
        if continues {
            (last, continues) = (last - 1, false);
            keys_at_last.clear();
        }
    }
}

/// HISTWATCH-4, HISTWATCH-5, HISTWATCH-7 and future starts: the events are those of the log, from the first wanted to the
/// last seen.
fn complete(watch: &Watch, timeline: &Timeline, found: &mut Vec<Violation>) {
    let Some(first) = watch.first_wanted() else { return };
    let mut delivered = Vec::new();
    for (_, WatchEvent { event, .. }) in watch.events() {
        if !watch.request.matches(event) {
            found.push(watch.says(Rule::WatchFilter, format!("{event:?} was not asked for")));
        } else if event.revision() < first {
            found.push(watch.says(Rule::WatchFuture, format!("{event:?} is before {first}")));
        } else {
            delivered.push(event);
        }
    }
    let broken_off = matches!(
        watch.deliveries.last().map(|d| &d.what),
        Some(Delivered::Events { fragment: true, .. })
    );
    let last = watch.last_seen();
    let expected: Vec<&Event> = timeline
        .since(first)
        .take_while(|(revision, _)| *revision <= last)
        .flat_map(|(_, events)| events)
        .filter(|event| watch.request.matches(event))
        .collect();
    let same = delivered.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let (came, wanted) = (delivered.get(same), expected.get(same));
    let is_cut = broken_off && came.is_none() && wanted.is_some_and(|w| w.revision() == last);
    if came.is_some() || wanted.is_some() && !is_cut {
        let rule = if same == 0 { Rule::WatchResumable } else { Rule::WatchReliable };
        let what = format!("{came:?} came where the log from {first} to {last} has {wanted:?}");
        found.push(watch.says(rule, what));
    }
}

/// HISTWATCH-8, HISTWATCH-9: the value before, and whether the key was created.
fn values(
    watch: &Watch,
    timeline: &Timeline,
    compactions: &[(Nanos, Revision)],
    found: &mut Vec<Violation>,
) {
    for (at, WatchEvent { event, before }) in watch.events() {
        let was = timeline.at(event.key(), event.revision() - 1);
        let created = event.after().is_some_and(|kv| kv.created == kv.modified);
        if event.after().is_some() && created != was.is_none() {
            found.push(watch.says(Rule::WatchCreate, format!("{event:?} follows {was:?}")));
        }
        let forgotten = || {
            before.is_none()
                && compactions.iter().any(|(call, to)| *call < at && *to >= event.revision())
        };
        if watch.request.before && before.as_ref() != was && !forgotten() {
            let what = format!("{event:?} came with {before:?} instead of {was:?}");
            found.push(watch.says(Rule::WatchBefore, what));
        }
    }
}

/// HISTWATCH-11: a cancellation by compaction names a revision that is ahead of the watch, and that a client
/// compacted.
fn canceled(watch: &Watch, compactions: &[(Nanos, Revision)], found: &mut Vec<Violation>) {
    for (place, delivery) in watch.deliveries.iter().enumerate() {
        let Delivered::Canceled { compacted, reason } = &delivery.what else { continue };
        if *compacted > 0 {
            let asked = compactions.iter().any(|(at, to)| to == compacted && *at < delivery.at_ns);
            let next = watch.first_wanted().unwrap_or(0).max(watch.last_seen() + 1);
            if !asked || next >= *compacted && watch.request.start > 0 {
                let what = format!("canceled at {next} by a compaction at {compacted}");
                found.push(watch.says(Rule::WatchCancel, what));
            }
        } else if reason.contains("compacted") {
            let what = format!("canceled without the revision: {reason}");
            found.push(watch.says(Rule::WatchCancel, what));
        }
        if place + 1 < watch.deliveries.len() {
            found.push(watch.says(Rule::WatchCancel, "went on after it was canceled"));
        }
    }
}

/// HISTWATCH-10: a watch that is open at the end has every event up to the target, in time.
fn live(watch: &Watch, timeline: &Timeline, healed: Healed, found: &mut Vec<Violation>) {
    let is_canceled = watch.deliveries.iter().any(|d| matches!(d.what, Delivered::Canceled { .. }));
    if watch.closed_ns.is_some() || is_canceled {
        return;
    }
    let first = watch.first_wanted().unwrap_or(1);
    let wanted = timeline
        .since(first)
        .take_while(|(revision, _)| *revision <= healed.revision)
        .flat_map(|(_, events)| events)
        .filter(|event| watch.request.matches(event))
        .last();
    let Some(wanted) = wanted else { return };
    let deadline = healed.at_ns.max(watch.called_ns) + healed.within_ns;
    let reached = watch.events().any(|(at, e)| at <= deadline && e.event == *wanted);
    if !reached {
        let (last, ms) = (watch.last_seen(), deadline / 1_000_000);
        let what = format!("{wanted:?} did not come by {ms} ms; the last was {last}");
        found.push(watch.says(Rule::WatchLive, what));
    }
}
