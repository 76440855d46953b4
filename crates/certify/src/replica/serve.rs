//! The server's side of the protocol: the update for a follower that is behind.
//!
//! Nothing here needs to be trusted: a server that answers wrongly is refused by the follower's
//! [`Replica::verify`]. It only has to be complete in the end, and small at a time: an answer holds
//! at most [`STEPS_MAX`] steps and about [`PART_BYTES`] of content, and says where it leads, so
//! that the next one goes on from there.

use satrap_merkle::{
    Digest,
    codec::Canonical as _,
    directory::{Directory, DirectoryProof},
};

use super::{HistoryView, Replica};
use crate::{
    directory::Head,
    limits::{ENTRY_WIRE_BYTES, PART_BYTES, STEPS_MAX},
    names::BundleName,
    rejection::Rejection,
    update::{Delta, HistoryUpdate, Interest, Position, Snapshot, Step, Update},
    validators::ValidatorSet,
};

/// A delta of at most this is sent even if the whole content takes less.
const SMALL_DELTA_BYTES: u64 = 4 * 1024;

/// One update, and the position of a follower that has taken it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The update to send.
    pub update: Update,
    /// Where to go on from.
    pub leads_to: Position,
}

/// The steps of one answer.
enum Route {
    /// They end at the newest checkpoint.
    Whole(Vec<Step>),
    /// More are needed than fit one update.
    Part(Vec<Step>),
}

impl Replica {
    /// The update that brings a follower at `position` to this replica's state, or closer to it;
    /// `None` if the follower has everything.
    ///
    /// # Errors
    ///
    /// [`Rejection::Realm`] if the follower belongs to another realm.
    ///
    /// # Panics
    ///
    /// If this replica is not a relay ([`Interest::Everything`]).
    pub fn answer(&self, position: &Position) -> Result<Option<Answer>, Rejection> {
        let expected = *self.realm.genesis_hash();
        if position.genesis_hash != expected {
            return Err(Rejection::Realm { offered: position.genesis_hash, expected });
        }
        let HistoryView::Log(log) = &self.history else {
            panic!("BUG: only a relay answers followers")
        };
        let Some(newest) = &self.newest else { return Ok(None) };
        // A follower with a longer history than ours is ahead of us, whatever height it claims.
        if position.height > self.height() || position.history_size > log.size() {
            return Ok(None);
        }
        let mut leads_to = position.clone();
        let steps = match self.route(position, newest) {
            Route::Whole(steps) => steps,
            Route::Part(steps) => {
                leads_to.height = steps.last().map_or(0, |step| step.checkpoint.height);
                let update = self.update(steps);
                return Ok(Some(Answer { update, leads_to }));
            }
        };
        let mut update = self.update(steps);
        leads_to.height = self.height();
        if position.history_size != log.size() {
            update.history = self.history_for(position);
            leads_to.history_size = log.size();
        }
        if self.heads_root != Some(position.directory_root) {
            update.heads = Some(self.heads_for(&position.interest));
            leads_to.directory_root = self.heads_root.unwrap_or([0; 32]);
        }
        update.contents = self.contents_for(position);
        for delta in &update.contents {
            let head = &self.heads[&delta.bundle];
            hold(&mut leads_to.held, head);
        }
        if update.steps.is_empty() && update.heads.is_none() && update.contents.is_empty() {
            return Ok(None);
        }
        Ok(Some(Answer { update, leads_to }))
    }

    fn update(&self, steps: Vec<Step>) -> Update {
        let genesis_hash = *self.realm.genesis_hash();
        Update { genesis_hash, steps, history: None, heads: None, contents: Vec::new() }
    }

    /// This replica as an update from the genesis: what is written to disk, and what
    /// [`Replica::restore`] verifies. `None` before the first checkpoint, and while it is not
    /// complete.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        let newest = self.newest.as_ref().filter(|_| self.is_complete())?;
        let mut update = self.update(self.path.iter().map(|(step, _)| step.clone()).collect());
        if update.steps.last() != Some(newest) {
            update.steps.push(newest.clone());
        }
        update.history = Some(match &self.history {
            HistoryView::Log(log) => HistoryUpdate::Leaves(log.leaves_from(0).to_vec()),
            // Everything extends the empty history.
            HistoryView::Root(..) => HistoryUpdate::Proof(Default::default()),
        });
        update.heads.clone_from(&self.heads_proof);
        let contents = self.contents.iter();
        update.contents = contents.map(|(name, c)| Delta::whole(name.clone(), &c.tree)).collect();
        Some(Snapshot(update))
    }

    /// The set that signs what follows the `known` first steps of the path.
    fn announced(&self, known: usize) -> &ValidatorSet {
        known.checked_sub(1).map_or(&self.first_validators, |last| &self.path[last].1)
    }

    /// The steps from `position` to `newest`. A relay gets every change of the set (C12); an edge
    /// skips as far as a third of the set it knows vouches for (C7).
    fn route(&self, position: &Position, newest: &Step) -> Route {
        let after =
            |height: u64| self.path.partition_point(|(step, _)| step.checkpoint.height <= height);
        if position.height == self.height() {
            return Route::Whole(Vec::new());
        }
        let mut steps = Vec::new();
        let mut known = after(position.height);
        let end = self.path_before(newest);
        loop {
            if steps.len() == STEPS_MAX {
                return Route::Part(steps);
            }
            let next = match position.interest {
                Interest::Everything => known,
                Interest::Bundles(_) => self.farthest(known, end, newest),
            };
            let (step, announced) = match self.path.get(next).filter(|_| next < end) {
                Some((step, announced)) => (step, announced),
                None => (newest, &self.trusted.next_validators),
            };
            let sets = [self.announced(next), announced];
            steps.push(with_sets(step, self.announced(known), sets));
            if next == end {
                return Route::Whole(steps);
            }
            known = next + 1;
        }
    }

    /// How many steps of the path come before `newest`, which may be the last of them itself.
    fn path_before(&self, newest: &Step) -> usize {
        let height = newest.checkpoint.height;
        self.path.partition_point(|(step, _)| step.checkpoint.height < height)
    }

    /// The index of the farthest step of the path that a follower verifies who knows the `known`
    /// first ones; `end` for `newest`. Found by halving, so it is the farthest for sets that change
    /// steadily, and never less than the next one, which the set it knows signs itself.
    fn farthest(&self, known: usize, end: usize, newest: &Step) -> usize {
        let set = self.announced(known);
        let verifies = |index: usize| {
            let step = self.path.get(index).filter(|_| index < end).map_or(newest, |(s, _)| s);
            let signers = self.announced(index);
            step.commit.overlap_power(signers, set) >= set.vouching_power()
        };
        if verifies(end) {
            return end;
        }
        let (mut near, mut far) = (known, end);
        while far - near > 1 {
            let middle = near + (far - near) / 2;
            if verifies(middle) { near = middle } else { far = middle }
        }
        near
    }

    fn history_for(&self, position: &Position) -> Option<HistoryUpdate> {
        let HistoryView::Log(log) = &self.history else { return None };
        Some(match position.interest {
            Interest::Everything => {
                HistoryUpdate::Leaves(log.leaves_from(position.history_size).to_vec())
            }
            Interest::Bundles(_) => {
                HistoryUpdate::Proof(log.prove_consistency(position.history_size)?)
            }
        })
    }

    fn heads_for(&self, interest: &Interest) -> DirectoryProof {
        let directory = self.directory.get_or_init(|| directory_of(self.heads.values()));
        match interest {
            Interest::Everything => directory.prove_all(),
            Interest::Bundles(names) => {
                directory.prove(&names.iter().map(BundleName::as_str).collect::<Vec<_>>())
            }
        }
    }

    /// The content that the follower asked for and does not hold, in the order of names, as much as
    /// fits.
    fn contents_for(&self, position: &Position) -> Vec<Delta> {
        let wanted: Vec<&Head> = match &position.interest {
            Interest::Everything => self.heads.values().collect(),
            Interest::Bundles(names) => names.iter().filter_map(|n| self.heads.get(n)).collect(),
        };
        let held = |name: &BundleName| {
            let found = position.held.binary_search_by(|(held, ..)| held.cmp(name));
            found.ok().map(|i| (position.held[i].1, position.held[i].2))
        };
        let behind = |head: &&Head| held(&head.name).is_none_or(|(v, _)| v != head.version);
        let behind: Vec<&Head> = wanted.into_iter().filter(behind).collect();
        let journal = self.journal.of(&behind.iter().map(|head| &head.name).collect());
        let (mut deltas, mut bytes) = (Vec::new(), 0);
        for head in behind {
            let name = &head.name;
            let delta = held(name).and_then(|(v, root)| journal.since(name, v, &root));
            let whole_bytes = head.bytes + ENTRY_WIRE_BYTES * head.entries;
            let delta = delta
                .filter(|delta| delta.wire_bytes() <= whole_bytes.max(SMALL_DELTA_BYTES))
                .unwrap_or_else(|| Delta::whole(name.clone(), &self.contents[name].tree));
            bytes += delta.wire_bytes();
            deltas.push(delta);
            if bytes >= PART_BYTES {
                break;
            }
        }
        deltas
    }
}

/// Records that the content of `head` is held.
fn hold(held: &mut Vec<(BundleName, u64, Digest)>, head: &Head) {
    let entry = (head.name.clone(), head.version, head.root);
    match held.binary_search_by(|(name, ..)| name.cmp(&head.name)) {
        Ok(at) => held[at] = entry,
        Err(at) => held.insert(at, entry),
    }
}

/// `step` with those of its sets that a follower who knows `known` lacks.
fn with_sets(step: &Step, known: &ValidatorSet, sets: [&ValidatorSet; 2]) -> Step {
    let mut needed: Vec<ValidatorSet> = Vec::new();
    for set in sets {
        if set != known && !needed.contains(set) {
            needed.push(set.clone());
        }
    }
    Step { sets: needed, ..step.clone() }
}

/// The directory over `heads`.
pub fn directory_of<'a>(heads: impl Iterator<Item = &'a Head>) -> Directory {
    Directory::new(heads.map(|head| (head.name.as_str().to_owned(), head.to_canonical())).collect())
}
