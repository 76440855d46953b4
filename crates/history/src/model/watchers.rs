//! Watchers of the model: they lag, break off, resume, and meet compactions.

use std::collections::BTreeMap;

use super::{Bug, Generated, store::Store};
use crate::{
    Delivered, Delivery, Event, Filter, Nanos, Recording, Revision, Span, Watch, WatchEvent,
    WatchRequest,
    random::Random,
    workload::{LEASED, SHARED},
};

const MS: Nanos = 1_000_000;
const WATCHERS: u32 = 8;

/// Records the deliveries of all watchers of a store's history.
pub(super) fn record(random: &mut Random, store: &Store, end_ns: Nanos) -> Vec<Watch> {
    let mut watches = Vec::new();
    for client in 0..WATCHERS {
        let request = WatchRequest {
            span: match client {
                0 => Span { key: "\0".into(), end: Some("~".into()) },
                1 => Span::prefix(LEASED),
                2..5 => Span::prefix(SHARED),
                _ => Span::key(format!("{SHARED}{client}")),
            },
            start: if random.chance(500) { random.between(2, 40) as Revision } else { 0 },
            filter: *random.pick(&[
                Filter::Nothing,
                Filter::Nothing,
                Filter::Puts,
                Filter::Deletes,
            ]),
            before: random.chance(700),
            fragment: random.chance(300),
        };
        let mut at = random.between(1, 400) * MS;
        let mut request = request;
        while at < end_ns {
            let watch = one(random, store, (client, request.clone()), (at, end_ns));
            let closed = watch.closed_ns;
            let canceled = watch.deliveries.last().and_then(|last| match last.what {
                Delivered::Canceled { compacted, .. } => Some(compacted),
                _ => None,
            });
            let next = watch.next_wanted().unwrap_or(request.start);
            watches.push(watch);
            match (closed, canceled) {
                (None, _) => break,
                (Some(_), Some(compacted)) => request.start = compacted,
                (Some(_), None) => request.start = next,
            }
            at = closed.unwrap_or(at) + random.between(1, 1_500) * MS;
        }
    }
    watches
}

/// One stream, from `at` on, to `end_ns` unless it breaks.
fn one(
    random: &mut Random,
    store: &Store,
    (client, request): (u32, WatchRequest),
    (at, end_ns): (Nanos, Nanos),
) -> Watch {
    let head = |at: Nanos| {
        store
            .made_ns
            .iter()
            .rev()
            .find(|(_, made)| **made <= at)
            .map_or(1, |(revision, _)| *revision)
    };
    let mut watch = Watch {
        client,
        member: 0xa1,
        request,
        called_ns: at,
        deliveries: vec![Delivery { at_ns: at + MS, what: Delivered::Created(head(at)) }],
        closed_ns: None,
    };
    let mut next = if watch.request.start > 0 { watch.request.start } else { head(at) + 1 };
    let compacted = store.compactions.iter().filter(|(when, _)| *when < at).map(|(_, r)| *r).max();
    if let Some(compacted) = compacted.filter(|compacted| next < *compacted) {
        let reason = "mvcc: required revision has been compacted".to_owned();
        let what = Delivered::Canceled { compacted, reason };
        watch.deliveries.push(Delivery { at_ns: at + 2 * MS, what });
        watch.closed_ns = Some(at + 2 * MS);
        return watch;
    }
    let mut now = at + 2 * MS;
    loop {
        now += random.between(5, 200) * MS;
        let last = now >= end_ns + 500 * MS;
        let to = head(now);
        let events: Vec<_> = store
            .timeline
            .since(next)
            .take_while(|(revision, _)| *revision <= to)
            .flat_map(|(_, events)| events)
            .filter(|event| watch.request.matches(event))
            .map(|event| WatchEvent {
                event: event.clone(),
                before: store
                    .timeline
                    .at(event.key(), event.revision() - 1)
                    .filter(|_| watch.request.before)
                    .cloned(),
            })
            .collect();
        next = next.max(to + 1);
        if !events.is_empty() {
            deliver(random, &mut watch, now, events);
        } else if random.chance(200) && to + 1 >= next {
            watch.deliveries.push(Delivery { at_ns: now, what: Delivered::Progress(to) });
        }
        if last {
            return watch;
        }
        if random.chance(15) {
            watch.closed_ns = Some(now);
            return watch;
        }
    }
}

fn deliver(random: &mut Random, watch: &mut Watch, at_ns: Nanos, mut events: Vec<WatchEvent>) {
    // A store may split anywhere if the watcher allows it, and says so.
    if watch.request.fragment && events.len() > 1 && random.chance(300) {
        let rest = events.split_off(events.len() / 2);
        let what = Delivered::Events { events, fragment: true };
        watch.deliveries.push(Delivery { at_ns, what });
        events = rest;
    }
    let what = Delivered::Events { events, fragment: false };
    watch.deliveries.push(Delivery { at_ns, what });
}

/// Lets one watch go wrong.
pub(super) fn break_one(random: &mut Random, bug: Option<Bug>, generated: &mut Generated) {
    let Some(bug) = bug else { return };
    let Recording { watches, logs, .. } = &mut generated.recording;
    let log = &logs[0].entries;
    let offset = random.below(watches.len() as u64) as usize;
    watches.rotate_left(offset);
    generated.fired |= watches.iter_mut().any(|watch| match bug {
        Bug::WatchSilentCompaction => resume_silently(watch, log),
        _ => wrong(bug, watch),
    });
    watches.rotate_right(offset);
}

/// The responses with events, by their place.
fn batches(watch: &Watch) -> Vec<usize> {
    let places = watch.deliveries.iter().enumerate();
    places.filter(|(_, d)| matches!(d.what, Delivered::Events { .. })).map(|(i, _)| i).collect()
}

fn events_of(watch: &mut Watch, place: usize) -> Option<&mut Vec<WatchEvent>> {
    match &mut watch.deliveries[place].what {
        Delivered::Events { events, .. } => Some(events),
        _ => None,
    }
}

/// Makes a watch wrong in one way; false if it offers no occasion.
fn wrong(bug: Bug, watch: &mut Watch) -> bool {
    let batches = batches(watch);
    let middle = batches.get(batches.len() / 2).copied();
    match bug {
        Bug::WatchSkips | Bug::WatchSkipsFirst | Bug::WatchRepeats | Bug::WatchReorders => {
            let [first, .., last] = *batches.as_slice() else { return false };
            let Some(middle) = middle.filter(|m| *m != first && *m != last) else { return false };
            match bug {
                Bug::WatchSkips => {
                    watch.deliveries.remove(middle);
                }
                Bug::WatchSkipsFirst => {
                    watch.deliveries.remove(first);
                }
                Bug::WatchRepeats => {
                    let again = watch.deliveries[middle].clone();
                    watch.deliveries.insert(middle + 1, again);
                }
                _ => watch.deliveries.swap(middle, last),
            }
            true
        }
        Bug::WatchSplits => batches.iter().any(|place| split(watch, *place)),
        Bug::WatchEarlyProgress => {
            let Some(place) = middle else { return false };
            let last = events_of(watch, place).and_then(|events| events.last().cloned());
            let Some(last) = last else { return false };
            let what = Delivered::Progress(last.event.revision());
            let at_ns = watch.deliveries[place].at_ns;
            watch.deliveries.insert(place, Delivery { at_ns, what });
            true
        }
        Bug::WatchWrongBefore | Bug::WatchWrongCreate => {
            batches.iter().any(|place| wrong_value(bug, watch, *place))
        }
        Bug::WatchFilterLeaks | Bug::WatchEarlyFuture => {
            let Some(place) = middle else { return false };
            leak(bug, watch, place)
        }
        Bug::WatchBareCancel => {
            watch.deliveries.iter_mut().any(|delivery| match &mut delivery.what {
                Delivered::Canceled { compacted, .. } => {
                    *compacted = 0;
                    true
                }
                _ => false,
            })
        }
        Bug::WatchStalls => {
            let stalls = watch.closed_ns.is_none() && batches.len() > 4;
            if let (true, Some(middle)) = (stalls, middle) {
                watch.deliveries.truncate(middle);
            }
            stalls
        }
        _ => false,
    }
}

/// The watch that was resumed at a compaction passes for the one that was canceled.
fn resume_silently(watch: &mut Watch, log: &BTreeMap<Revision, Vec<Event>>) -> bool {
    let start = watch.request.start;
    let asked = (start - 50).max(2);
    let mut missed = log.range(asked..start.max(asked)).flat_map(|(_, events)| events);
    let strikes = watch.events().count() > 0 && missed.any(|event| watch.request.matches(event));
    if strikes {
        watch.request.start = asked;
    }
    strikes
}

fn split(watch: &mut Watch, place: usize) -> bool {
    let Some(events) = events_of(watch, place) else { return false };
    let twin = |pair: &[WatchEvent]| pair[0].event.revision() == pair[1].event.revision();
    let Some(at) = events.windows(2).position(twin) else { return false };
    let rest = events.split_off(at + 1);
    let at_ns = watch.deliveries[place].at_ns;
    let what = Delivered::Events { events: rest, fragment: false };
    watch.deliveries.insert(place + 1, Delivery { at_ns, what });
    // The place of an announced split moves along.
    if let Delivered::Events { fragment: fragment @ true, .. } = &mut watch.deliveries[place].what {
        *fragment = false;
    }
    true
}

fn wrong_value(bug: Bug, watch: &mut Watch, place: usize) -> bool {
    let Some(events) = events_of(watch, place) else { return false };
    events.iter_mut().any(|WatchEvent { event, before }| match (bug, event, before) {
        (Bug::WatchWrongBefore, _, Some(before)) => {
            before.value.push('!');
            true
        }
        (Bug::WatchWrongCreate, Event::Put(new), _) if new.created < new.modified => {
            new.created = new.modified;
            true
        }
        _ => false,
    })
}

/// Delivers an event that was not asked for: of another key, or from before the start.
fn leak(bug: Bug, watch: &mut Watch, place: usize) -> bool {
    let start = watch.request.start;
    let Some(last) = events_of(watch, place).and_then(|events| events.last().cloned()) else {
        return false;
    };
    let mut stray = last;
    let revision = stray.event.revision();
    if bug == Bug::WatchFilterLeaks {
        stray.event = Event::Delete { key: "~other".into(), revision };
        events_of(watch, place).into_iter().for_each(|events| events.push(stray.clone()));
        return true;
    }
    if start < 3 {
        return false;
    }
    let key = stray.event.key().to_owned();
    stray.event = Event::Delete { key, revision: start - 1 };
    if !watch.request.matches(&stray.event) {
        return false;
    }
    let at_ns = watch.called_ns + MS;
    let what = Delivered::Events { events: vec![stray], fragment: false };
    watch.deliveries.insert(1, Delivery { at_ns, what });
    true
}
