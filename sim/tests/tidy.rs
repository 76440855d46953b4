//! What no compiler checks: which crate may know what, that documents name things that exist, and
//! that every rule has code and a test.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Pure crates depend on none of these, nor on anything that starts with one and a hyphen.
const IMPURE: [&str; 9] =
    ["tokio", "tonic", "prost", "redb", "rustls", "rand", "openraft", "rcgen", "getrandom"];
/// Where the consensus engines may be named, so that they can be replaced.
const ENGINES: [(&str, [&str; 2]); 2] = [
    ("openraft", ["regional/server/src/raft", "regional/server/src/tests/"]),
    ("malachitebft", ["global-bft/node/src/malachite", "global-bft/node/tests/"]),
];
const FILE_LINES_MAX: usize = 500;
/// Longer files, each with its reason. This list may only shrink.
const LONGER_FILES: [&str; 0] = [];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("sim lies in the workspace").to_owned()
}

/// All files of the repository with one of these extensions, by their path from its root.
fn files(extensions: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !matches!(name, "target" | ".git" | ".satrap") {
                    directories.push(path);
                }
            } else if extensions.iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
                let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
                found.insert(relative.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn nothing(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The text of a Rust file without its line comments.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

#[test]
fn pure_crates_have_pure_manifests() {
    let mut pure = Vec::new();
    let mut found = Vec::new();
    for (path, text) in files(&["toml"]) {
        // `host` is all impurity; `client` is a library for programs, which wait.
        let impure = ["crates/host/", "crates/client/"];
        let is_shared = path.starts_with("crates/") && !impure.iter().any(|i| path.starts_with(i));
        if !path.ends_with("/Cargo.toml") || !(is_shared || path.ends_with("/core/Cargo.toml")) {
            continue;
        }
        let manifest: toml::Table = text.parse().unwrap();
        let dependencies = manifest.get("dependencies").and_then(|d| d.as_table());
        for (name, how) in dependencies.into_iter().flatten() {
            let package = how.get("package").and_then(|p| p.as_str()).unwrap_or(name);
            let is = |i: &str| package == i || package.starts_with(&format!("{i}-"));
            if IMPURE.into_iter().any(is) || package.contains("malachite") {
                found.push(format!("{path}: {package}"));
            }
        }
        pure.push(path);
    }
    assert!(pure.len() >= 6, "three shared crates and three cores: {pure:?}");
    nothing("impure dependencies of pure crates", &found);
}

#[test]
fn cores_do_not_wait() {
    let mut found = Vec::new();
    for (path, text) in files(&["rs"]).iter().filter(|(path, _)| path.contains("/core/src/")) {
        for line in code_lines(text) {
            if line.contains(".await") || line.split_whitespace().any(|word| word == "async") {
                found.push(format!("{path}: {}", line.trim()));
            }
        }
    }
    nothing("asynchronous code in a core", &found);
}

#[test]
fn engines_are_named_in_one_place_each() {
    let mut found = Vec::new();
    for (path, text) in files(&["rs"]) {
        for line in code_lines(&text).map(str::trim_start) {
            let is_use =
                ["use ", "pub use ", "pub(crate) use "].iter().any(|u| line.starts_with(u));
            for (engine, places) in ENGINES {
                if is_use && line.contains(engine) && !places.iter().any(|p| path.starts_with(p)) {
                    found.push(format!("{path}: {line}"));
                }
            }
        }
    }
    nothing("engines used outside their place", &found);
}

#[test]
fn documents_name_paths_that_exist() {
    let root = root();
    // What is built is not there on a clean checkout, nor a state directory.
    let top: BTreeSet<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "target" && name != ".satrap")
        .collect();
    let mut found = Vec::new();
    let documents = files(&["md"]);
    for name in ["ARCHITECTURE.md", "docs/threat-model.md", "docs/authority.md"] {
        assert!(documents.contains_key(name), "{name} is missing");
    }
    for (document, text) in &documents {
        for word in text.split('`').skip(1).step_by(2) {
            let is_plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/+".contains(&b));
            let in_repository = word.split('/').next().is_some_and(|first| top.contains(first));
            let is_source = [".rs", ".proto", ".md"].iter().any(|e| word.ends_with(e));
            if is_plain && (is_source || in_repository && word.contains('/')) {
                // A document may name its neighbors by file name.
                let here = root.join(document).with_file_name(word);
                if !root.join(word).exists() && !here.exists() {
                    found.push(format!("{document}: {word}"));
                }
            }
        }
    }
    nothing("paths that do not exist", &found);
}

/// One numbered rule of a specification.
struct Rule {
    number: String,
    document: String,
    /// The modules that uphold it.
    code: Vec<String>,
    /// File and function.
    tests: Vec<(String, String)>,
}

fn quoted(line: &str) -> Vec<String> {
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `### C1 Title` starts a rule, `Code: ` names the modules from there on, `Tests: ` its tests.
fn rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for (document, text) in files(&["md"]).iter().filter(|(p, _)| p.starts_with("docs/spec/")) {
        let mut code = Vec::new();
        for line in text.lines() {
            let number = line.strip_prefix("### ").and_then(|l| l.split(' ').next());
            if let Some(number) = number {
                let (number, document) = (number.to_owned(), document.clone());
                rules.push(Rule { number, document, code: code.clone(), tests: Vec::new() });
            } else if line.starts_with("Code: ") {
                code = quoted(line);
            } else if line.starts_with("Tests: ") {
                let names = quoted(line);
                let pairs = names.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone()));
                let rule = rules.last_mut().expect("tests follow a rule");
                rule.tests.extend(pairs);
            }
        }
    }
    rules
}

fn mentions(text: &str, number: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == number)
}

#[test]
fn every_rule_has_code_and_a_test() {
    let sources = files(&["rs"]);
    let rules = rules();
    assert!(rules.len() > 60, "only {} rules were read", rules.len());
    let mut found = Vec::new();
    for Rule { number, document, code, tests } in &rules {
        let cites = |path: &String| sources.get(path).is_some_and(|text| mentions(text, number));
        if !code.iter().any(cites) {
            found.push(format!("{document}: {number} is cited in none of {code:?}"));
        }
        if tests.is_empty() {
            found.push(format!("{document}: {number} names no test"));
        }
        for (path, name) in tests {
            let text = sources.get(path).map(String::as_str).unwrap_or_default();
            if !text.contains(&format!("fn {name}(")) {
                found.push(format!("{document}: {number} names {name}, which is not in {path}"));
            }
        }
    }
    nothing("rules without code or test", &found);
}

#[test]
fn every_rule_in_the_code_is_documented() {
    let sources = files(&["rs"]);
    let rules = rules();
    let mut found = Vec::new();
    for (path, document) in [
        ("crates/certify/src/rejection.rs", "docs/spec/verification.md"),
        ("global-bft/core/src/rejection.rs", "docs/spec/validity.md"),
        ("edge-agent/agent/src/session.rs", "docs/spec/edge.md"),
    ] {
        // The rules that code returns are the string literals of a letter and a number.
        let numbers: BTreeSet<_> = code_lines(&sources[path])
            .flat_map(|line| line.split('"').skip(1).step_by(2))
            .filter(|word| {
                let digits = word.strip_prefix(|c: char| c.is_ascii_uppercase());
                digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
            })
            .collect();
        assert!(numbers.len() >= 2, "{path} returns {numbers:?}");
        for number in numbers {
            // The codec has its own page.
            let document = if number.starts_with('E') { "docs/spec/encoding.md" } else { document };
            if !rules.iter().any(|r| r.number == number && r.document == document) {
                found.push(format!("{path}: {number} is not in {document}"));
            }
        }
    }
    nothing("rules that are not documented", &found);
}

#[test]
fn every_invariant_of_the_keyspace_is_documented() {
    let rules = rules();
    let mut found = Vec::new();
    for (path, text) in files(&["rs"]).iter().filter(|(p, _)| p.starts_with("regional/core/src/")) {
        let stated =
            text.lines().filter_map(|line| line.strip_prefix("//! - **")?.split_once("**"));
        for (number, _) in stated {
            let is_of = |rule: &&Rule| rule.number == number && rule.code.contains(path);
            if !rules.iter().filter(is_of).any(|rule| rule.document == "docs/spec/keyspace.md") {
                found.push(format!("{path}: {number}"));
            }
        }
    }
    nothing("invariants that docs/spec/keyspace.md does not have for their file", &found);
}

#[test]
fn files_stay_short() {
    let long: Vec<_> = files(&["rs"])
        .into_iter()
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(path, _)| path)
        .collect();
    let excused = |path: &String| LONGER_FILES.contains(&path.as_str());
    nothing(
        &format!("files of more than {FILE_LINES_MAX} lines"),
        &long.iter().filter(|path| !excused(path)).cloned().collect::<Vec<_>>(),
    );
    let short = LONGER_FILES.iter().filter(|path| !long.iter().any(|l| l == *path));
    nothing(
        "files that are short now and must leave the list",
        &short.map(ToString::to_string).collect::<Vec<_>>(),
    );
}

#[test]
fn nothing_depends_on_one_machine() {
    // Where this checkout happens to stand, and where people keep theirs.
    let here = root().canonicalize().unwrap().display().to_string();
    let machine = [here, "/root/".into(), "/Users/".into(), "/home/".into()];
    let mut found = Vec::new();
    for (path, text) in files(&["rs", "md", "toml", "proto", "go", "yml", "sh"]) {
        if path == "sim/tests/tidy.rs" {
            continue;
        }
        for line in text.lines().filter(|line| machine.iter().any(|m| line.contains(m))) {
            found.push(format!("{path}: {}", line.trim()));
        }
    }
    nothing("paths of one machine", &found);
}
