//! The bytes that validators sign, the place of each message in the guard's order, and verification.
//!
//! The bytes come from `satrap_certify::vote`, so a precommit here is a precommit to every
//! Tendermint light client. Verification is strict; light clients verify by the laxer ZIP-215, so
//! they accept whatever passes here.

use arc_malachitebft_core_consensus::{ConsensusMsg, SignedConsensusMsg};
use arc_malachitebft_core_types::{
    NilOrVal, Round, SignedMessage, ValidatorProof, VoteExtensionScope, VoteType,
};
use arc_malachitebft_signing::{Error, VerificationResult, Verifier};
use async_trait::async_trait;
use satrap_certify::vote::{proposal_bytes, vote_bytes};
use satrap_certify::{PublicKey, Realm, SignatureBytes, vote};

use super::context::{Ctx, Height, Proposal, SignedProposal, SignedVote, Vote, Voter};
use crate::guard::{Place, Step};

/// The signature of a placeholder, which verifies under no key.
pub const UNSIGNED: SignatureBytes = [0; 64];

/// The message that the core is handed for one whose signature does not exist yet, or never will: of
/// height 0, which is over, so the core drops it and goes on as if the vote were still on its way.
pub(super) fn stand_in_vote(vote: Vote) -> SignedVote {
    SignedMessage::new(Vote { height: Height(0), ..vote }, UNSIGNED)
}

/// The same for a proposal.
pub(super) fn stand_in_proposal(proposal: Proposal) -> SignedProposal {
    SignedMessage::new(Proposal { height: Height(0), ..proposal }, UNSIGNED)
}

fn number(round: Round) -> u32 {
    round.as_u32().expect("votes and proposals have a round; decoders refuse others")
}

/// The bytes a vote signs.
#[must_use]
pub fn bytes_of_vote(realm: &Realm, vote: &Vote) -> Vec<u8> {
    let vote_type = match vote.vote_type {
        VoteType::Prevote => vote::VoteType::Prevote,
        VoteType::Precommit => vote::VoteType::Precommit,
    };
    let value = match &vote.value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some((&id.block, id.time)),
    };
    vote_bytes(realm, vote_type, vote.height.0, number(vote.round), value)
}

/// The bytes a proposal signs.
#[must_use]
pub fn bytes_of_proposal(realm: &Realm, proposal: &Proposal) -> Vec<u8> {
    let id = proposal.value.value_id();
    let (round, pol) = (number(proposal.round), proposal.pol_round.as_u32());
    proposal_bytes(realm, proposal.height.0, round, pol, &id.block, id.time)
}

/// The place of a vote in the guard's order.
#[must_use]
pub fn place_of_vote(vote: &Vote) -> Place {
    let step = match vote.vote_type {
        VoteType::Prevote => Step::Prevote,
        VoteType::Precommit => Step::Precommit,
    };
    Place { height: vote.height.0, round: number(vote.round), step }
}

/// The place of a proposal in the guard's order.
#[must_use]
pub fn place_of_proposal(proposal: &Proposal) -> Place {
    Place { height: proposal.height.0, round: number(proposal.round), step: Step::Propose }
}

/// The bytes that a message signs.
pub(super) fn bytes_of(realm: &Realm, message: &ConsensusMsg<Ctx>) -> Vec<u8> {
    match message {
        ConsensusMsg::Vote(vote) => bytes_of_vote(realm, vote),
        ConsensusMsg::Proposal(proposal) => bytes_of_proposal(realm, proposal),
    }
}

/// The place of a message in the guard's order.
pub(super) fn place_of(message: &ConsensusMsg<Ctx>) -> Place {
    match message {
        ConsensusMsg::Vote(vote) => place_of_vote(vote),
        ConsensusMsg::Proposal(proposal) => place_of_proposal(proposal),
    }
}

/// The validator in whose name a message is.
pub(super) fn author_of(message: &ConsensusMsg<Ctx>) -> Voter {
    match message {
        ConsensusMsg::Vote(vote) => vote.voter,
        ConsensusMsg::Proposal(proposal) => proposal.proposer,
    }
}

/// `message` with its signature.
pub(super) fn signed(
    message: ConsensusMsg<Ctx>,
    signature: SignatureBytes,
) -> SignedConsensusMsg<Ctx> {
    match message {
        ConsensusMsg::Vote(vote) => SignedConsensusMsg::Vote(SignedMessage::new(vote, signature)),
        ConsensusMsg::Proposal(proposal) => {
            SignedConsensusMsg::Proposal(SignedMessage::new(proposal, signature))
        }
    }
}

/// The two parts that [`signed`] joins.
pub(super) fn parts(message: SignedConsensusMsg<Ctx>) -> (ConsensusMsg<Ctx>, SignatureBytes) {
    match message {
        SignedConsensusMsg::Vote(vote) => (ConsensusMsg::Vote(vote.message), vote.signature),
        SignedConsensusMsg::Proposal(proposal) => {
            (ConsensusMsg::Proposal(proposal.message), proposal.signature)
        }
    }
}

/// Verifies the certificates that the core asks about, in one realm.
pub struct RealmVerifier(pub Realm);

#[async_trait]
impl Verifier<Ctx> for RealmVerifier {
    async fn verify_signed_vote(
        &self,
        vote: &Vote,
        signature: &SignatureBytes,
        public_key: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        let valid = public_key.verifies(&bytes_of_vote(&self.0, vote), signature);
        Ok(VerificationResult::from_bool(valid))
    }

    async fn verify_signed_proposal(
        &self,
        proposal: &Proposal,
        signature: &SignatureBytes,
        public_key: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        let valid = public_key.verifies(&bytes_of_proposal(&self.0, proposal), signature);
        Ok(VerificationResult::from_bool(valid))
    }

    async fn verify_signed_vote_extension(
        &self,
        _: &VoteExtensionScope<Ctx>,
        (): &(),
        _: &SignatureBytes,
        _: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        // Extensions are disabled at every height.
        Ok(VerificationResult::Invalid)
    }

    async fn verify_validator_proof(
        &self,
        _: &ValidatorProof<Ctx>,
    ) -> Result<VerificationResult, Error> {
        // Peers prove who they are by mTLS.
        Ok(VerificationResult::Invalid)
    }
}
