//! Checks that no compiler makes: which crate may know which, that documents name things that exist,
//! that every rule has code and a test, and that sentences name their actor.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod arrows;
mod prose;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Where the consensus engines may be named, so that they can be replaced.
const ENGINES: [(&str, [&str; 2]); 2] = [
    ("openraft", ["regional/ring/raft/src/", "regional/region/server/src/tests/"]),
    ("malachitebft", ["global-bft/node/src/malachite", "global-bft/node/tests/"]),
];
/// Files that name the engines without calling them: their log levels, and these checks.
const NAMES_ENGINES: [&str; 2] = ["cli/src/verbs/daemon.rs", "sim/tests/tidy/"];
/// Modules of the standard library that act or wait.
const IMPURE_MODULES: [&str; 4] = ["fs", "net", "process", "thread"];
/// The clocks of the standard library.
const CLOCKS: [&str; 2] = ["SystemTime", "Instant::now"];
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

/// The identifiers of a text.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

/// The words of a text that a pure crate may not have: IO, threads and clocks of the standard library, and
/// asynchronous code. Other crates that do IO are forbidden in `arrows.rs`.
fn impurities(text: &str) -> Vec<&str> {
    let code = code_lines(text).collect::<Vec<_>>().join("\n");
    let is_used = |module: &&str| {
        code.split("std::").skip(1).any(|rest| match rest.strip_prefix('{') {
            Some(group) => {
                group.split(';').next().is_some_and(|g| identifiers(g).any(|w| w == *module))
            }
            None => identifiers(rest).next() == Some(*module),
        })
    };
    let waits = [".await", "async "].into_iter().filter(|word| code.contains(word));
    let clocks = CLOCKS.into_iter().filter(|clock| code.contains(clock));
    IMPURE_MODULES.into_iter().filter(is_used).chain(clocks).chain(waits).collect()
}

#[test]
fn pure_crates_neither_act_nor_wait() {
    let mut found = Vec::new();
    for folder in arrows::PURE_CRATES {
        let sources = format!("{folder}/src/");
        let is_test = |path: &str| path.contains("/tests/") || path.ends_with("/tests.rs");
        let all = files(&["rs"]);
        let of = all.iter().filter(|(path, _)| path.starts_with(&sources) && !is_test(path));
        let mut count = 0;
        for (path, text) in of {
            count += 1;
            found.extend(impurities(text).iter().map(|word| format!("{path}: {word}")));
        }
        assert!(count > 0, "{folder} has no sources");
    }
    nothing("IO, clocks or asynchronous code in a pure crate", &found);
}

#[test]
fn an_impurity_is_found() {
    for (text, what) in [
        ("use std::fs;", "fs"),
        ("use std::{\n    collections::BTreeMap,\n    net::SocketAddr,\n};", "net"),
        ("std::thread::spawn(f);", "thread"),
        ("let now = Instant::now();", "Instant::now"),
        ("x.await", ".await"),
    ] {
        assert_eq!(impurities(text), [what], "{text}");
    }
    assert!(impurities("use std::{fmt, time::Duration}; // std::fs").is_empty());
}

#[test]
fn engines_are_named_in_one_place_each() {
    let mut found = Vec::new();
    for (path, text) in files(&["rs"]) {
        if NAMES_ENGINES.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for line in code_lines(&text).map(str::trim_start) {
            for (engine, places) in ENGINES {
                if line.contains(engine) && !places.iter().any(|p| path.starts_with(p)) {
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
    // Build products and a state directory are not there on a clean checkout.
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

/// A header names files from the root, from its crate or from its own folder; a file name alone may
/// be that of any file.
#[test]
fn headers_name_paths_that_exist() {
    let sources = files(&["rs", "proto", "md"]);
    let crates = files(&["toml"]);
    let (mut named, mut found) = (0, Vec::new());
    for (path, text) in sources.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let ours = Path::new(path);
        let owner = ours.ancestors().find(|folder| {
            crates.contains_key(folder.join("Cargo.toml").to_str().expect("paths are UTF-8"))
        });
        let from = [Some(Path::new("")), owner, ours.parent()];
        let header = text.lines().filter_map(|line| line.strip_prefix("//!"));
        for word in header.flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let is_plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
            let is_file = [".rs", ".proto", ".md"]
                .iter()
                .any(|e| word.strip_suffix(e).is_some_and(|stem| !stem.is_empty()));
            if !is_plain || !is_file {
                continue;
            }
            named += 1;
            let is_there = if word.contains('/') {
                from.iter().flatten().any(|folder| root().join(folder).join(word).exists())
            } else {
                sources.keys().any(|path| Path::new(path).ends_with(word))
            };
            if !is_there {
                found.push(format!("{path}: {word}"));
            }
        }
    }
    assert!(named > 20, "headers name {named} files");
    nothing("headers that name files which do not exist", &found);
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
    // The path of this checkout, and usual homes of others.
    let here = root().canonicalize().unwrap().display().to_string();
    let machine = [here, "/root/".into(), "/Users/".into(), "/home/".into()];
    let mut found = Vec::new();
    for (path, text) in files(&["rs", "md", "toml", "proto", "go", "yml", "sh"]) {
        if path == "sim/tests/tidy/main.rs" {
            continue;
        }
        for line in text.lines().filter(|line| machine.iter().any(|m| line.contains(m))) {
            found.push(format!("{path}: {}", line.trim()));
        }
    }
    nothing("paths of one machine", &found);
}

/// Settings that begin like a metric.
const NO_METRICS: [&str; 2] = ["etcd_listen", "etcd_url"];

/// Whether this could name a metric of ours: lower case, with its subsystem before it.
fn is_metric(word: &str) -> bool {
    let is_plain = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let is_ours = ["etcd_", "satrap_", "grpc_server_"].iter().any(|start| word.starts_with(start));
    is_plain && is_ours && !NO_METRICS.contains(&word)
}

#[test]
fn documents_name_metrics_that_exist() {
    const EXPORTERS: [&str; 3] = ["/meters.rs", "/metrics.rs", "/probes.rs"];
    // A crate begins like a metric too.
    let manifests = files(&["toml"]);
    let names = manifests.values().filter_map(|text| {
        text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
    });
    let crates: BTreeSet<String> = names.map(|name| name.replace('-', "_")).collect();
    let sources = files(&["rs"]);
    let exported: BTreeSet<&str> = sources
        .iter()
        .filter(|(path, _)| {
            path.contains("/src/") && EXPORTERS.iter().any(|name| path.ends_with(name))
        })
        .flat_map(|(_, text)| text.split('"'))
        .filter(|word| is_metric(word))
        .collect();
    assert!(exported.len() > 30, "{exported:?}");
    let (mut named, mut found) = (0, Vec::new());
    for (document, text) in files(&["md"]).iter().filter(|(path, _)| *path != "CHANGELOG.md") {
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            // A histogram is also read by its parts.
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|e| word.strip_suffix(e));
            if is_metric(word) && !crates.contains(word) {
                named += 1;
                if !exported.contains(word) && !whole.is_some_and(|w| exported.contains(w)) {
                    found.push(format!("{document}: {word}"));
                }
            }
        }
    }
    assert!(named > 5, "documents name {named} metrics");
    nothing("metrics that no member exports", &found);
}

/// Numbers of requirements, such as `000-39`; in the names of tests they are written `_000_39`.
fn requirements(text: &str) -> BTreeSet<String> {
    let digits =
        |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let is_number = |s: &str, n: &str| s.starts_with('0') && digits(s, 3) && digits(n, 2);
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let plain = words.filter_map(|word| word.split_once('-'));
    let mut found: BTreeSet<_> =
        plain.filter(|(s, n)| is_number(s, n)).map(|(s, n)| format!("{s}-{n}")).collect();
    for name in identifiers(text).filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase())) {
        let parts: Vec<_> = name.split('_').collect();
        let pairs = parts.windows(2).filter(|pair| is_number(pair[0], pair[1]));
        found.extend(pairs.map(|pair| format!("{}-{}", pair[0], pair[1])));
    }
    found
}

#[test]
fn cited_requirements_are_listed() {
    const LIST: &str = "docs/requirements.md";
    let all = files(&["rs", "md"]);
    let rows = all[LIST].lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let listed: BTreeSet<_> = rows.flat_map(|(number, _)| requirements(number)).collect();
    let (mut cited, mut found) = (BTreeSet::new(), Vec::new());
    for (path, text) in all.iter().filter(|(path, _)| *path != LIST) {
        // This file shows the form of a number.
        for number in requirements(text).into_iter().filter(|_| path != "sim/tests/tidy/main.rs") {
            if !listed.contains(&number) {
                found.push(format!("{path}: {number}"));
            }
            cited.insert(number);
        }
    }
    found.extend(listed.difference(&cited).map(|number| format!("{LIST}: nothing cites {number}")));
    nothing("requirements that are cited and not listed, or listed and not cited", &found);
}

#[test]
fn runbooks_name_drills_that_exist() {
    let sources = files(&["rs"]);
    let mut found = Vec::new();
    let pages = files(&["md"]);
    for (page, text) in pages.iter().filter(|(path, _)| path.starts_with("deploy/runbooks/")) {
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("Drill")).collect();
        if lines.is_empty() {
            found.push(format!("{page}: no line names its drills"));
        }
        // Names of tests, then the file that holds them.
        for line in lines {
            let words: Vec<_> = line.split('`').skip(1).step_by(2).collect();
            let (file, drills) = words.split_last().unwrap();
            let text = sources.get(*file).map(String::as_str).unwrap_or_default();
            let is_there = |drill: &&&str| text.contains(&format!("fn {drill}("));
            found.extend(
                drills.iter().filter(|drill| !is_there(drill)).map(|d| format!("{page}: {d}")),
            );
        }
    }
    nothing("drills that do not exist", &found);
}
