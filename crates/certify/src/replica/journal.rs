//! The deltas that a relay keeps, so that followers a few versions behind get only what changed.
//!
//! One journal for all bundles: a bundle that is published often pushes out the oldest deltas,
//! and cannot make a relay hold more by publishing to many.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use satrap_merkle::Digest;

use crate::{
    limits::{JOURNAL_BYTES_MAX, JOURNAL_DELTAS_MAX},
    names::BundleName,
    update::Delta,
};

/// The newest deltas of all bundles, oldest first. Clones share the deltas.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    entries: VecDeque<Entry>,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    base_root: Digest,
    delta: Arc<Delta>,
}

impl Journal {
    /// Keeps the step that leads away from the content with root `base_root`, within bounds.
    pub fn remember(&mut self, delta: Delta, base_root: Digest) {
        if delta.base == 0 {
            // Nothing leads from older versions to this one.
            let gone = |entry: &Entry| entry.delta.bundle == delta.bundle;
            self.bytes -= self.entries.iter().filter(|e| gone(e)).map(Entry::bytes).sum::<u64>();
            self.entries.retain(|entry| !gone(entry));
            return;
        }
        let entry = Entry { base_root, delta: Arc::new(delta) };
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > JOURNAL_DELTAS_MAX || self.bytes > JOURNAL_BYTES_MAX {
            self.bytes -= self.entries.pop_front().map_or(0, |entry| entry.bytes());
        }
    }

    /// The journal of `bundles`, found in one pass however many there are.
    pub fn of<'a>(&'a self, bundles: &BTreeSet<&BundleName>) -> Excerpt<'a> {
        let mut excerpt = Excerpt::default();
        for entry in self.entries.iter().filter(|entry| bundles.contains(&entry.delta.bundle)) {
            excerpt.0.entry(&entry.delta.bundle).or_default().push(entry);
        }
        excerpt
    }
}

/// The part of a journal that is about some bundles.
#[derive(Default)]
pub(super) struct Excerpt<'a>(BTreeMap<&'a BundleName, Vec<&'a Entry>>);

impl Excerpt<'_> {
    /// One delta for everything since `version` of `bundle`, if the journal still covers it.
    pub fn since(&self, bundle: &BundleName, version: u64, root: &Digest) -> Option<Delta> {
        let mut covered = self.0.get(bundle)?.iter();
        let first =
            covered.find(|entry| entry.delta.base == version && entry.base_root == *root)?;
        let mut merged = BTreeMap::new();
        for entry in core::iter::once(first).chain(covered) {
            for key in &entry.delta.deletes {
                merged.insert(key.clone(), None);
            }
            for (key, value) in &entry.delta.puts {
                merged.insert(key.clone(), Some(value.clone()));
            }
        }
        let bundle = bundle.clone();
        let mut delta = Delta { bundle, base: version, puts: Vec::new(), deletes: Vec::new() };
        for (key, value) in merged {
            match value {
                Some(value) => delta.puts.push((key, value)),
                None => delta.deletes.push(key),
            }
        }
        Some(delta)
    }
}

impl Entry {
    /// The bytes that the delta would take on the wire.
    fn bytes(&self) -> u64 {
        self.delta.wire_bytes()
    }
}

#[cfg(test)]
mod tests {
    use satrap_merkle::Key;

    use super::*;

    fn delta(bundle: &str, base: u64, bytes: usize) -> Delta {
        let key = Key::new(b"k").expect("a key");
        let bundle = BundleName::new(bundle).expect("a name");
        Delta { bundle, base, puts: vec![(key, vec![0; bytes].into())], deletes: Vec::new() }
    }

    #[test]
    fn all_bundles_together_have_one_bound() {
        let mut journal = Journal::default();
        let one = usize::try_from(JOURNAL_BYTES_MAX / 4).expect("fits") - 9;
        for n in 0..4 {
            journal.remember(delta(&format!("b{n}"), 1, one), [n; 32]);
        }
        assert_eq!(journal.bytes, JOURNAL_BYTES_MAX);
        let known = |journal: &Journal, n: u8| {
            let name = BundleName::new(&format!("b{n}")).expect("a name");
            journal.of(&[&name].into()).since(&name, 1, &[n; 32]).is_some()
        };
        assert!((0..4).all(|n| known(&journal, n)));
        // One byte too many, and the oldest goes, whose ever it is.
        journal.remember(delta("b3", 2, 0), [9; 32]);
        assert!(!known(&journal, 0) && (1..4).all(|n| known(&journal, n)));
        // Whole content makes what led to older versions useless.
        journal.remember(delta("b1", 0, 0), [0; 32]);
        assert!(!known(&journal, 1) && known(&journal, 2));
        for base in 1..=JOURNAL_DELTAS_MAX as u64 + 1 {
            journal.remember(delta("many", base, 0), [0; 32]);
        }
        assert_eq!(journal.entries.len(), JOURNAL_DELTAS_MAX);
    }

    #[test]
    fn deltas_merge_into_one() {
        let mut journal = Journal::default();
        let key = |text: &str| Key::new(text.as_bytes()).expect("a key");
        let bundle = BundleName::new("b").expect("a name");
        let value = |n: u8| Arc::<[u8]>::from(vec![n]);
        let step = |base, puts, deletes| Delta { bundle: bundle.clone(), base, puts, deletes };
        journal
            .remember(step(1, vec![(key("a"), value(1)), (key("b"), value(1))], vec![]), [1; 32]);
        journal.remember(step(2, vec![(key("a"), value(2))], vec![key("b")]), [2; 32]);
        let of_bundle = journal.of(&[&bundle].into());
        let merged = of_bundle.since(&bundle, 1, &[1; 32]).expect("covered");
        assert_eq!((merged.base, merged.puts), (1, vec![(key("a"), value(2))]));
        assert_eq!(merged.deletes, [key("b")]);
        let other = of_bundle.since(&bundle, 1, &[7; 32]);
        assert_eq!(other, None, "another content at that version");
    }
}
