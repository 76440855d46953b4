//! The difference of two versions of content, and whether it removes suspiciously much.

use std::fmt;

use satrap_merkle::{BundleTree, Key};

use crate::text::one_line;

/// Keys listed for people, of each kind; `--json` lists all.
const KEYS_SHOWN: usize = 16;
/// Without `--allow-delete`, a change may remove one entry of this many.
const REMOVABLE_SHARE: usize = 4;

/// How one content differs from another, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Only in the second.
    pub added: Vec<String>,
    /// In both, with other values.
    pub changed: Vec<String>,
    /// Only in the first.
    pub removed: Vec<String>,
}

/// A key as text, with bytes that are not UTF-8 escaped.
#[must_use]
pub fn key_text(key: &Key) -> String {
    match std::str::from_utf8(key.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => key.to_string(),
    }
}

impl Difference {
    /// The difference that turns `from` into `to`.
    #[must_use]
    pub fn between(from: &BundleTree, to: &BundleTree) -> Self {
        let mut difference = Self::default();
        for (key, value) in to.iter() {
            match from.get(key) {
                None => difference.added.push(key_text(key)),
                Some(before) if before != value => difference.changed.push(key_text(key)),
                Some(_) => {}
            }
        }
        let gone = from.iter().filter(|(key, _)| to.get(key).is_none());
        difference.removed = gone.map(|(key, _)| key_text(key)).collect();
        difference
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// How many entries were added, changed and removed, for people.
    #[must_use]
    pub fn sizes(&self) -> String {
        let (added, changed) = (self.added.len(), self.changed.len());
        format!("{added} added, {changed} changed, {} removed", self.removed.len())
    }

    /// Whether the removal from `before` entries may be a mistake: more than one entry
    /// and more than a quarter, or the last one.
    #[must_use]
    pub fn is_mass_deletion(&self, before: usize) -> bool {
        let removed = self.removed.len();
        let many = removed > (before / REMOVABLE_SHARE).max(1);
        let all = removed > 0 && removed == before && self.added.is_empty();
        many || all
    }

    /// The first few of a list of keys, for an error.
    #[must_use]
    pub fn some(keys: &[String]) -> String {
        const SHOWN: usize = 5;
        let shown: Vec<_> = keys.iter().take(SHOWN).map(|key| one_line(key)).collect();
        let more = if keys.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    }
}

/// One line per key.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, keys) in [('+', &self.added), ('~', &self.changed), ('-', &self.removed)] {
            for key in keys.iter().take(KEYS_SHOWN) {
                writeln!(f, "  {sign} {}", one_line(key))?;
            }
            if let Some(more) = keys.len().checked_sub(KEYS_SHOWN).filter(|more| *more > 0) {
                writeln!(f, "  {sign} and {more} more; --json lists all")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn tree(entries: &[(&[u8], &str)]) -> BundleTree {
        let mut tree = BundleTree::default();
        for (key, value) in entries {
            tree.insert(&Key::new(key).unwrap(), Arc::from(value.as_bytes()));
        }
        tree
    }

    #[test]
    fn differences_have_directions() {
        let found = Difference::between(
            &tree(&[(b"gone", "1"), (b"kept", "1"), (b"other", "1")]),
            &tree(&[(b"kept", "1"), (b"new\n- kept", "1"), (b"other", "2")]),
        );
        let expected = Difference {
            added: vec!["new\n- kept".into()],
            changed: vec!["other".into()],
            removed: vec!["gone".into()],
        };
        assert_eq!(found, expected);
        assert_eq!(found.to_string(), "  + new\\n- kept\n  ~ other\n  - gone\n");
        assert_eq!(found.sizes(), "1 added, 1 changed, 1 removed");
    }

    #[test]
    fn long_lists_are_cut_for_people() {
        let removed: Vec<_> = (0..20).map(|n| n.to_string()).collect();
        assert_eq!(Difference::some(&removed), "0, 1, 2, 3, 4, …");
        let text = Difference { removed, ..Difference::default() }.to_string();
        assert!(text.ends_with("  - 15\n  - and 4 more; --json lists all\n"), "{text}");
    }

    #[test]
    fn more_than_a_quarter_or_all_is_a_mass_deletion() {
        let removing = |n: usize, added: usize| {
            let keys = |n: usize| vec![String::new(); n];
            Difference { removed: keys(n), added: keys(added), ..Difference::default() }
        };
        for (removed, added, before, expected) in [
            (0, 0, 0, false),
            (1, 0, 2, false),
            (2, 0, 4, true),
            (36, 0, 145, false),
            (37, 0, 145, true),
            (144, 0, 145, true),
            // The only entry is replaced by another one, or it is gone.
            (1, 1, 1, false),
            (1, 0, 1, true),
        ] {
            let found = removing(removed, added).is_mass_deletion(before);
            assert_eq!(found, expected, "{removed} of {before}, {added} added");
        }
    }
}
