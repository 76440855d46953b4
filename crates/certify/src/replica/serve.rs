//! The other side of the protocol: what to send a follower that stands somewhere behind.
//!
//! Nothing here needs to be trusted: a server that answers wrongly is refused by the follower's
//! [`Replica::verify`]. It only has to be complete and small.

use std::collections::BTreeMap;

use satrap_merkle::{codec::Canonical as _, directory::Directory};

use super::{Content, HistoryView, Replica};
use crate::{
    directory::Head,
    limits::STEPS_MAX,
    names::BundleName,
    rejection::Rejection,
    update::{Delta, HistoryUpdate, Interest, Position, Step, Update},
};

impl Replica {
    /// What brings a follower at `position` here; `None` if it is not behind.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if the follower belongs to another realm.
    ///
    /// # Panics
    ///
    /// If this replica is not a relay ([`Interest::Everything`]) and `position` is not its own.
    pub fn update_for(&self, position: &Position) -> Result<Option<Update>, Rejection> {
        let genesis_hash = *self.realm.genesis_hash();
        if position.genesis_hash != genesis_hash {
            let (offered, expected) = (position.genesis_hash, genesis_hash);
            return Err(Rejection::Realm { offered, expected });
        }
        let Some(newest) = self.newest.as_ref().filter(|_| position.height < self.height()) else {
            return Ok(None);
        };
        let Some(history) = self.history_for(position) else { return Ok(None) };
        let heads = if self.directory_root() == Some(position.directory_root) {
            None
        } else {
            Some(self.heads_for(&position.interest))
        };
        Ok(Some(Update {
            genesis_hash,
            steps: self.steps_for(position.height, newest),
            history,
            heads,
            contents: self.contents_for(position),
        }))
    }

    /// This replica as an update from the genesis: what is written to disk, and what
    /// [`Replica::restore`] verifies. `None` before the first checkpoint.
    #[must_use]
    pub fn snapshot(&self) -> Option<Update> {
        let newest = self.newest.as_ref()?;
        let contents = self.contents.iter();
        Some(Update {
            genesis_hash: *self.realm.genesis_hash(),
            steps: self.steps_for(0, newest),
            history: match &self.history {
                HistoryView::Log(log) => HistoryUpdate::Leaves(log.leaves_from(0).to_vec()),
                // Everything extends the empty history.
                HistoryView::Root(..) => HistoryUpdate::Proof(Default::default()),
            },
            heads: self.heads_proof.clone(),
            contents: contents.map(|(name, c)| Delta::whole(name.clone(), &c.tree)).collect(),
        })
    }

    /// Set changes after `height`, then the newest checkpoint. A follower that is more set changes
    /// behind than fit refuses the last step for lack of overlap (C7) and must be provisioned with
    /// a newer trusted checkpoint.
    fn steps_for(&self, height: u64, newest: &Step) -> Vec<Step> {
        let between = height + 1..newest.checkpoint.height;
        let set_changes = self.set_changes.iter();
        let mut steps: Vec<_> = set_changes
            .filter(|step| between.contains(&step.checkpoint.height))
            .take(STEPS_MAX - 1)
            .cloned()
            .collect();
        steps.push(newest.clone());
        steps
    }

    fn history_for(&self, position: &Position) -> Option<HistoryUpdate> {
        let HistoryView::Log(log) = &self.history else { return None };
        // A follower with a longer history than ours is ahead of us, whatever height it claims.
        if position.history_size > log.size() {
            return None;
        }
        Some(match position.interest {
            Interest::Everything => {
                HistoryUpdate::Leaves(log.leaves_from(position.history_size).to_vec())
            }
            Interest::Bundles(_) => {
                HistoryUpdate::Proof(log.prove_consistency(position.history_size)?)
            }
        })
    }

    fn heads_for(&self, interest: &Interest) -> satrap_merkle::directory::DirectoryProof {
        let directory = directory_of(self.heads.values());
        match interest {
            Interest::Everything => directory.prove_all(),
            Interest::Bundles(names) => {
                directory.prove(&names.iter().map(BundleName::as_str).collect::<Vec<_>>())
            }
        }
    }

    fn contents_for(&self, position: &Position) -> Vec<Delta> {
        let wanted = |name: &BundleName| match &position.interest {
            Interest::Everything => true,
            Interest::Bundles(names) => names.binary_search(name).is_ok(),
        };
        let held = |name: &BundleName| {
            let found = position.held.binary_search_by(|(held, ..)| held.cmp(name));
            found.ok().map(|i| (position.held[i].1, position.held[i].2))
        };
        let mut deltas = Vec::new();
        for (name, head) in self.heads.iter().filter(|(name, _)| wanted(name)) {
            let content = &self.contents[name];
            match held(name) {
                Some((version, _)) if version == head.version => {}
                Some((version, root)) => deltas.push(
                    content
                        .delta_from(version, &root)
                        .unwrap_or_else(|| Delta::whole(name.clone(), &content.tree)),
                ),
                None => deltas.push(Delta::whole(name.clone(), &content.tree)),
            }
        }
        deltas
    }
}

impl Content {
    /// One delta for everything since `version`, if the journal still covers it.
    fn delta_from(&self, version: u64, root: &satrap_merkle::Digest) -> Option<Delta> {
        let start = self
            .journal
            .iter()
            .position(|entry| entry.delta.base == version && entry.base_root == *root)?;
        let mut merged = BTreeMap::new();
        for entry in self.journal.iter().skip(start) {
            for key in &entry.delta.deletes {
                merged.insert(key.clone(), None);
            }
            for (key, value) in &entry.delta.puts {
                merged.insert(key.clone(), Some(value.clone()));
            }
        }
        let bundle = self.journal[start].delta.bundle.clone();
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

/// The directory over `heads`.
pub fn directory_of<'a>(heads: impl Iterator<Item = &'a Head>) -> Directory {
    Directory::new(heads.map(|head| (head.name.as_str().to_owned(), head.to_canonical())).collect())
}
