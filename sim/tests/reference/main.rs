//! `docs/config.md` and `docs/errors.md` are generated from the sources, and are current.
//!
//! `UPDATE=1 cargo test -p satrap-sim --test reference` writes them anew.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

mod actions;
mod config;
mod errors;
mod source;

use std::{env, fs, path::Path};

use self::source::Sources;

/// Compares a document with what the sources say, or writes it.
fn check(document: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(document);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{document} is not what the sources say, from line {} on; \
         run: UPDATE=1 cargo test -p satrap-sim --test reference",
        line.unwrap_or_else(|| found.lines().count().min(expected.lines().count())) + 1
    );
}

#[test]
fn the_reference_of_settings_is_current() {
    check("docs/config.md", &config::document(&Sources::read()));
}

#[test]
fn the_reference_of_errors_is_current() {
    check("docs/errors.md", &errors::document(&Sources::read()));
}
