//! The types this ring gives to openraft, and the one encoding of its records and messages.
//!
//! A command is opaque here: bytes that `satrap-regional-core` encoded and will decode again in
//! apply. So the consensus library never parses what a peer controls beyond its own envelopes, and
//! a change of its serialization cannot change what members agree on.
//!
//! Members are named, not numbered: the raft id *is* the label in the member's certificate, so a
//! vote names its candidate in the same word that mTLS proved.

use std::{fmt, marker::PhantomData};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use openraft::{
    EntryPayload, OptionalSend, RaftTypeConfig, StorageError,
    impls::leader_id_std::LeaderId,
    type_config::alias::{
        EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
    },
    vote::leader_id_std::CommittedLeaderId,
};
use satrap_certify::Label;
use satrap_regional_storage::InstanceId;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned},
};

use super::{
    platform::{Platform, Real},
    waiters::Origin,
};

/// The types of one regional ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types<P = Real>(PhantomData<P>);

impl<P: Platform> RaftTypeConfig for Types<P> {
    type D = Payload;
    type R = Reply;
    type NodeId = MemberName;
    type Node = MemberNode;
    type Term = u64;
    type LeaderId = LeaderId<u64, MemberName>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Payload, MemberName, MemberNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = P::Async;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

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

/// What the ring's membership says about a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// The number by which clients know it.
    pub id: u64,
    /// Where it listens for its peers, `https://HOST:PORT`; each member's own configuration
    /// overrides it.
    pub url: String,
    /// It was asked for as a learner; see `satrap_regional_core::members`.
    pub learner: bool,
    /// Whose vote counts: the namesake with this disk. [`super::frames::ANY_INSTANCE`] as long as nobody knows,
    /// because its data was made from a backup.
    pub instance: InstanceId,
    /// Since when it belongs to the ring: above the index of every membership before the one that
    /// took it in, and not above that one's. Zero if it founded the ring.
    pub since: u64,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Who waits for it, and a canonically encoded `satrap_regional_core::Command`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(Bytes);

impl Payload {
    /// An entry for `command`; whoever waits for it waits under `origin`.
    #[must_use]
    pub fn new(origin: Origin, command: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(ORIGIN_BYTES + command.len());
        bytes.put_u64(origin.run);
        bytes.put_u64(origin.sequence);
        bytes.put_slice(command);
        Self(bytes.freeze())
    }

    /// Both parts again; the command shares memory with the entry. None if it is cut short.
    #[must_use]
    pub fn open(&self) -> Option<(Origin, Bytes)> {
        let mut rest = self.0.clone();
        let (run, sequence) = (rest.try_get_u64().ok()?, rest.try_get_u64().ok()?);
        Some((Origin { run, sequence }, rest))
    }
}

const ORIGIN_BYTES: usize = 16;

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

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The entry carried no command.
    Blank,
    /// The replica moved to this height.
    Adopted(u64),
    /// A batch for the keyspace was applied; its clients have their answers.
    Batch,
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
            .map(|name| {
                (
                    name.clone(),
                    MemberNode { url: format!("https://{name}:1"), ..MemberNode::default() },
                )
            })
            .collect();
        let membership = openraft::Membership::new(vec![names], nodes).unwrap();
        let entries = [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload::new(Origin::default(), &[0, 255, 7])),
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
