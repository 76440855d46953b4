//! Sums up lines that repeat, so that one fault does not fill a log.
//!
//! A warning or error is written when it first occurs. Equal ones within a minute are counted, and the
//! count is on the line that is written then: when it occurs again, or else with the next line of any
//! kind.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Equal lines within this are one.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines that are remembered at a time; with more than so many different ones, none is left out.
const LINES_MAX: usize = 256;
/// Longer lines are not remembered.
const LINE_BYTES_MAX: usize = 4096;

/// Writes lines to standard error, but repeated ones only once a minute.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<Lines>);

/// Lines of the last minute, by all of them but their time.
#[derive(Debug, Default)]
struct Lines(HashMap<Vec<u8>, Seen>);

#[derive(Debug)]
struct Seen {
    first: Instant,
    more: u64,
    /// The newest one.
    line: Vec<u8>,
}

/// A line without the time it begins with.
fn untimed(line: &[u8]) -> &[u8] {
    let end = line.iter().take(64).position(|byte| *byte == b'Z');
    end.map_or(line, |end| &line[end..])
}

/// `line` with the number of equal ones that were left out, as text or as JSON.
fn summed(line: &[u8], more: u64) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    match line.strip_suffix(b"}") {
        Some(object) if object.starts_with(b"{") => {
            [object, format!(",\"repeated\":{more}}}\n").as_bytes()].concat()
        }
        _ => [line, format!(" repeated={more}\n").as_bytes()].concat(),
    }
}

impl Lines {
    /// The output for `line`: the sums of lines whose minute is over, and perhaps the line itself.
    fn take(&mut self, line: &[u8], sums_up: bool, now: Instant) -> Vec<u8> {
        let key = untimed(line);
        if let Some(seen) = self.0.get_mut(key)
            && now < seen.first + WINDOW
        {
            seen.more += 1;
            line.clone_into(&mut seen.line);
            return Vec::new();
        }
        let mut out = Vec::new();
        let mut again = 0;
        for (other, seen) in self.0.extract_if(|_, seen| now >= seen.first + WINDOW) {
            if other == key {
                again = seen.more;
            } else if seen.more > 0 {
                out.extend(summed(&seen.line, seen.more));
            }
        }
        if again > 0 {
            out.extend(summed(line, again));
        } else {
            out.extend_from_slice(line);
        }
        if sums_up && line.len() <= LINE_BYTES_MAX && self.0.len() < LINES_MAX {
            self.0.insert(key.to_vec(), Seen { first: now, more: 0, line: Vec::new() });
        }
        out
    }
}

/// Where one line goes.
#[derive(Debug)]
pub struct Line<'a> {
    repeats: &'a Repeats,
    sums_up: bool,
}

impl<'a> MakeWriter<'a> for Repeats {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { repeats: self, sums_up: false }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { repeats: self, sums_up: *meta.level() <= Level::WARN }
    }
}

impl Write for Line<'_> {
    /// `line` is all of it: the formatter writes each line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.repeats.0.lock().unwrap_or_else(PoisonError::into_inner);
        io::stderr().write_all(&lines.take(line, self.sums_up, Instant::now()))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lines: &mut Lines, line: &str, now: Instant) -> String {
        String::from_utf8(lines.take(line.as_bytes(), true, now)).unwrap()
    }

    #[test]
    fn equal_lines_are_one_a_minute_and_are_counted() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let bad = |s: u64| format!("2026-11-29T10:00:{s:02}.123Z  WARN disk: it is full\n");
        assert_eq!(take(&mut lines, &bad(0), at(0)), bad(0));
        for s in 1..60 {
            assert_eq!(take(&mut lines, &bad(s), at(s)), "");
        }
        let again = "2026-11-29T10:01:00.123Z  WARN disk: it is full\n";
        let summed = "2026-11-29T10:01:00.123Z  WARN disk: it is full repeated=59\n";
        assert_eq!(take(&mut lines, again, at(60)), summed);
        assert_eq!(take(&mut lines, again, at(61)), "");
        // A sum does not wait for the fault to come back.
        let other = "2026-11-29T10:02:01.000Z  INFO ring: elected\n";
        let summed = "2026-11-29T10:01:00.123Z  WARN disk: it is full repeated=1\n";
        assert_eq!(take(&mut lines, other, at(121)), format!("{summed}{other}"));
        assert_eq!(take(&mut lines, again, at(122)), again);
    }

    #[test]
    fn lines_that_differ_are_all_written_and_json_stays_json() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let line = |n: usize| {
            format!("{{\"timestamp\":\"2026-11-29T10:00:00Z\",\"level\":\"WARN\",\"n\":{n}}}\n")
        };
        for n in 0..2 * LINES_MAX {
            assert_eq!(take(&mut lines, &line(n), now), line(n));
        }
        assert_eq!(take(&mut lines, &line(0), now), "");
        assert_eq!(take(&mut lines, &line(LINES_MAX), now), line(LINES_MAX), "no room");
        let later = take(&mut lines, &line(0), now + WINDOW);
        let later: serde_json::Value = serde_json::from_str(&later).unwrap();
        assert_eq!((&later["n"], &later["repeated"]), (&0.into(), &1.into()));
        let information = line(9).replace("WARN", "INFO");
        for _ in 0..2 {
            assert_eq!(lines.take(information.as_bytes(), false, now), information.as_bytes());
        }
    }
}
