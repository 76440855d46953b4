//! The types this ring gives to openraft, and the one encoding of its records and messages.
//!
//! A command is opaque here: bytes that `satrap-regional-core` encoded and will decode again in
//! apply. So the consensus library never parses what a peer controls beyond its own envelopes, and
//! a change of its serialization cannot change what members agree on.
//!
//! Members are named, not numbered: the raft id *is* the label in the member's certificate, so a
//! vote names its candidate in the same word that mTLS proved.

use std::fmt;

use bytes::Bytes;
use openraft::{
    StorageError,
    impls::leader_id_std::LeaderId,
    type_config::alias::{
        EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
    },
};
use satrap_certify::Label;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned},
};

openraft::declare_raft_types!(
    /// The types of one regional ring.
    pub Types:
        D = Payload,
        R = Reply,
        NodeId = MemberName,
        Node = MemberNode,
        LeaderId = LeaderId<Self::Term, Self::NodeId>,
);

/// One log entry.
pub type Entry = EntryOf<Types>;
/// Term and index of an entry.
pub type LogId = LogIdOf<Types>;
/// A vote or a leadership.
pub type Vote = VoteOf<Types>;
/// A membership and where in the log it stands.
pub type Membership = StoredMembershipOf<Types>;
/// What a snapshot covers.
pub type SnapshotMeta = SnapshotMetaOf<Types>;
/// A snapshot with its content.
pub type Snapshot = SnapshotOf<Types, super::state_machine::SnapshotContent>;
/// A failed storage operation, as openraft names it.
pub type RaftStorageError = StorageError<Types>;

/// The name of a member inside its region; also its raft id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct MemberName(String);

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Label> for MemberName {
    fn from(label: &Label) -> Self {
        Self(label.as_str().to_owned())
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for MemberName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Label::new(&text).map_err(de::Error::custom)?;
        Ok(Self(text))
    }
}

/// The conformance suite of openraft numbers its members.
#[cfg(test)]
impl From<u64> for MemberName {
    fn from(number: u64) -> Self {
        Self(format!("m{number}"))
    }
}

/// Where a member listens for its peers when the ring was founded; each member's own configuration
/// overrides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// `https://HOST:PORT`.
    pub url: String,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// A canonically encoded `satrap_regional_core::Command`.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a command")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Payload, E> {
                Ok(Payload(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The entry carried no command.
    Blank,
    /// The replica moved to this height.
    Adopted(u64),
    /// The command was refused; nothing changed.
    Refused {
        /// The number of the rule.
        rule: String,
        /// What was wrong.
        why: String,
    },
}

/// A record or message that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{what} does not decode: {why}")]
pub struct CodecError {
    what: &'static str,
    why: String,
}

/// Encodes a record or message of openraft.
///
/// # Panics
///
/// Never: these types hold only integers, texts, byte strings and collections of known length.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data always has an encoding")
}

/// Decodes a record or message of openraft, all of it. Memory is bounded by the input.
///
/// # Errors
///
/// [`CodecError`] names `what`.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(CodecError { what, why: format!("{} bytes follow it", rest.len()) }),
        Err(error) => Err(CodecError { what, why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use openraft::{
        EntryPayload,
        raft::{
            AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
            TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
        },
        vote::leader_id_std::CommittedLeaderId,
    };

    use super::*;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    fn round_trip<T: Serialize + DeserializeOwned + fmt::Debug>(value: &T) {
        let bytes = encode(value);
        let back: T = decode("value", &bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{value:?}"));
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<T>("value", &longer).is_err(), "trailing byte after {value:?}");
        assert!(decode::<T>("value", &bytes[..bytes.len() - 1]).is_err(), "truncated {value:?}");
    }

    #[test]
    fn every_message_of_openraft_survives_the_encoding() {
        let names: BTreeSet<MemberName> = [1, 2, 3].map(MemberName::from).into();
        let nodes: BTreeMap<MemberName, MemberNode> = names
            .iter()
            .map(|name| (name.clone(), MemberNode { url: format!("https://{name}:1") }))
            .collect();
        let membership = openraft::Membership::new(vec![names], nodes).unwrap();
        let entries = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(&[0, 255, 7]))),
            EntryPayload::Membership(membership.clone()),
        ];
        let entries: Vec<Entry> = (5..)
            .zip(entries)
            .map(|(index, payload)| Entry { log_id: log_id(3, index), payload })
            .collect();
        let vote = Vote::new_committed(3, 1.into());
        round_trip(&vote);
        let (prev_log_id, leader_commit) = (Some(log_id(2, 4)), None);
        round_trip(&AppendEntriesRequest::<Types> {
            vote: vote.clone(),
            prev_log_id,
            entries,
            leader_commit,
        });
        for response in [
            AppendEntriesResponse::<Types>::Success,
            AppendEntriesResponse::PartialSuccess(prev_log_id),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote.clone()),
        ] {
            round_trip(&response);
        }
        round_trip(&VoteRequest::<Types>::new(vote.clone(), None));
        round_trip(&VoteResponse::<Types>::new(vote.clone(), prev_log_id, true));
        round_trip(&SnapshotResponse::<Types>::new(vote.clone()));
        round_trip(&TransferLeaderRequest::<Types>::new(vote.clone(), 2.into(), prev_log_id));
        let refused: TransferLeaderResponse<Types> =
            Err(TransferLeaderError::VoteChanged { expected: vote.clone(), actual: vote });
        round_trip(&refused);
        let last_membership = Membership::new(prev_log_id, membership);
        round_trip(&SnapshotMeta { last_log_id: prev_log_id, last_membership });
    }

    #[test]
    fn a_member_name_from_a_peer_is_a_label() {
        let bytes = encode(&"../m1".to_owned());
        assert!(decode::<MemberName>("name", &bytes).is_err());
        assert!(decode::<MemberName>("name", &encode(&"m1".to_owned())).is_ok());
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // A byte string that claims 2^63 bytes.
        let mut bytes = vec![0xff; 9];
        bytes.push(0x00);
        assert!(decode::<Payload>("payload", &bytes).is_err());
        assert!(decode::<Vec<Entry>>("entries", &bytes).is_err());
    }
}
