//! Comments and documents name the actor of a sentence.
//!
//! A sentence that opens with "what" or "who", or that is about no or some body, hides who does what:
//! the leader, this member, a client. Strings and code are free, since they may quote.

use super::{files, nothing};

/// Openings of a sentence that leave out its subject. They count where they have a capital.
const OPENINGS: [&str; 4] = ["What", "Who", "Whoever", "Whom"];
/// Words for an actor that could be named.
const UNNAMED: [&str; 5] = ["nobody", "somebody", "whoever", "anybody", "everybody"];

/// The first word of a line that breaks the rule, outside of code and quotations.
fn hidden_actor(line: &str) -> Option<&str> {
    let prose = line.split('`').step_by(2).flat_map(|text| text.split('"').step_by(2));
    prose.flat_map(|text| text.split(|c: char| !c.is_ascii_alphabetic())).find(|word| {
        let is_unnamed = UNNAMED.iter().any(|unnamed| word.eq_ignore_ascii_case(unnamed));
        is_unnamed || OPENINGS.contains(word)
    })
}

/// The text of a line that is a comment as a whole.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//")
}

#[test]
fn sentences_name_their_actor() {
    let mut found = Vec::new();
    for (path, text) in files(&["rs", "md"]) {
        let is_document = path.ends_with(".md");
        for (line, number) in text.lines().zip(1..) {
            let prose = if is_document { Some(line) } else { comment(line) };
            if let Some(word) = prose.and_then(hidden_actor) {
                found.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    nothing("sentences that do not name their actor (say who does what)", &found);
}

#[test]
fn a_hidden_actor_is_found() {
    for line in ["/ What a member holds.", "! - **X-1** Who leads", "waits for nobody."] {
        assert!(hidden_actor(line).is_some(), "{line}");
    }
    for line in ["/ A member decides what it holds, and who leads.", "`Who` and \"nobody\""] {
        assert_eq!(hidden_actor(line), None, "{line}");
    }
}
