//! The exact bytes a validator signs: Tendermint's canonical vote and proposal.
//!
//! Every vote for a block is stamped with the block's own time, not with the voter's clock. All
//! precommits for one block then sign the same bytes, a vote signed again after a crash is the
//! same vote, and a certificate needs no timestamps. Votes for nil are stamped with the epoch.

use tendermint::{
    Proposal, Vote, account,
    block::{Height, Round},
    proposal, vote,
};

use crate::{checkpoint::BlockId, genesis::Realm, timestamp::Timestamp};

/// The two votes of a Tendermint round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VoteType {
    /// First vote.
    Prevote,
    /// Second vote; two thirds of these decide.
    Precommit,
}

fn height_of(height: u64) -> Height {
    Height::try_from(height).expect("decoding bounds heights below 2^63")
}

fn round_of(round: u32) -> Round {
    Round::try_from(round).expect("decoding bounds rounds below 2^31")
}

/// The bytes of a vote for `value` (a block and its time), or for nil.
///
/// # Panics
///
/// If `height` is 2^63 or more, or `round` 2^31 or more; decoders refuse both.
#[must_use]
pub fn vote_bytes(
    realm: &Realm,
    vote_type: VoteType,
    height: u64,
    round: u32,
    value: Option<(&BlockId, Timestamp)>,
) -> Vec<u8> {
    let vote_type = match vote_type {
        VoteType::Prevote => vote::Type::Prevote,
        VoteType::Precommit => vote::Type::Precommit,
    };
    let time = value.map_or(Timestamp(0), |(_, time)| time);
    let vote = Vote {
        vote_type,
        height: height_of(height),
        round: round_of(round),
        block_id: value.map(|(id, _)| id.to_tendermint()),
        timestamp: Some(time.to_tendermint()),
        // The rest is not part of the canonical vote.
        validator_address: account::Id::new([0; 20]),
        validator_index: vote::ValidatorIndex::try_from(0).expect("zero is an index"),
        signature: None,
        extension: Vec::new(),
        extension_signature: None,
    };
    vote.into_signable_vec(realm.tendermint_chain_id().clone())
}

/// The bytes of a proposal of a block, re-proposed from `pol_round` if that is given.
///
/// # Panics
///
/// As [`vote_bytes`].
#[must_use]
pub fn proposal_bytes(
    realm: &Realm,
    height: u64,
    round: u32,
    pol_round: Option<u32>,
    id: &BlockId,
    time: Timestamp,
) -> Vec<u8> {
    let proposal = Proposal {
        msg_type: proposal::Type::Proposal,
        height: height_of(height),
        round: round_of(round),
        pol_round: pol_round.map(round_of),
        block_id: Some(id.to_tendermint()),
        timestamp: Some(time.to_tendermint()),
        signature: None,
    };
    proposal.into_signable_vec(realm.tendermint_chain_id().clone())
}
