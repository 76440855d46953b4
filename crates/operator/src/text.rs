//! Formats text for people: counts, spans of time, and names and messages of other parties, made safe for a terminal.

/// Without characters that steer: a name or message from a server must not move the cursor or turn
/// the direction of the text.
#[must_use]
pub fn printable(text: &str) -> String {
    let plain = |c: char| if steers(c) && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(plain).collect()
}

/// Control characters, and those that end a line or turn its direction.
fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// A name or message of another party as part of one line. It makes no line of its own, and two
/// different texts stay different.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => line.push_str("\\\\"),
            c if steers(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// The first few of a list, and how many more there are.
#[must_use]
pub fn few(list: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = list[..list.len().min(SHOWN)].join(", ");
    match list.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `n` of something, in words.
#[must_use]
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A root or hash, short enough for a line.
#[must_use]
pub fn short(digest: &[u8]) -> String {
    hex::encode(&digest[..digest.len().min(8)])
}

/// A span, to the precision a person cares about.
#[must_use]
pub fn span(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms} ms"),
        1_000..=119_999 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        120_000..=7_199_999 => format!("{} min", ms / 60_000),
        7_200_000..=172_799_999 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\u{9b}c\r"), "a\u{fffd}[2Jb\n\u{fffd}c\u{fffd}");
    }

    #[test]
    fn a_name_forges_no_line() {
        assert_eq!(one_line("a\nb\\n\u{202e}c ü"), "a\\nb\\\\n\\u{202e}c ü");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<_> = (0..3_000).map(|n| format!("config/some-long-name v{n}")).collect();
        assert!(few(&names).ends_with("v4 and 2995 more"), "{}", few(&names));
        assert_eq!(few(&names[..2]), names[..2].join(", "));
    }

    #[test]
    fn spans_read_well() {
        let spans = [0, 999, 1_234, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["0 ms", "999 ms", "1.2 s", "2 min", "2 h", "2 d"]);
    }
}
