//! The types with which this ring instantiates openraft, and the encoding of its records and
//! messages.
//!
//! A command is opaque here: bytes that `satrap-ring-core` encoded and decodes in apply. So the
//! consensus library parses no peer-controlled data beyond its own envelopes, and a change of its
//! serialization cannot change the replicated state.
//!
//! Members have names, not numbers: the Raft id *is* the label in the member's certificate, so a
//! vote names its candidate by the name that mTLS authenticated.

use std::{fmt, marker::PhantomData, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use openraft::{
    EntryPayload, OptionalSend, RaftTypeConfig, StorageError,
    impls::leader_id_std::LeaderId,
    type_config::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf},
    vote::leader_id_std::CommittedLeaderId,
};
use satrap_merkle::codec::DecodeError;
use satrap_ring_core::{Command, Entry as StateEntry};
use satrap_ring_storage::InstanceId;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
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
/// A membership and its position in the log.
pub type Membership = StoredMembershipOf<Types>;
/// The metadata of a snapshot: last entry, membership and id.
pub type SnapshotMeta = SnapshotMetaOf<Types>;
/// A failed storage operation, in openraft's terms.
pub type RaftStorageError = StorageError<Types>;

/// The name of a member inside its ring, from its certificate; also its Raft id. openraft copies it
/// several times for each entry, so copies share the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(Arc<str>);

/// An invalid member name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a valid member name: expected 1 to 63 of a-z, 0-9, '-', '_', '.', beginning with \
     a letter or digit"
)]
pub struct InvalidName(String);

/// The length limit of a host name's label.
const NAME_BYTES_MAX: usize = 63;

impl MemberName {
    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] names the expected form.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let is_valid = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if is_valid {
            return Ok(Self(text.into()));
        }
        Err(InvalidName(text.chars().take(2 * NAME_BYTES_MAX).collect()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for MemberName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct("MemberName", self.as_str())
    }
}

impl<'de> Deserialize<'de> for MemberName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// For openraft's conformance suite, which numbers its members.
#[cfg(test)]
impl From<u64> for MemberName {
    fn from(number: u64) -> Self {
        Self(format!("m{number}").into())
    }
}

/// The membership's record of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberNode {
    /// The id by which clients know it.
    pub id: u64,
    /// The address where it listens for peers, `https://HOST:PORT`; each member's own configuration
    /// overrides it.
    pub url: String,
    /// Whether it stays a learner; see `satrap_ring_core::members`.
    pub learner: bool,
    /// The instance id of its disk. [`super::frames::ANY_INSTANCE`] until that is known, for data
    /// restored from a backup.
    pub instance: InstanceId,
    /// The index since when it belongs to the ring: above the index of every membership before the
    /// one that added it, and not above that one's. Zero if it founded the ring.
    pub since: u64,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// The origin of an entry and a canonically encoded `satrap_ring_core::Command`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(Bytes);

impl Payload {
    /// An entry for `command`; its waiting clients are registered under `origin`.
    #[must_use]
    pub fn new(origin: Origin, command: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(ORIGIN_BYTES + command.len());
        bytes.put_u64(origin.run);
        bytes.put_u64(origin.sequence);
        bytes.put_slice(command);
        Self(bytes.freeze())
    }

    /// Both parts; the command shares memory with the entry. `None` if the payload is cut short.
    #[must_use]
    pub fn open(&self) -> Option<(Origin, Bytes)> {
        let mut rest = self.0.clone();
        let (run, sequence) = (rest.try_get_u64().ok()?, rest.try_get_u64().ok()?);
        Some((Origin { run, sequence }, rest))
    }
}

const ORIGIN_BYTES: usize = 16;

/// The content of a log entry for the applied state. The command shares memory with the entry.
#[must_use]
pub fn state_entry(payload: &EntryPayload<Payload, MemberName, MemberNode>) -> StateEntry {
    match payload {
        EntryPayload::Blank => StateEntry::Blank,
        EntryPayload::Membership(membership) => {
            StateEntry::Members(membership.nodes().map(|(_, node)| node.id).collect())
        }
        EntryPayload::Normal(payload) => {
            let opened = payload.open().ok_or(DecodeError::Truncated);
            StateEntry::Command(opened.and_then(|(_, command)| Command::decode(&command)))
        }
    }
}

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

/// The result of applying an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The entry carried no command.
    Blank,
    /// An extension of the state moved to this version.
    Extension(u64),
    /// A batch for the keyspace was applied; its clients have been answered.
    Batch,
    /// The command was refused; nothing changed.
    Refused {
        /// The id of the rule.
        rule: String,
        /// The fault.
        why: String,
    },
}

/// An invalid record or message.
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

/// Decodes a record or message of openraft, with no bytes left over. Memory is bounded by the
/// input.
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
