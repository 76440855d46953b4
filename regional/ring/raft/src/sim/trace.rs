//! The trace of a run.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    hash::{DefaultHasher, Hasher as _},
    time::Duration,
};

/// Lines of the trace that a failure shows.
const LINES_SHOWN: usize = 2_000;

/// The events of a run: a hash of all, and the text of the last ones.
#[derive(Default)]
pub struct Trace {
    hash: u64,
    lines: u64,
    last: VecDeque<String>,
}

impl Trace {
    /// Adds an event.
    pub fn note(&mut self, at: Duration, what: &str) {
        let ms = at.as_millis();
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.hash);
        hasher.write_u128(ms);
        hasher.write(what.as_bytes());
        self.hash = hasher.finish();
        self.lines += 1;
        if self.last.len() == LINES_SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(format!("{ms:>7} ms  {what}"));
    }

    /// The hash and the number of all events, and the end of the trace.
    pub fn summary(&self) -> ((u64, u64), String) {
        let text = self.last.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        });
        ((self.hash, self.lines), text)
    }
}
