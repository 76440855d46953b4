//! The membership changes that members request from the leader, and its replies.

use std::fmt;

use satrap_ring_api::backend::Failure;
use satrap_ring_storage::InstanceId;
use serde::{Deserialize, Serialize};

use super::rules::Fault;
use crate::types::MemberName;

/// A change for the leader to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Invite the member at these addresses.
    Invite {
        /// The addresses where its peers reach it.
        peer_urls: Vec<String>,
        /// See [`Invitation::learner`](satrap_ring_core::members::Invitation::learner).
        learner: bool,
    },
    /// Add an invited member that asks to join.
    Join {
        /// Its name, from its certificate.
        name: MemberName,
        /// The address where it listens for its peers.
        url: String,
        /// The instance id of its disk.
        instance: InstanceId,
    },
    /// Promote a learner to voter.
    Promote(u64),
    /// Remove a member or an invitation.
    Remove(u64),
    /// Change the addresses of a member.
    Update {
        /// The id of the member.
        id: u64,
        /// The new addresses.
        peer_urls: Vec<String>,
    },
    /// Transfer leadership to a member.
    Lead(u64),
}

/// The leader's reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeReply {
    /// The change was made.
    Done,
    /// The member was invited under this id.
    Invited(u64),
    /// The change is not possible.
    Refused(Fault),
    /// The receiver of the request does not lead.
    NotLeading,
    /// The outcome is unknown.
    Unknown,
}

impl fmt::Display for ChangeReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done | Self::Invited(_) => write!(f, "done"),
            Self::Refused(fault) => write!(f, "refused: {}", Failure::from(*fault)),
            Self::NotLeading => write!(f, "no leader is known"),
            Self::Unknown => write!(f, "no answer in time; the outcome is unknown"),
        }
    }
}
