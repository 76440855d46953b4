//! A runbook as an operator reads it: the commands under **Do**, in their order.

use std::{fs, path::Path};

/// A command of a page, word by word.
pub type Words = Vec<String>;

/// The indented lines between **Do** and **Lost** of a page.
pub fn commands(page: &str) -> Vec<Words> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/runbooks")
        .join(page)
        .with_extension("md");
    let text = fs::read_to_string(&path).unwrap();
    let (_, after) = text.split_once("**Do.**").unwrap();
    let (steps, _) = after.split_once("**Lost.**").unwrap();
    let lines = steps.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// A command with what the operator fills in.
pub fn filled(words: &[String], blanks: &[(&str, &str)]) -> Words {
    let fill = |word: &String| {
        let blank = blanks.iter().find(|(blank, _)| blank == word);
        blank.map_or_else(|| word.clone(), |(_, filled)| (*filled).to_owned())
    };
    words.iter().map(fill).collect()
}
