//! The result of a run, and whether it counts.

use std::{collections::BTreeSet, fmt, fmt::Write as _, fs};

use satrap_history::{Delivered, Operation, Outcome, Recording, Violation, Watch};

use crate::{
    RunError,
    answers::{Answers, OPERATIONS_MIN},
    cluster::Cluster,
    nemesis::Fired,
};

/// Where the time of a run went, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    /// Until the ring had a leader.
    pub start: f64,
    /// While faults came and went.
    pub faults: f64,
    /// Until there were enough operations.
    pub rest: f64,
    /// Until everyone had seen the last revision.
    pub end: f64,
    /// In the checkers.
    pub check: f64,
}

/// The result of a run.
#[derive(Debug)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Operations without.
    pub unknown: usize,
    /// Operations that a full store refused.
    pub refused: usize,
    /// Completed operations, and how many answers there were of each kind.
    pub answers: Answers,
    /// Watchers that were to watch.
    pub watchers: usize,
    /// Watchers to which the ring created a watch and sent events.
    pub served: usize,
    /// Events that watchers saw.
    pub events: usize,
    /// The faults.
    pub faults: Vec<Fired>,
    /// The last revision.
    pub head: i64,
    /// How long it took.
    pub seconds: Seconds,
    /// The violations that the checkers found.
    pub violations: Vec<Violation>,
}

/// How many operations of a recording came out in some way.
pub fn count(recording: &Recording, which: impl Fn(&Outcome) -> bool) -> usize {
    let operations = recording.operations.iter();
    operations.filter(|operation: &&Operation| which(&operation.outcome)).count()
}

/// How many watchers had a watch that was created, and events.
#[must_use]
pub fn served(watches: &[Watch]) -> usize {
    let clients = |what: fn(&Delivered) -> bool| -> BTreeSet<u32> {
        let had = |watch: &&Watch| watch.deliveries.iter().any(|delivery| what(&delivery.what));
        watches.iter().filter(had).map(|watch| watch.client).collect()
    };
    let created = clients(|what| matches!(what, Delivered::Created(_)));
    let sent =
        clients(|what| matches!(what, Delivered::Events { events, .. } if !events.is_empty()));
    created.intersection(&sent).count()
}

impl Summary {
    /// Checks that the run had load and faults enough to be conclusive.
    ///
    /// # Errors
    ///
    /// If there were too few operations or too few answers of a kind, a watcher was not served, a
    /// fault never had an effect, or members crashed.
    pub fn conclusive(&self, cluster: &Cluster) -> Result<(), RunError> {
        match &cluster.crashes[..] {
            [] => self.shows_enough(cluster.store().serves_store_api()),
            crashes => Err(RunError::Ring(format!("stay up: {}", crashes.join("; ")))),
        }
    }

    fn shows_enough(&self, serves_store_api: bool) -> Result<(), RunError> {
        let idle = idle(&self.faults);
        if !idle.is_empty() {
            return Err(RunError::Inconclusive(format!("faults without effect: {idle:?}")));
        }
        let completed = self.answers.completed();
        if completed < OPERATIONS_MIN {
            let what = format!("only {completed} operations were completed");
            return Err(RunError::Inconclusive(what));
        }
        let too_few = self.answers.too_few(serves_store_api);
        if !too_few.is_empty() {
            let what = format!("too few answers of these kinds: {too_few:?}");
            return Err(RunError::Inconclusive(what));
        }
        if self.served < self.watchers {
            let Self { served, watchers, .. } = self;
            let what = format!("only {served} of {watchers} watchers were sent events");
            return Err(RunError::Inconclusive(what));
        }
        Ok(())
    }

    /// Writes a recording with violations where a person can read it.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn keep(&self, recording: &Recording) -> Result<(), RunError> {
        let mut text = String::new();
        let lines = self.violations.iter().map(|violation| format!("{violation}\n"));
        text.extend(lines);
        for operation in &recording.operations {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{operation}");
        }
        for watch in &recording.watches {
            let _ = writeln!(text, "{watch:?}");
        }
        for log in &recording.logs {
            let _ = writeln!(text, "{log:?}");
        }
        let path = std::env::temp_dir().join(format!("satrap-history-{}.txt", self.seed));
        fs::write(&path, text).map_err(RunError::io("keeping a recording"))?;
        eprintln!("the recording of seed {} is in {}", self.seed, path.display());
        Ok(())
    }
}

/// The faults that came and never had an effect.
#[must_use]
pub fn idle(faults: &[Fired]) -> Vec<crate::fault::Fault> {
    let never = |one: &Fired| !faults.iter().any(|other| other.fault == one.fault && other.fired);
    let mut idle: Vec<_> = faults.iter().filter(|one| never(one)).map(|one| one.fault).collect();
    idle.sort_unstable();
    idle.dedup();
    idle
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fired: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        let Seconds { start, faults, rest, end, check } = self.seconds;
        write!(
            f,
            "seed {}: {} operations ({}), {} unknown, {} refused, {} events at {} of {} watchers, \
             revision {}, {} violations; {:.1} s (start {start:.1}, faults {faults:.1}, rest {rest:.1}, end {end:.1}, check \
             {check:.1}); {}",
            self.seed,
            self.answers.completed(),
            self.answers,
            self.unknown,
            self.refused,
            self.events,
            self.served,
            self.watchers,
            self.head,
            self.violations.len(),
            start + faults + rest + end + check,
            fired.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use satrap_history::{
        Delivered, Delivery, Event, Filter, Span, Watch, WatchEvent, WatchRequest,
    };

    use super::served;

    #[test]
    fn a_watcher_counts_once_it_was_created_and_sent_an_event() {
        let watch = |client, delivered: Vec<Delivered>| Watch {
            client,
            member: 0,
            request: WatchRequest {
                span: Span::key("k".to_owned()),
                start: 0,
                filter: Filter::Nothing,
                before: false,
                fragment: false,
            },
            called_ns: 0,
            deliveries: delivered.into_iter().map(|what| Delivery { at_ns: 0, what }).collect(),
            closed_ns: None,
        };
        let event = Event::Delete { key: "k".to_owned(), revision: 2 };
        let events = vec![WatchEvent { event, before: None }];
        let sent = Delivered::Events { events, fragment: false };
        let watches = [
            watch(0, vec![]),
            watch(1, vec![Delivered::Created(1), Delivered::Progress(2)]),
            watch(2, vec![Delivered::Created(1), sent.clone()]),
            watch(2, vec![Delivered::Created(2), sent]),
        ];
        assert_eq!(served(&watches), 1);
    }
}
