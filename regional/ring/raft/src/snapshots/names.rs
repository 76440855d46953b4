//! Names of scheduled snapshots, and the time at which the next one is due.

use std::time::Duration;

/// A separator that no name of a region or member contains, so that no member's prefix is
/// another's.
const SEPARATOR: char = '+';
const SUFFIX: &str = ".snapshot";

/// The snapshots of one member, in a directory that it may share with others.
#[derive(Clone, Debug)]
pub struct Names {
    /// Region and member.
    prefix: String,
}

/// The time and the revision in the name of a snapshot. Sorts by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Seconds since the Unix epoch.
    pub time_s: u64,
    /// The newest revision in it.
    pub revision: i64,
}

impl Names {
    /// The names of this member's snapshots.
    #[must_use]
    pub fn new(region: &str, member: &str) -> Self {
        Self { prefix: format!("{region}{SEPARATOR}{member}{SEPARATOR}") }
    }

    /// The temporary name; there is never more than one draft.
    #[must_use]
    pub fn partial(&self) -> String {
        format!(".{}partial", self.prefix)
    }

    /// The name of a complete snapshot: `eu+a+20261121T093549Z+r1234.snapshot`.
    #[must_use]
    pub fn of(&self, stamp: Stamp) -> String {
        let Stamp { time_s, revision } = stamp;
        format!("{}{}{SEPARATOR}r{revision}{SUFFIX}", self.prefix, utc(time_s))
    }

    /// The stamp in a name that [`Self::of`] made.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Stamp> {
        let (time, revision) =
            name.strip_prefix(&self.prefix)?.strip_suffix(SUFFIX)?.split_once(SEPARATOR)?;
        let stamp =
            Stamp { time_s: read_utc(time)?, revision: revision.strip_prefix('r')?.parse().ok()? };
        // This member removes only files whose names it would write itself.
        (self.of(stamp) == name).then_some(stamp)
    }
}

/// The time until the next snapshot is due, if the newest was made at `newest_s`.
///
/// A snapshot is due every `interval_s` seconds of the wall clock, at this member's offset in the
/// interval. The offsets of the members differ, so they do not all write at the same time, whenever
/// they were started. A member that was down when one was due makes it at once.
#[must_use]
pub fn due(now_s: u64, newest_s: Option<u64>, interval_s: u64, offset_s: u64) -> Duration {
    let due_since = now_s - now_s.saturating_sub(offset_s) % interval_s;
    match newest_s {
        Some(newest) if newest >= due_since => Duration::from_secs(due_since + interval_s - now_s),
        _ => Duration::ZERO,
    }
}

const DAY_S: u64 = 24 * 3600;
/// Years of the Gregorian calendar repeat after this many.
const ERA_YEARS: u64 = 400;
const ERA_DAYS: u64 = 146_097;

/// Days before a year that begins in March, since the March of year 0.
fn days_before(year: u64) -> u64 {
    365 * year + year / 4 - year / 100 + year / 400
}

/// Days before a month, counted from March, in its year.
fn days_before_month(month: u64) -> u64 {
    (153 * month + 2) / 5
}

/// From the March of year 0 to the Unix epoch.
const EPOCH_DAYS: u64 = 719_468;

/// `20261121T093549Z`
fn utc(time_s: u64) -> String {
    let (days, second) = (time_s / DAY_S + EPOCH_DAYS, time_s % DAY_S);
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    // The estimate is at most one too large.
    let estimate = ((day + 1) / 365).min(ERA_YEARS - 1);
    let year = if days_before(estimate) > day { estimate - 1 } else { estimate };
    let day = day - days_before(year);
    let month = (5 * day + 2) / 153;
    let day = day - days_before_month(month) + 1;
    let (year, month) = match month {
        0..=9 => (year, month + 3),
        _ => (year + 1, month - 9),
    };
    let year = era * ERA_YEARS + year;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn read_utc(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let is_utc = bytes.len() == 16 && bytes[8] == b'T' && bytes[15] == b'Z';
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    if !is_utc || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = days_before(year) + days_before_month(month) + day - 1;
    Some(days.checked_sub(EPOCH_DAYS)? * DAY_S + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("eu", "a")
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (time_s, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (951_868_799, "20000229T235959Z"),
            (951_868_800, "20000301T000000Z"),
            (1_795_253_749, "20261121T093549Z"),
            (1_709_164_800, "20240229T000000Z"),
            (1_735_689_599, "20241231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
            (4_107_542_399, "21000228T235959Z"),
        ] {
            assert_eq!(utc(time_s), text);
            assert_eq!(read_utc(text), Some(time_s), "{text}");
        }
        // Every day of eight centuries, in order.
        let mut last = String::new();
        for day in 0..800 * 366 {
            let text = utc(day * DAY_S);
            assert!(text > last, "{last} {text}");
            assert_eq!(read_utc(&text), Some(day * DAY_S), "{text}");
            last = text;
        }
    }

    #[test]
    fn a_member_knows_its_own_names_and_no_others() {
        let stamp = Stamp { time_s: 1_795_253_749, revision: 1234 };
        let name = names().of(stamp);
        assert_eq!(name, "eu+a+20261121T093549Z+r1234.snapshot");
        assert_eq!(names().read(&name), Some(stamp));
        for stranger in [
            "eu+b+20261121T093549Z+r1234.snapshot",
            "eu+a+20261121T093549Z+r01234.snapshot",
            "eu+a+20261121T093549Z+r+1234.snapshot",
            "eu+a+20261121T093549Z+r1234.snapshot.old",
            "eu+a+20261131T093549Z+r1234.snapshot",
            "eu+a+20261121T093549+r1234.snapshot",
            "eu+a+20261121T093549Z.snapshot",
            "eu+a+before the upgrade.snapshot",
            ".eu+a+partial",
            "",
        ] {
            assert_eq!(names().read(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn a_snapshot_is_due_once_in_every_interval() {
        let day = 86_400;
        let due = |now, newest| due(now, newest, day, day / 3).as_secs();
        let start = 20_000 * day + day / 3;
        assert_eq!(due(start + 5, None), 0, "the first one");
        assert_eq!(due(start + 5, Some(start + 1)), day - 5);
        assert_eq!(due(start - 1, Some(start - day)), 1);
        assert_eq!(due(start, Some(start - 1)), 0, "the next one is due");
        assert_eq!(due(start + 5, Some(start - 3 * day)), 0, "made up for");
        assert_eq!(due(start + 5, Some(start + 9 * day)), day - 5, "the clock was set back");
    }
}
