//! The checks of an update, in the order of `docs/spec/verification.md`.

use std::collections::BTreeMap;

use satrap_merkle::{BundleTree, Digest, directory::DirectoryProof, history};

use super::{Advance, HistoryAdvance, HistoryView, ProvenHeads, Replica, heads};
use crate::{
    checkpoint::Commitments,
    directory::Head,
    light::{Clock, Linkage, StepRules, Trusted},
    limits::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, FLOORS_MAX, PATH_STEPS_MAX, STEPS_MAX},
    names::BundleName,
    rejection::Rejection,
    update::{Delta, HistoryUpdate, Interest, Step, Update},
    validators::ValidatorSet,
};

/// Where a list of steps leads, with those that changed the announced set.
type Verified = (Trusted, Vec<(Step, ValidatorSet)>);

impl Replica {
    pub(super) fn check(&self, update: &Update, clock: Clock) -> Result<Advance, Rejection> {
        // C1
        if update.genesis_hash != *self.realm.genesis_hash() {
            let (offered, expected) = (update.genesis_hash, *self.realm.genesis_hash());
            return Err(Rejection::Realm { offered, expected });
        }
        let (trusted, path) = self.check_steps(&update.steps, clock)?;
        let height = trusted.height;
        let (_, commitments) = trusted.certified.as_ref().ok_or(Rejection::Steps(STEPS_MAX))?;
        let history = update.history.as_ref();
        let history = history.map(|h| self.check_history(h, commitments, height)).transpose()?;
        let held = (self.history.root(), self.history.size());
        let certified = (commitments.history_root, commitments.history_size);
        let is_current = history.is_some() || held == certified;
        let (heads, contents) = if is_current {
            let heads = self.check_heads(update.heads.as_ref(), commitments)?;
            let current = heads.as_ref().map_or(&self.heads, |proven| &proven.heads);
            let contents = self.check_contents(&update.contents, current)?;
            (heads, contents)
        } else {
            // More steps follow, which is so only if as many came as fit. Heads and content would
            // be of a state that nothing here proves.
            let alone = update.heads.is_none() && update.contents.is_empty();
            if !alone || update.steps.len() < STEPS_MAX {
                let why = "it is left out, and is not the one verified before".into();
                return Err(Rejection::History { height, why });
            }
            (None, Vec::new())
        };
        let newest = update.steps.last().cloned();
        let advance = Advance { trusted, newest, path, history, heads, contents };
        // C13
        let brings_heads = advance.heads.as_ref().is_some_and(|h| Some(h.root) != self.heads_root);
        if advance.newest.is_none() && !brings_heads && advance.contents.is_empty() {
            return Err(Rejection::NoProgress(height));
        }
        Ok(advance)
    }

    /// C2 to C12
    fn check_steps(&self, steps: &[Step], clock: Clock) -> Result<Verified, Rejection> {
        // A snapshot that a process stored itself is one path from the genesis, however long (E2
        // bounds it).
        let steps_max = match clock {
            Clock::Now(_) => STEPS_MAX,
            Clock::Ignored => PATH_STEPS_MAX,
        };
        if steps.len() > steps_max {
            return Err(Rejection::Steps(steps_max));
        }
        let linkage = match self.interest {
            Interest::Everything => Linkage::Announced,
            Interest::Bundles(_) => Linkage::Overlap,
        };
        let mut trusted = self.trusted.clone();
        let mut path = Vec::new();
        for step in steps {
            let rules = StepRules { clock, linkage };
            let next = trusted.step(&self.realm, &self.policy, step, rules)?;
            if next.next_validators != trusted.next_validators {
                path.push((step.clone(), next.next_validators.clone()));
            }
            trusted = next;
        }
        Ok((trusted, path))
    }

    /// H1
    fn check_history(
        &self,
        update: &HistoryUpdate,
        commitments: &Commitments,
        height: u64,
    ) -> Result<HistoryAdvance, Rejection> {
        let refuse =
            |why: &dyn core::fmt::Display| Rejection::History { height, why: why.to_string() };
        let (root, size) = (commitments.history_root, commitments.history_size);
        match (&self.history, update) {
            (HistoryView::Log(log), HistoryUpdate::Leaves(leaves)) => {
                if log.size() + leaves.len() as u64 != size || log.root_after(leaves) != root {
                    return Err(refuse(&"the appended leaves do not give the certified root"));
                }
                Ok(HistoryAdvance::Append(leaves.clone()))
            }
            (HistoryView::Root(held_root, held_size), HistoryUpdate::Proof(proof)) => {
                history::verify_consistency(held_root, *held_size, &root, size, proof)
                    .map_err(|e| refuse(&e))?;
                Ok(HistoryAdvance::Root(root, size))
            }
            _ => Err(refuse(&"relays need leaves, edges need a proof")),
        }
    }

    /// D1, D2, B1, B2
    fn check_heads(
        &self,
        proof: Option<&DirectoryProof>,
        commitments: &Commitments,
    ) -> Result<Option<ProvenHeads>, Rejection> {
        let root = commitments.directory_root;
        let Some(proof) = proof else {
            if self.heads_root == Some(root) {
                return Ok(None);
            }
            return Err(Rejection::Directory("it changed, but no heads were sent".into()));
        };
        let proven = proof
            .verify(&root, commitments.directory_size, Head::name_of)
            .map_err(|e| Rejection::Directory(e.to_string()))?;
        let heads = match &self.interest {
            Interest::Everything => heads::all_heads(&proven, commitments.directory_size)?,
            Interest::Bundles(names) => heads::wanted_heads(&proven, names)?,
        };
        heads.values().try_for_each(|head| self.check_floor(head))?;
        Ok(Some(ProvenHeads { root, heads, proof: proof.clone() }))
    }

    fn check_floor(&self, head: &Head) -> Result<(), Rejection> {
        let bundle = || head.name.clone();
        match self.floors.get(&head.name) {
            None if self.floors.len() >= FLOORS_MAX && self.interest != Interest::Everything => {
                let what = format!("floors of {FLOORS_MAX} bundles are remembered already");
                Err(Rejection::Limit { bundle: bundle(), what })
            }
            None => Ok(()),
            Some(floor) if head.version > floor.version || head == floor => Ok(()),
            Some(floor) if head.version == floor.version => {
                Err(Rejection::Fork { bundle: bundle(), version: floor.version })
            }
            Some(floor) => {
                let (held, offered) = (floor.version, head.version);
                Err(Rejection::Rollback { bundle: bundle(), held, offered })
            }
        }
    }

    /// B3, B4, B6, B7
    fn check_contents(
        &self,
        deltas: &[Delta],
        heads: &BTreeMap<BundleName, Head>,
    ) -> Result<Vec<(Head, BundleTree, Delta)>, Rejection> {
        let mut names: Vec<_> = deltas.iter().map(|delta| &delta.bundle).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Rejection::Unasked(pair[0].clone()));
        }
        let content = |delta: &Delta| {
            let head = heads.get(&delta.bundle).filter(|head| !self.holds(head));
            let head = head.ok_or_else(|| Rejection::Unasked(delta.bundle.clone()))?;
            Ok((head.clone(), self.rebuild(head, delta)?, delta.clone()))
        };
        deltas.iter().map(content).collect()
    }

    fn rebuild(&self, head: &Head, delta: &Delta) -> Result<BundleTree, Rejection> {
        let bundle = || head.name.clone();
        if head.bytes > BUNDLE_BYTES_MAX || head.entries > BUNDLE_ENTRIES_MAX as u64 {
            let what = format!("{} bytes in {} entries", head.bytes, head.entries);
            return Err(Rejection::Limit { bundle: bundle(), what });
        }
        let content = self.contents.get(&head.name);
        let held = content.map_or(0, |content| content.version);
        if delta.base != 0 && delta.base != held {
            return Err(Rejection::DeltaBase { bundle: bundle(), base: delta.base, held });
        }
        let empty = BundleTree::default();
        let tree = delta.apply(content.map_or(&empty, |content| &content.tree));
        if !head.describes(&tree) {
            let (computed, certified): (Digest, Digest) = (tree.root(), head.root);
            let version = head.version;
            return Err(Rejection::Content { bundle: bundle(), version, computed, certified });
        }
        Ok(tree)
    }
}
