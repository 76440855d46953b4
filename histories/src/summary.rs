//! What came of a run, and whether it counts.

use std::{fmt, fmt::Write as _, fs};

use satrap_history::{Operation, Outcome, Recording, Violation};

use crate::{Trouble, nemesis::Fired, run::OPERATIONS_MIN};

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

/// What came of a run.
#[derive(Debug)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Operations with an answer.
    pub completed: u64,
    /// Operations without.
    pub unknown: usize,
    /// Operations that a full store refused.
    pub refused: usize,
    /// Events that watchers saw.
    pub events: usize,
    /// The faults.
    pub faults: Vec<Fired>,
    /// The last revision.
    pub head: i64,
    /// How long it took.
    pub seconds: Seconds,
    /// What the checkers found.
    pub violations: Vec<Violation>,
}

/// How many operations of a recording came out in some way.
pub fn count(recording: &Recording, which: impl Fn(&Outcome) -> bool) -> usize {
    let operations = recording.operations.iter();
    operations.filter(|operation: &&Operation| which(&operation.outcome)).count()
}

impl Summary {
    /// Whether the run was what it should have been.
    ///
    /// # Errors
    ///
    /// If there were too few operations, a fault never had an effect, or members crashed.
    pub fn worth(&self, crashes: &[String]) -> Result<(), Trouble> {
        let idle = idle(&self.faults);
        if !idle.is_empty() {
            return Err(Trouble::Worthless(format!("faults without effect: {idle:?}")));
        }
        if self.completed < OPERATIONS_MIN {
            let what = format!("only {} operations were completed", self.completed);
            return Err(Trouble::Worthless(what));
        }
        match crashes {
            [] => Ok(()),
            crashes => Err(Trouble::Ring(format!("stay up: {}", crashes.join("; ")))),
        }
    }

    /// Writes a recording with violations where a person can read it.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub fn keep(&self, recording: &Recording) -> Result<(), Trouble> {
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
        fs::write(&path, text).map_err(Trouble::io("keeping a recording"))?;
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
        let faults: Vec<_> = self.faults.iter().map(|fired| fired.to_string()).collect();
        let Seconds { start, faults: torment, rest, end, check } = self.seconds;
        write!(
            f,
            "seed {}: {} operations, {} unknown, {} refused, {} events, revision {}, {} violations; {:.1} s \
             (start {start:.1}, faults {torment:.1}, rest {rest:.1}, end {end:.1}, check \
             {check:.1}); {}",
            self.seed,
            self.completed,
            self.unknown,
            self.refused,
            self.events,
            self.head,
            self.violations.len(),
            start + torment + rest + end + check,
            faults.join(", ")
        )
    }
}
