//! Where results go: standard output, for people or (`--json`) for scripts. Errors go to standard
//! error, so that a pipe never mistakes one for a result.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use serde::Serialize;

use crate::error::CliError;

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON object per result instead of text.
    pub json: bool,
}

impl Output {
    /// Prints a result.
    ///
    /// # Errors
    ///
    /// If standard output cannot be written. A reader that has seen enough is no error.
    pub fn show<T: Display + Serialize>(&self, result: &T) -> Result<(), CliError> {
        let mut text = if self.json {
            serde_json::to_string(result).expect("results are structs of strings and numbers")
        } else {
            printable(&result.to_string())
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    ///
    /// As for [`Output::show`].
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::internal(format!("standard output: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Prints a line about what goes on to standard error, for a person only: a script waits for the
    /// result.
    pub fn note(&self, text: &str) {
        if !self.json {
            // A person who closed standard error does not want to know.
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    }

    /// Prints a warning; `--json` prints it with the result instead.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {}", one_line(text)));
    }

    /// Prints an error.
    pub fn fail(&self, error: &CliError) {
        let text = if self.json {
            serde_json::json!({ "error": {
                "kind": error.kind.name(), "rule": error.rule, "message": error.message,
            } })
            .to_string()
        } else {
            printable(&format!("satrap: {error}"))
        };
        // Nothing is left to do if standard error is closed too; the exit code still tells.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Without characters that steer: a name or message from a server must not move the cursor or turn
/// the direction of the text.
fn printable(text: &str) -> String {
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

/// Characters of the widest cell. A key, the longest of what is listed, has at most 512 bytes.
const CELL_CHARS_MAX: usize = 1_024;

/// A cell of a table: one line, and not longer than a table can be.
fn cell_text(cell: &str) -> String {
    let line = one_line(cell);
    match line.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
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

/// Rows with aligned columns; the first row is the heading. Each row is one line.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| row.iter().map(|cell| cell_text(cell)).collect::<Vec<_>>();
    let rows: Vec<_> = rows.iter().map(line).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let pad = |(cell, width): (&String, &usize)| {
            format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count())))
        };
        let cells: Vec<_> = row.iter().zip(&widths).map(pad).collect();
        text.push_str("  ");
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
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
        let row = |cell: &str| vec![cell.to_owned()];
        assert_eq!(table(&[row("KEY"), row("a\n  forged")]), "  KEY\n  a\\n  forged\n");
    }

    #[test]
    fn what_an_edge_reports_is_cut_to_fit() {
        let names: Vec<_> = (0..3_000).map(|n| format!("config/some-long-name v{n}")).collect();
        let text = table(&[vec![names.join(", "), "end".to_owned()]]);
        assert!(text.chars().count() < CELL_CHARS_MAX + 16 && text.ends_with("…  end\n"));
        assert!(few(&names).ends_with("v4 and 2995 more"), "{}", few(&names));
        assert_eq!(few(&names[..2]), names[..2].join(", "));
    }

    #[test]
    fn columns_align_and_spans_read_well() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = table(&[row(&["NAME", "HEIGHT"]), row(&["v1", "7"]), row(&["long-name", "12"])]);
        assert_eq!(text, "  NAME       HEIGHT\n  v1         7\n  long-name  12\n");
        let spans = [0, 999, 1_234, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["0 ms", "999 ms", "1.2 s", "2 min", "2 h", "2 d"]);
    }
}
