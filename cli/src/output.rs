//! Prints results on standard output, as text or (`--json`) JSON, and errors on standard error, so that
//! a pipe never mistakes an error for a result.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use satrap_operator::{
    Error,
    text::{one_line, printable},
};
use serde::Serialize;

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
    /// If standard output cannot be written. A closed pipe is not an error.
    pub fn show<T: Display + Serialize>(&self, result: &T) -> Result<(), Error> {
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
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::internal(format!("standard output: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Prints a line of progress to standard error, unless `--json` was given.
    pub fn note(&self, text: &str) {
        if !self.json {
            // Standard error may be closed; progress is optional.
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    }

    /// Prints a warning; `--json` prints it with the result instead.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {}", one_line(text)));
    }

    /// Prints an error.
    pub fn fail(&self, error: &Error) {
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

/// Characters of the widest cell. The longest item that is listed, a key, has at most 512 bytes.
const CELL_CHARS_MAX: usize = 1_024;

/// A cell of a table: one line of at most [`CELL_CHARS_MAX`] characters.
fn cell_text(cell: &str) -> String {
    let line = one_line(cell);
    match line.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_forges_no_line() {
        let row = |cell: &str| vec![cell.to_owned()];
        assert_eq!(table(&[row("KEY"), row("a\n  forged")]), "  KEY\n  a\\n  forged\n");
    }

    #[test]
    fn what_an_edge_reports_is_cut_to_fit() {
        let names: Vec<_> = (0..3_000).map(|n| format!("config/some-long-name v{n}")).collect();
        let text = table(&[vec![names.join(", "), "end".to_owned()]]);
        assert!(text.chars().count() < CELL_CHARS_MAX + 16 && text.ends_with("…  end\n"));
    }

    #[test]
    fn columns_align() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = table(&[row(&["NAME", "HEIGHT"]), row(&["v1", "7"]), row(&["long-name", "12"])]);
        assert_eq!(text, "  NAME       HEIGHT\n  v1         7\n  long-name  12\n");
    }
}
