//! `docs/errors.md`: what every refusal means and what to do about it.
//!
//! Which errors there are comes from the sources; what to do comes from the tables in [`actions`]. An
//! error without an action, and an action without an error, fail the test.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use syn::{ItemEnum, Variant};

use super::actions;
use crate::source::{Sources, attributes, docs};

const HEAD: &str = "# Errors

The meaning of each refusal, rejection and exit code, and what to do. Generated from the sources by \
`UPDATE=1 cargo test -p satrap-sim --test reference`; a test fails when this page is out of date. \
`{...}` is a value.

## Exit codes

Of the daemons (`satrap validator run`, `satrap region run`, `satrap edge run`):

| code | meaning | what to do |
|---|---|---|
| 0 | It was asked to stop. | Nothing. |
";

const CLIENTS: &str = "
Of every other verb; `kind` is the word in `--json`:

| code | kind | meaning | what to do |
|---|---|---|---|
| 0 | | It worked. | Nothing. |
";

pub fn document(sources: &Sources) -> String {
    let mut text = HEAD.to_owned();
    exit_codes(sources, &mut text);
    text.push_str(
        "\n## Refused updates\n\nA follower (validator, region member, edge or verb) refuses an \
         update by a rule of [spec/verification.md](spec/verification.md). Its own state is \
         unchanged, and it asks another server; where that is all there is to do, the sender is \
         broken, hostile or behind, and its logs are the next place to look.\n\n",
    );
    rules(sources, "crates/certify/", "docs/spec/verification.md", &mut text);
    text.push_str(
        "\nAn edge also refuses bytes, by rules of [spec/edge.md](spec/edge.md):\n\n\
         | rule | what to do |\n|---|---|\n",
    );
    for (rule, title) in sources.rules("docs/spec/edge.md") {
        if let Some((_, action)) = actions::EDGE.iter().find(|(of, _)| *of == rule) {
            writeln!(text, "| {rule} {title} | {action} |").unwrap();
        }
    }
    text.push_str(
        "\n## Refused changes and blocks\n\nValidators refuse a change by a rule of \
         [spec/validity.md](spec/validity.md); a refused change is never decided as it is. Rules V20 \
         to V26 are about blocks: a validator that proposes one that breaks them is broken or \
         hostile.\n\n",
    );
    rules(sources, "global-bft/core/", "docs/spec/validity.md", &mut text);
    text.push_str(
        "\n## Refusals of a ring\n\nClients of the keyspace see these. Texts that begin with \
         `etcdserver:`, `auth:` or `grpc:` are etcd's and mean what they mean there.\n\n\
         | text | what to do |\n|---|---|\n",
    );
    ring(sources, &mut text);
    text.push_str(
        "\n## Errors of processes\n\nIn logs, and in the line that a process prints when it does \
         not start. The message says what to do where that is not always the same.\n",
    );
    others(sources, &mut text);
    text
}

fn exit_codes(sources: &Sources, text: &mut String) {
    let numbers =
        |item: &ItemEnum, path: &Path| sources.numbers(path, &item.ident.to_string(), "code");
    let mut of = |name: &str, near: &str, head: &str, is_named: bool| {
        text.push_str(head);
        let enums =
            sources.enums().filter(|(path, item)| item.ident == name && path.starts_with(near));
        let (path, item) = enums.last().unwrap_or_else(|| panic!("there is no `{name}` in {near}"));
        let codes = numbers(item, path);
        for variant in &item.variants {
            let name = variant.ident.to_string();
            let code = codes.get(&name).unwrap_or_else(|| panic!("`{name}` has no code"));
            let action = action(actions::EXIT_CODES, &name);
            let kind =
                if is_named { format!(" `{}` |", name.to_lowercase()) } else { String::new() };
            let meaning = cell(&docs(&variant.attrs).join(" "));
            writeln!(text, "| {code} |{kind} {meaning} | {action} |").unwrap();
        }
    };
    of("Fault", "crates/runtime", "", false);
    of("Kind", "crates/operator", CLIENTS, true);
}

/// The variants of a crate's `Rejection`, by the rule that each breaks.
fn rules(sources: &Sources, near: &str, document: &str, text: &mut String) {
    let mut titles = sources.rules(document);
    // The codec has a page of its own.
    titles.extend(sources.rules("docs/spec/encoding.md"));
    let enums = sources.enums();
    let (_, item) = enums
        .filter(|(path, item)| path.starts_with(near) && item.ident == "Rejection")
        .last()
        .unwrap_or_else(|| panic!("there is no `Rejection` in {near}"));
    text.push_str("| rule | message | what to do |\n|---|---|---|\n");
    let mut last = String::new();
    for variant in &item.variants {
        let rule = docs(&variant.attrs).first().cloned().unwrap_or_default();
        let title =
            titles.get(&rule).unwrap_or_else(|| panic!("{}: `{rule}` is no rule", variant.ident));
        let rule_cell = if rule == last { String::new() } else { format!("{rule} {title}") };
        let action = action(actions::RULES, &rule);
        writeln!(text, "| {rule_cell} | {} | {action} |", message(variant)).unwrap();
        last = rule;
    }
}

fn ring(sources: &Sources, text: &mut String) {
    let found =
        sources.literals("regional/ring", &["etcdserver: ", "satrap: ", "auth: ", "grpc: "]);
    assert!(found.len() > 50, "only {found:?}");
    for literal in &found {
        writeln!(text, "| `{}` | {} |", cell(literal), action(actions::RING, literal)).unwrap();
    }
    let unused: Vec<_> =
        actions::RING.iter().filter(|(of, _)| !found.iter().any(|f| f.starts_with(of))).collect();
    assert!(unused.is_empty(), "actions for texts that the ring does not have: {unused:?}");
}

/// Every other error of the product that has a text.
fn others(sources: &Sources, text: &mut String) {
    let mut crates = BTreeSet::new();
    let tools = [
        "histories",
        "bench",
        "sim",
        "crates/history",
        "crates/effort",
        "crates/lies",
        "crates/dev",
    ];
    for (path, item) in sources.enums() {
        let is_tool = tools.iter().any(|tool| path.starts_with(tool));
        let has_text = item.variants.iter().any(|v| !attributes(&v.attrs, "error").is_empty());
        if is_tool || !has_text || item.ident == "Rejection" {
            continue;
        }
        let place = path.components().take_while(|part| part.as_os_str() != "src");
        let place = place.collect::<std::path::PathBuf>().display().to_string();
        if crates.insert(place.clone()) {
            write!(text, "\n### `{place}`\n\n| message | meaning |\n|---|---|\n").unwrap();
        }
        for variant in &item.variants {
            let meaning = cell(&docs(&variant.attrs).join(" "));
            let message = message(variant);
            if message != "`transparent`" {
                writeln!(text, "| {message} | {meaning} |").unwrap();
            }
        }
    }
}

fn action(table: &[(&str, &str)], of: &str) -> String {
    let found = table.iter().filter(|(key, _)| *key == of || key.len() > 4 && of.starts_with(key));
    // Of two that fit, the longer one is meant.
    let found = found.max_by_key(|(key, _)| key.len());
    found.unwrap_or_else(|| panic!("there is no action for `{of}`: add one to actions.rs")).1.into()
}

/// The text of `#[error("...")]`, with names of fields but without what formats them.
fn message(variant: &Variant) -> String {
    let list = attributes(&variant.attrs, "error").join(" ");
    let Some(literal) = list.split('"').nth(1).map(|_| first_literal(&list)) else {
        return format!("`{}`", list.trim());
    };
    format!("`{}`", cell(&literal))
}

/// The first string literal of a list of tokens, as it reads.
fn first_literal(tokens: &str) -> String {
    let start = tokens.find('"').expect("the caller saw one") + 1;
    let (mut text, mut chars) = (String::new(), tokens[start..].chars().peekable());
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => match chars.next() {
                // A line that goes on.
                Some('\n') => while chars.next_if(|next| next.is_whitespace()).is_some() {},
                Some('n') => text.push(' '),
                Some(other) => text.push(other),
                None => break,
            },
            other => text.push(other),
        }
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('`', "'")
}
