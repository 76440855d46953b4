//! The rules of the members' progress through the log.
//!
//! - **RAFT-7** Purged ≤ snapshot ≤ applied ≤ committed ≤ last.
//! - **RAFT-5** Term, commit and apply of a process never go back.

use std::collections::BTreeMap;

use openraft::async_runtime::WatchReceiver as _;

use crate::{
    sim::world::Live,
    types::{LogId, MemberName},
};

/// Term, committed and applied index of each run of each process.
#[derive(Default)]
pub struct Progress(BTreeMap<(MemberName, u64), [u64; 3]>);

impl Progress {
    /// Checks one member.
    pub fn look(&mut self, name: &MemberName, boots: u64, live: &Live) -> Result<(), String> {
        let metrics = live.ring.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let applied = live.ring.node.shared.position().applied;
        let order = [
            index(&metrics.purged),
            index(&metrics.snapshot),
            index(&metrics.last_applied),
            index(&metrics.local_committed),
            metrics.last_log_index.unwrap_or(0),
        ];
        if !order.is_sorted() {
            return Err(format!("RAFT-7: {name} has {order:?}"));
        }
        let now = [metrics.vote.leader_id.term, index(&metrics.local_committed), index(&applied)];
        let before = self.0.entry((name.clone(), boots)).or_insert(now);
        if before.iter().zip(now).any(|(before, now)| *before > now) {
            return Err(format!("RAFT-5: {name} went from {before:?} to {now:?}"));
        }
        *before = now;
        Ok(())
    }
}
