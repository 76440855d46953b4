//! Rules have numbers that are unique in the whole repository, each with a statement in one place.
//!
//! A rule is stated by a heading of `docs/spec`, with the code that upholds it and the tests that
//! break without it, or by a line of a module's header, `- **AREA-1** ...`. `docs/spec/README.md` is the
//! index of all of them; `UPDATE=1 cargo test -p satrap-sim --test tidy` writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
};

use super::{code_lines, files, nothing, root};

const INDEX: &str = "docs/spec/README.md";
/// Rules that travel to users without a prefix: of the codec, of updates and reports, and of changes
/// and blocks.
const BARE: [char; 7] = ['B', 'C', 'D', 'E', 'H', 'R', 'V'];
/// Words of the form of a rule that are none.
const NO_RULES: [&str; 1] = ["UTF-8"];

/// The words that could be rules.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
}

fn is_number(text: &str) -> bool {
    (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a word is a letter and a number, as rules were before they had prefixes.
fn is_bare(word: &str) -> bool {
    let digits = word.strip_prefix(|c: char| c.is_ascii_uppercase());
    digits.is_some_and(is_number) && !NO_RULES.contains(&word)
}

/// Whether a word has the form of a rule.
fn is_rule(word: &str) -> bool {
    if NO_RULES.contains(&word) {
        return false;
    }
    let is_area = |area: &str| area.len() > 1 && area.bytes().all(|b| b.is_ascii_uppercase());
    let is_prefixed =
        word.split_once('-').is_some_and(|(area, number)| is_area(area) && is_number(number));
    is_prefixed || is_bare(word) && word.starts_with(BARE)
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
    words(text).any(|word| word == number)
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
        // The rules that code returns are whole string literals.
        let numbers: BTreeSet<_> = code_lines(&sources[path])
            .flat_map(|line| line.split('"').skip(1).step_by(2))
            .filter(|word| is_rule(word))
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
    for (path, text) in
        files(&["rs"]).iter().filter(|(p, _)| p.starts_with("regional/ring/core/src/"))
    {
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

/// Where a rule is stated, and in which words.
#[derive(Debug)]
struct Statement {
    place: String,
    words: String,
}

/// The first sentence of a statement that begins on line `at` of a comment.
fn sentence(lines: &[&str], at: usize, marker: &str) -> String {
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate().skip(at) {
        let Some(line) = line.trim_start().strip_prefix(marker) else { break };
        let line = line.trim();
        if number > at && (line.is_empty() || line.starts_with("- ")) {
            break;
        }
        text.push_str(line);
        if text.ends_with('.') {
            break;
        }
        text.push(' ');
    }
    let first = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    let plain = without_links(first.trim().trim_end_matches(['.', ':', ';']));
    plain.replace('|', "\\|")
}

/// A statement of a module's header with links to items as their text alone: outside of rustdoc they
/// lead nowhere.
fn without_links(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('[') {
        let Some((shown, behind)) = after.split_once(']') else { break };
        plain.push_str(before);
        plain.push_str(shown);
        let target = behind.strip_prefix('(').and_then(|b| b.split_once(')'));
        rest = target.map_or(behind, |(_, behind)| behind);
    }
    plain + rest
}

/// Every rule with the places that state it.
fn stated() -> BTreeMap<String, Vec<Statement>> {
    let mut found: BTreeMap<String, Vec<Statement>> = BTreeMap::new();
    let mut add = |number: &str, place: &str, words: String| {
        let statement = Statement { place: place.to_owned(), words };
        found.entry(number.to_owned()).or_default().push(statement);
    };
    for (path, text) in files(&["md", "rs"]) {
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            if path.starts_with("docs/spec/") && path != INDEX {
                let rule = line.strip_prefix("### ").and_then(|rest| rest.split_once(' '));
                if let Some((number, title)) = rule {
                    add(number, &path, title.to_owned());
                }
            }
            let header = line.strip_prefix("//! - **").and_then(|rest| rest.split_once("**"));
            if let Some((number, _)) = header.filter(|(number, _)| is_rule(number)) {
                let text = sentence(&lines, at, "//!");
                add(number, &path, text.trim_start_matches(&format!("- **{number}** ")).to_owned());
            }
            // The checks of histories are the variants of an enum.
            let variant = line.trim_start().strip_prefix("/// ").and_then(|l| l.split_once(": "));
            let variant = variant.filter(|_| path == "crates/history/src/violation.rs");
            if let Some((number, _)) = variant.filter(|(number, _)| is_rule(number)) {
                let text = sentence(&lines, at, "///");
                add(number, &path, text.trim_start_matches(&format!("{number}: ")).to_owned());
            }
        }
    }
    found
}

#[test]
fn a_rule_is_stated_in_one_place() {
    let rules = rules();
    let mut found = Vec::new();
    for (number, statements) in stated() {
        let spec: Vec<_> = rules.iter().filter(|rule| rule.number == number).collect();
        // A rule of a specification may be in the headers of the modules that uphold it.
        let upholds = |place: &String| spec.iter().any(|rule| rule.code.contains(place));
        let elsewhere: Vec<_> = statements
            .iter()
            .map(|statement| &statement.place)
            .filter(|place| !place.starts_with("docs/spec/") && !upholds(place))
            .collect();
        if spec.len() + elsewhere.len() > 1 {
            let documents = spec.iter().map(|rule| &rule.document).collect::<Vec<_>>();
            found.push(format!("{number}: {documents:?} {elsewhere:?}"));
        }
    }
    nothing("rules that two places state", &found);
}

#[test]
fn cited_rules_exist() {
    let stated = stated();
    assert!(stated.len() > 200, "only {} rules were read", stated.len());
    let mut found = Vec::new();
    for (path, text) in files(&["md", "rs"]) {
        if path.starts_with("sim/tests/tidy/") || path == "CHANGELOG.md" {
            continue;
        }
        for line in text.lines() {
            let comment = line.split_once("//").map_or("", |(_, comment)| comment);
            let prose = if path.ends_with(".md") { line } else { comment };
            let bare = words(prose).filter(|word| is_bare(word));
            let prefixed = words(line).filter(|word| is_rule(word) && !is_bare(word));
            let unknown = bare.chain(prefixed).filter(|word| !stated.contains_key(*word));
            found.extend(unknown.map(|word| format!("{path}: {word}: {}", line.trim())));
        }
    }
    nothing("rules that are stated nowhere", &found);
}

#[test]
fn the_index_of_rules_is_current() {
    let mut text = "# Rules

Every rule of the project, by its number. A number is an area and a counter, such as `WAL-1`; rules \
that validators and edges name to users are a letter and a counter, such as `V7`. No number means \
two things. The pages beside this one say what a rule stops and which tests break without it; the \
other rules are in the header of one module.

Generated by `UPDATE=1 cargo test -p satrap-sim --test tidy`; a test fails when this page is out of \
date, when two places state one rule, or when a rule is cited that does not exist.

| rule | says | stated in |
|---|---|---|
"
    .to_owned();
    let counter = |number: &str| {
        let digits = number.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.parse::<u8>().unwrap()
    };
    let mut rows: Vec<_> = stated().into_iter().collect();
    rows.sort_by_key(|(number, _)| {
        let area = number.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        (area, counter(number))
    });
    for (number, statements) in &rows {
        let first =
            statements.iter().find(|s| s.place.starts_with("docs/")).unwrap_or(&statements[0]);
        let Statement { place, words } = first;
        let name = place.strip_prefix("docs/spec/").unwrap_or(place);
        let link = if name == place { format!("`{place}`") } else { format!("[{name}]({name})") };
        writeln!(text, "| {number} | {words} | {link} |").unwrap();
    }
    let path = root().join(INDEX);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let is_current = fs::read_to_string(&path).is_ok_and(|found| found == text);
    assert!(
        is_current,
        "{INDEX} is out of date; run: UPDATE=1 cargo test -p satrap-sim --test tidy"
    );
}
