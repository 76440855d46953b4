//! The types by which a ring describes itself to its API services: members, leader and term, and how far this member
//! has applied the log.

use std::time::Duration;

/// The identity of this member; never changes while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    /// Hash of the ring's id; etcd's cluster id.
    pub cluster_id: u64,
    /// Hash of the ring's id and this member's name.
    pub member_id: u64,
    /// The name from its configuration.
    pub name: String,
}

/// One member of the ring, as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// See [`MemberIdentity::member_id`].
    pub id: u64,
    /// Its name; empty until an invited member has joined.
    pub name: String,
    /// Addresses for other members.
    pub peer_urls: Vec<String>,
    /// Addresses for clients.
    pub client_urls: Vec<String>,
    /// Whether it is a learner, without a vote.
    pub is_learner: bool,
}

/// The ring as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingView {
    /// Id of the leader; zero if this member knows none.
    pub leader: u64,
    /// This member's term.
    pub term: u64,
    /// Index of the last entry in this member's log.
    pub log_index: u64,
    /// The members, by id.
    pub members: Vec<Member>,
    /// Size of the state's file on disk, in bytes.
    pub disk_bytes: u64,
    /// Bytes of that file that hold data; defragmentation frees the others.
    pub disk_bytes_used: u64,
    /// When ([`satrap_runtime::clock::monotonic`]) everything committed in the ring had last been applied here, as
    /// far as this member knows. `None` if it never knew.
    pub fresh_at: Option<Duration>,
    /// The faults of this member, for operators.
    pub errors: Vec<String>,
}

/// How far this member has applied the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppliedMark {
    /// Revision of the keyspace.
    pub revision: i64,
    /// Index of the last applied entry.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
}
