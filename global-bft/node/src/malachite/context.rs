//! The types that the consensus core is generic over.
//!
//! A value is a block; its id is the Tendermint block id plus the block's time, so that the bytes
//! of a vote can be rebuilt from the vote alone. No vote carries a timestamp of its own: a vote
//! derived again after a crash must equal the recorded one in every byte.
//!
//! # The proposer
//!
//! The proposer of the last decided block proposes the next (the quickest leader stays), the next
//! in set order leads after each failed round, and every `rotation_heights` heights leadership
//! moves on by one, so that no leader can censor for long. This is a pure function of agreed data:
//! the core asserts that all messages of a round name one proposer.

use core::fmt;
use std::sync::Arc;

use arc_malachitebft_core_types as core_types;
use core_types::{LinearTimeouts, NilOrVal, Round, SignedExtension, VoteType};
use satrap_certify::{Address, Block, BlockId, PublicKey, Realm, SignatureBytes, Timestamp};
use satrap_merkle::codec::DecodeError;

/// A vote with its signature.
pub type SignedVote = core_types::SignedVote<Ctx>;
/// A proposal with its signature.
pub type SignedProposal = core_types::SignedProposal<Ctx>;
/// Two thirds of the prevotes of a round for one value.
pub type PolkaCertificate = core_types::PolkaCertificate<Ctx>;
/// Votes that justify entering a round.
pub type RoundCertificate = core_types::RoundCertificate<Ctx>;
/// Two thirds of the precommits of a round for one value.
pub type CommitCertificate = core_types::CommitCertificate<Ctx>;

/// The instantiation of the core for Satrap.
#[derive(Clone, Debug)]
pub struct Ctx;

/// Height of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Height(pub u64);

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core_types::Height for Height {
    const ZERO: Self = Self(0);
    const INITIAL: Self = Self(1);

    fn increment_by(&self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }

    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(Self)
    }

    fn as_u64(&self) -> u64 {
        self.0
    }
}

/// Address of a validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter(pub Address);

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core_types::Address for Voter {}

/// Names a block and its time; the time is redundant, since the hash covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId {
    /// Tendermint block id.
    pub block: BlockId,
    /// Time in the header; every vote for the block is stamped with it.
    pub time: Timestamp,
}

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.block.hash[..8]))
    }
}

/// A block under its id, which is always computed here and never read from the wire.
#[derive(Clone, Debug)]
pub struct Value(Arc<(ValueId, Block)>);

impl Value {
    /// Names `block`. Its payload must be the one its header names: two blocks with one id and
    /// different payloads would let a proposer show each validator another block.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Invalid`] if it is not.
    pub fn new(realm: &Realm, block: Block) -> Result<Self, DecodeError> {
        if Block::data_hash(&block.changes) != block.checkpoint.data_hash {
            return Err(DecodeError::Invalid("block: the payload is not the one its header names"));
        }
        let id = ValueId { block: block.checkpoint.id(realm), time: block.checkpoint.time };
        Ok(Self(Arc::new((id, block))))
    }

    /// The id.
    #[must_use]
    pub fn value_id(&self) -> ValueId {
        self.0.0
    }

    /// The block.
    #[must_use]
    pub fn block(&self) -> &Block {
        &self.0.1
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.value_id() == other.value_id()
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.value_id().cmp(&other.value_id())
    }
}

impl core_types::Value for Value {
    type Id = ValueId;

    fn id(&self) -> ValueId {
        self.value_id()
    }
}

/// A prevote or precommit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Which of the two.
    pub vote_type: VoteType,
    /// Height.
    pub height: Height,
    /// Round.
    pub round: Round,
    /// For which block, or for none.
    pub value: NilOrVal<ValueId>,
    /// The validator that casts it.
    pub voter: Voter,
}

impl core_types::Vote<Ctx> for Vote {
    fn height(&self) -> Height {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &NilOrVal<ValueId> {
        &self.value
    }

    fn take_value(self) -> NilOrVal<ValueId> {
        self.value
    }

    fn vote_type(&self) -> VoteType {
        self.vote_type
    }

    fn validator_address(&self) -> &Voter {
        &self.voter
    }

    fn extension(&self) -> Option<&SignedExtension<Ctx>> {
        None
    }

    fn take_extension(&mut self) -> Option<SignedExtension<Ctx>> {
        None
    }

    fn extend(self, _: SignedExtension<Ctx>) -> Self {
        // Extensions are disabled at every height; no message of this realm has a place for one.
        self
    }
}

/// A proposed block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Height.
    pub height: Height,
    /// Round.
    pub round: Round,
    /// The round in which this block already had a polka.
    pub pol_round: Round,
    /// The block.
    pub value: Value,
    /// The validator that casts it.
    pub proposer: Voter,
}

impl core_types::Proposal<Ctx> for Proposal {
    fn height(&self) -> Height {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &Value {
        &self.value
    }

    fn take_value(self) -> Value {
        self.value
    }

    fn pol_round(&self) -> Round {
        self.pol_round
    }

    fn validator_address(&self) -> &Voter {
        &self.proposer
    }
}

/// A proposal carries its block whole, so there are no parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPart {}

impl core_types::ProposalPart<Ctx> for NoPart {
    fn is_first(&self) -> bool {
        match *self {}
    }

    fn is_last(&self) -> bool {
        match *self {}
    }
}

/// Key and power of one validator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    voter: Voter,
    public: PublicKey,
    power: u64,
}

impl core_types::Validator<Ctx> for Member {
    fn address(&self) -> &Voter {
        &self.voter
    }

    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn voting_power(&self) -> u64 {
        self.power
    }
}

/// The validators of one height, and who leads its first round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Electorate {
    members: Arc<[Member]>,
    total_power: u64,
    leader: usize,
}

impl Electorate {
    /// The set of `height`, after a block that `last_proposer` proposed (`None` at height 1).
    #[must_use]
    pub fn new(
        set: &satrap_certify::ValidatorSet,
        height: u64,
        last_proposer: Option<&Address>,
        rotation_heights: u64,
    ) -> Self {
        let members = set.validators().iter().map(|v| Member {
            voter: Voter(v.address()),
            public: v.public,
            power: v.power,
        });
        let ranks = set.len() as u64;
        let leader = match last_proposer.and_then(|address| set.index_of(address)) {
            Some(index) => index as u64 + u64::from(height.is_multiple_of(rotation_heights)),
            // The last leader has left the set.
            None => height / rotation_heights,
        };
        let leader = usize::try_from(leader % ranks).expect("a rank in the set");
        Self { members: members.collect(), total_power: set.total_power(), leader }
    }

    /// The validator that proposes in `round`.
    #[must_use]
    pub fn proposer(&self, round: Round) -> &Member {
        let failed = round.as_u32().unwrap_or(0) as usize % self.members.len();
        &self.members[(self.leader + failed) % self.members.len()]
    }

    /// The member with `address`.
    #[must_use]
    pub fn member(&self, address: &Voter) -> Option<&Member> {
        self.members.iter().find(|m| m.voter == *address)
    }
}

impl core_types::ValidatorSet<Ctx> for Electorate {
    fn count(&self) -> usize {
        self.members.len()
    }

    fn total_voting_power(&self) -> u64 {
        self.total_power
    }

    fn get_by_address(&self, address: &Voter) -> Option<&Member> {
        self.member(address)
    }

    fn get_by_index(&self, index: usize) -> Option<&Member> {
        self.members.get(index)
    }
}

/// Ed25519 as the core sees it: opaque keys and 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ed25519;

impl core_types::SigningScheme for Ed25519 {
    type DecodingError = &'static str;
    type Signature = SignatureBytes;
    type PublicKey = PublicKey;
    // The core never signs; it asks the host to.
    type PrivateKey = ();

    fn decode_signature(bytes: &[u8]) -> Result<SignatureBytes, &'static str> {
        bytes.try_into().map_err(|_| "a signature has 64 bytes")
    }

    fn encode_signature(signature: &SignatureBytes) -> Vec<u8> {
        signature.to_vec()
    }

    fn decode_public_key(bytes: &[u8]) -> Result<PublicKey, &'static str> {
        bytes.try_into().map(PublicKey).map_err(|_| "a public key has 32 bytes")
    }

    fn encode_public_key(public_key: &PublicKey) -> Vec<u8> {
        public_key.0.to_vec()
    }
}

impl core_types::Context for Ctx {
    type Address = Voter;
    type Height = Height;
    type ProposalPart = NoPart;
    type Proposal = Proposal;
    type Validator = Member;
    type ValidatorSet = Electorate;
    type Timeouts = LinearTimeouts;
    type Value = Value;
    type Vote = Vote;
    type Extension = ();
    type SigningScheme = Ed25519;

    fn select_proposer<'a>(&self, set: &'a Electorate, _: Height, round: Round) -> &'a Member {
        set.proposer(round)
    }

    fn new_proposal(
        &self,
        height: Height,
        round: Round,
        value: Value,
        pol_round: Round,
        proposer: Voter,
    ) -> Proposal {
        Proposal { height, round, pol_round, value, proposer }
    }

    fn new_prevote(
        &self,
        height: Height,
        round: Round,
        value: NilOrVal<ValueId>,
        voter: Voter,
    ) -> Vote {
        Vote { vote_type: VoteType::Prevote, height, round, value, voter }
    }

    fn new_precommit(
        &self,
        height: Height,
        round: Round,
        value: NilOrVal<ValueId>,
        voter: Voter,
    ) -> Vote {
        Vote { vote_type: VoteType::Precommit, height, round, value, voter }
    }
}

#[cfg(test)]
mod tests {
    use core_types::Validator as _;
    use ed25519_dalek::SigningKey;
    use satrap_certify::{Validator, ValidatorSet};

    use super::*;

    fn set(n: u8) -> ValidatorSet {
        let validator = |i: u8| Validator {
            public: PublicKey::of(&SigningKey::from_bytes(&[i; 32])),
            power: 1,
        };
        ValidatorSet::new((1..=n).map(validator).collect()).unwrap()
    }

    fn leader(set: &ValidatorSet, height: u64, last: Option<&Address>, round: u32) -> Address {
        Electorate::new(set, height, last, 100).proposer(Round::new(round)).address().0
    }

    #[test]
    fn the_last_proposer_leads_until_a_round_fails_or_its_turn_ends() {
        let set = set(4);
        let a = set.addresses();
        assert_eq!(leader(&set, 1, None, 0), a[0]);
        assert_eq!(leader(&set, 7, Some(&a[2]), 0), a[2], "a good leader stays");
        assert_eq!(leader(&set, 7, Some(&a[2]), 1), a[3], "a failed round passes it on");
        assert_eq!(leader(&set, 7, Some(&a[2]), 2), a[0]);
        assert_eq!(leader(&set, 100, Some(&a[3]), 0), a[0], "rotation");
        let gone = Address([7; 20]);
        assert_eq!(leader(&set, 350, Some(&gone), 0), a[3], "a leader that left the set");
        assert_eq!(leader(&set, 7, Some(&a[0]), u32::MAX), a[3], "no overflow");
    }
}
