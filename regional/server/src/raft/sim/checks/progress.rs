//! How far members are.
//!
//! - **R7** Purged ≤ snapshot ≤ applied ≤ committed ≤ last.
//! - **R8** Term, commit and apply of a process never go back.

use std::collections::BTreeMap;

use openraft::async_runtime::WatchReceiver as _;

use crate::raft::{
    sim::world::Live,
    types::{LogId, MemberName},
};

/// Of each run of each process: term, committed and applied.
#[derive(Default)]
pub struct Progress(BTreeMap<(MemberName, u64), [u64; 3]>);

impl Progress {
    /// Looks at one member.
    pub fn look(&mut self, name: &MemberName, boots: u64, live: &Live) -> Result<(), String> {
        let metrics = live.ring.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let applied = live.ring.shared.standing().applied;
        let order = [
            index(&metrics.purged),
            index(&metrics.snapshot),
            index(&metrics.last_applied),
            index(&metrics.local_committed),
            metrics.last_log_index.unwrap_or(0),
        ];
        if !order.is_sorted() {
            return Err(format!("R7: {name} has {order:?}"));
        }
        let now = [metrics.vote.leader_id.term, index(&metrics.local_committed), index(&applied)];
        let before = self.0.entry((name.clone(), boots)).or_insert(now);
        if before.iter().zip(now).any(|(before, now)| *before > now) {
            return Err(format!("R8: {name} went from {before:?} to {now:?}"));
        }
        *before = now;
        Ok(())
    }
}
