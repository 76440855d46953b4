//! Who leads and who voted for whom.
//!
//! - **R1** No two members lead in the same term.
//! - **R8** A member never votes for two candidates in one term, also across restarts.
//! - **R9** A member that lost its disk does not vote under its old name, unless the ring has let it
//!   in anew since.

use std::collections::BTreeMap;

use openraft::{RaftLogReader as _, async_runtime::WatchReceiver as _};

use crate::raft::{
    sim::world::{Live, World},
    types::MemberName,
};

/// R1
#[derive(Default)]
pub struct Leaders(BTreeMap<u64, MemberName>);

impl Leaders {
    /// Looks at one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let metrics = live.ring.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let Some(leader) = &metrics.current_leader else { return Ok(()) };
        let term = metrics.vote.leader_id.term;
        let known = self.0.entry(term).or_insert_with(|| leader.clone());
        if known != leader {
            return Err(format!("R1: {known} and {leader} lead in term {term}, says {name}"));
        }
        Ok(())
    }
}

/// R8, R9: by voter, disk and term, the candidate.
#[derive(Default)]
pub struct Votes(BTreeMap<(MemberName, u64, u64), MemberName>);

impl Votes {
    /// Looks at one member, of which `world` knows more.
    pub async fn look(
        &mut self,
        name: &MemberName,
        live: &Live,
        world: &World,
    ) -> Result<(), String> {
        let vote = live.log.clone().read_vote().await.map_err(|error| error.to_string())?;
        let host = world.hosts().get(name).map(|host| (host.losses, host.banned));
        let (Some(vote), Some((losses, banned))) = (vote, host) else { return Ok(()) };
        if banned {
            return Err(format!("R9: {name} lost its disk and votes {vote}"));
        }
        if vote.committed {
            // Not its own choice: it follows whoever was elected.
            return Ok(());
        }
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let known = self.0.entry((name.clone(), losses, term)).or_insert(candidate.clone());
        if *known != candidate {
            return Err(format!("R8: {name} voted for {known} and {candidate} in term {term}"));
        }
        Ok(())
    }
}
