//! What must hold at every moment, whatever befalls the ring. One file for each family of rules.
//!
//! The numbers are those of the invariant catalogue: R for Raft, K for keys; what clients saw
//! (K1 to K8, L1 to L3) is judged at the end by `satrap-history`.

mod election;
mod log;
mod progress;
mod state;

use std::sync::Arc;

pub use self::state::Recorder;
use super::world::World;

/// All rules, and what they remember.
#[derive(Default)]
pub struct Checks {
    leaders: election::Leaders,
    votes: election::Votes,
    log: log::Log,
    progress: progress::Progress,
    state: state::States,
}

impl Checks {
    /// Looks at all members; says what is broken.
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
