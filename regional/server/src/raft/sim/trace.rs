//! The story of a run.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    hash::{DefaultHasher, Hasher as _},
    time::Duration,
};

/// Lines that a failure shows.
const LINES_SHOWN: usize = 400_000;

/// What happened, as a number and the end of the story.
#[derive(Default)]
pub struct Trace {
    hash: u64,
    lines: u64,
    last: VecDeque<String>,
}

impl Trace {
    /// Adds a line.
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

    /// Everything that happened, as one number, and how much that was; and the end of the story.
    pub fn told(&self) -> ((u64, u64), String) {
        let story = self.last.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        });
        ((self.hash, self.lines), story)
    }
}
