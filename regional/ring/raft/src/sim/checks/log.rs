//! The rules of the logs' content.
//!
//! - **RAFT-2** Two logs that hold an entry of the same term at the same index hold the same entry,
//!   and entries of the same term before it.
//! - **RAFT-3** The leader of the newest term holds every committed entry.
//! - **RAFT-6** A committed entry stays at its index.

use std::collections::BTreeMap;

use openraft::{RaftLogReader as _, async_runtime::WatchReceiver as _};

use crate::{
    sim::world::Live,
    types::{Entry, MemberName, encode},
};

type Hash = u64;

/// The entries seen in all logs.
#[derive(Default)]
pub struct Log {
    /// By term and index: the entry's hash, and the term of the entry before it.
    entries: BTreeMap<(u64, u64), (Hash, Option<u64>)>,
    /// By index: the term of the committed entry.
    committed: BTreeMap<u64, u64>,
    newest_term: u64,
}

fn hash(entry: &Entry) -> Hash {
    let digest = blake3::hash(&encode(entry));
    u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap())
}

fn term(entry: &Entry) -> u64 {
    entry.log_id.committed_leader_id().term
}

impl Log {
    /// Checks one member.
    pub async fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let entries = live.log.clone().try_get_log_entries(..).await.map_err(|e| e.to_string())?;
        let mut before: Option<&Entry> = None;
        for entry in &entries {
            self.matches(name, entry, before)?;
            before = Some(entry);
        }
        let applied = live.ring.node.shared.position().applied.map_or(0, |id| id.index);
        for entry in entries.iter().filter(|entry| entry.log_id.index <= applied) {
            let (index, term) = (entry.log_id.index, term(entry));
            let known = *self.committed.entry(index).or_insert(term);
            if known != term {
                return Err(format!(
                    "RAFT-6: at {index}, {name} applied term {term}, others {known}"
                ));
            }
        }
        self.leader_is_complete(name, live, &entries)
    }

    /// RAFT-2
    fn matches(
        &mut self,
        name: &MemberName,
        entry: &Entry,
        before: Option<&Entry>,
    ) -> Result<(), String> {
        let (id, content) = ((term(entry), entry.log_id.index), hash(entry));
        let before = before.map(term);
        let known = self.entries.entry(id).or_insert((content, before));
        if known.0 != content {
            return Err(format!("RAFT-2: {name} holds another entry than others at {id:?}"));
        }
        known.1 = known.1.or(before);
        if before.is_some_and(|before| known.1 != Some(before)) {
            return Err(format!(
                "RAFT-2: before {id:?}, {name} has {before:?}, others {:?}",
                known.1
            ));
        }
        Ok(())
    }

    /// RAFT-3
    fn leader_is_complete(
        &mut self,
        name: &MemberName,
        live: &Live,
        entries: &[Entry],
    ) -> Result<(), String> {
        let metrics = live.ring.node.raft.server_metrics();
        let (leads, in_term) = {
            let metrics = metrics.borrow_watched();
            (metrics.state.is_leader(), metrics.vote.leader_id.term)
        };
        self.newest_term = self.newest_term.max(in_term);
        if !leads || in_term < self.newest_term {
            return Ok(());
        }
        let first = entries.first().map_or(u64::MAX, |entry| entry.log_id.index);
        let held: BTreeMap<_, _> = entries.iter().map(|e| (e.log_id.index, term(e))).collect();
        for (index, term) in self.committed.range(first..) {
            if held.get(index) != Some(term) {
                return Err(format!("RAFT-3: {name} leads in {in_term} without {index} of {term}"));
            }
        }
        Ok(())
    }
}
