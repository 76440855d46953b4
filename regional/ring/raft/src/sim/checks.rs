//! The invariants that must hold at every moment of a simulation; one file for each family of
//! rules.
//!
//! The rule ids are those of the invariant catalogue: RAFT for Raft, HISTKV for keys.
//! `satrap-history` judges the operations of clients at the end (HISTKV-1 to HISTKV-8, HISTLEASE-1
//! to HISTLEASE-3).

mod election;
mod log;
mod progress;
mod state;

use std::sync::Arc;

pub use self::state::Recorder;
use super::world::World;

/// All rules, and their state.
#[derive(Default)]
pub struct Checks {
    leaders: election::Leaders,
    votes: election::Votes,
    log: log::Log,
    progress: progress::Progress,
    state: state::States,
}

impl Checks {
    /// Checks all members; the error names a broken rule.
    pub async fn look(&mut self, world: &Arc<World>) -> Result<(), String> {
        for (name, live) in world.running() {
            let boots = world.hosts().get(&name).map_or(0, |host| host.boots);
            self.leaders.look(&name, &live)?;
            self.votes.look(&name, &live, world).await?;
            self.log.look(&name, &live).await?;
            self.progress.look(&name, boots, &live)?;
            self.state.look(&name, &live)?;
            world.recorder().look(&name, &live)?;
        }
        Ok(())
    }
}
