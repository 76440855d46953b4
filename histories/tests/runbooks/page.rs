//! A runbook as an operator reads it: the commands under **Do**, in their order.

use std::{fs, path::Path};

/// A command of a page, word by word.
pub type Words = Vec<String>;

/// The indented lines between **Do** and **Lost** of a page.
pub fn commands(page: &str) -> Vec<Words> {
    let text = read(page);
    let (_, after) = text.split_once("**Do.**").unwrap();
    let (steps, _) = after.split_once("**Lost.**").unwrap();
    let lines = steps.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// The metrics that a page names.
pub fn metrics(page: &str) -> Vec<String> {
    let text = read(page);
    let quoted = text.split('`').skip(1).step_by(2);
    let names = quoted.filter(|word| word.starts_with("etcd_") || word.starts_with("satrap_"));
    names.map(str::to_owned).collect()
}

fn read(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/runbooks")
        .join(page)
        .with_extension("md");
    fs::read_to_string(&path).unwrap()
}

/// A command with what the operator fills in.
pub fn filled(words: &[String], blanks: &[(&str, &str)]) -> Words {
    let fill = |word: &String| {
        let blank = blanks.iter().find(|(blank, _)| blank == word);
        blank.map_or_else(|| word.clone(), |(_, filled)| (*filled).to_owned())
    };
    words.iter().map(fill).collect()
}
