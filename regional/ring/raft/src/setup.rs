//! The configuration of a member: its ring, its name, its files and Raft's timeouts.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use satrap_ring_core::StateSetup;
use satrap_ring_storage::Owner;

use crate::{compaction::Compaction, types::MemberName};

/// Raft's timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// The shortest election timeout.
    pub election_min: Duration,
    /// The longest election timeout; also the leader's lease.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
        }
    }
}

/// Identifies one ring in its data directories, snapshots and messages.
pub type RingId = [u8; 32];

/// The configuration of a member of a ring.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// The ring.
    pub ring: RingId,
    /// The trust domain of its members' certificates.
    pub realm: String,
    /// The region in its members' certificates.
    pub region: String,
    /// The initial state of its members; equal on all of them.
    pub state: StateSetup,
    /// This member.
    pub name: MemberName,
    /// The configured members, this one included, with the addresses where they listen for peers.
    pub members: BTreeMap<MemberName, String>,
    /// Addresses that override those of `members` on this member only.
    pub peer_url_overrides: BTreeMap<MemberName, String>,
    /// The addresses where clients reach this member.
    pub client_urls: Vec<String>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Raft's timeouts.
    pub timing: Timing,
    /// The thresholds of log compaction.
    pub compaction: Compaction,
    /// The configuration of its files.
    pub storage: satrap_ring_storage::Config,
}

/// The owner of the data of this member.
#[must_use]
pub fn owner(setup: &RingSetup) -> Owner {
    Owner { ring: setup.ring, member: setup.name.to_string() }
}
