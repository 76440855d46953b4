//! The rules of elections: leaders and votes.
//!
//! - **RAFT-1** No two members lead in the same term.
//! - **RAFT-8** A member never votes for two candidates in one term, also across restarts.
//! - **RAFT-9** A member that lost its disk does not vote under its old name, unless the ring has
//!   added it again since.

use std::collections::BTreeMap;

use openraft::{
    RaftLogReader as _, async_runtime::WatchReceiver as _, impls::leader_id_std::LeaderId,
};

use crate::{
    sim::world::{Live, World},
    types::MemberName,
};

/// RAFT-1
#[derive(Default)]
pub struct Leaders(BTreeMap<u64, MemberName>);

impl Leaders {
    /// Checks one member.
    pub fn look(&mut self, name: &MemberName, live: &Live) -> Result<(), String> {
        let metrics = live.ring.node.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let Some(leader) = &metrics.current_leader else { return Ok(()) };
        let LeaderId { term, voted_for } = &metrics.vote.leader_id;
        if voted_for != leader {
            // openraft reports the leader of its newest vote beside the last vote that is on disk.
            return Ok(());
        }
        let known = self.0.entry(*term).or_insert_with(|| leader.clone());
        if known != leader {
            return Err(format!("RAFT-1: {known} and {leader} lead in term {term}, says {name}"));
        }
        Ok(())
    }
}

/// RAFT-8, RAFT-9: by voter, disk and term, the candidate.
#[derive(Default)]
pub struct Votes(BTreeMap<(MemberName, u64, u64), MemberName>);

impl Votes {
    /// Checks one member, using `world`'s record of its disk.
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
            return Err(format!("RAFT-9: {name} lost its disk and votes {vote}"));
        }
        if vote.committed {
            // Not its own vote: it follows the elected member.
            return Ok(());
        }
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let known = self.0.entry((name.clone(), losses, term)).or_insert(candidate.clone());
        if *known != candidate {
            return Err(format!("RAFT-8: {name} voted for {known} and {candidate} in term {term}"));
        }
        Ok(())
    }
}
