//! What validators sign, how it is verified, and how this one signs.
//!
//! The bytes come from `satrap_certify::vote`, so a precommit here is a precommit to every
//! Tendermint light client. Verification is strict; light clients verify by the laxer ZIP-215, so
//! they accept whatever passes here.

use arc_malachitebft_core_types::{NilOrVal, Round, ValidatorProof, VoteExtensionScope, VoteType};
use arc_malachitebft_signing::{Error, VerificationResult, Verifier};
use async_trait::async_trait;
use ed25519_dalek::SigningKey;
use satrap_certify::vote::{proposal_bytes, vote_bytes};
use satrap_certify::{PublicKey, Realm, SignatureBytes, keys, vote};

use super::context::{Ctx, Proposal, Vote};
use crate::guard::{Place, Step};

/// In place of a signature the guard refused to make. It verifies under no key, so the core drops
/// the message, and the host never sends it.
pub const ABSTAIN: SignatureBytes = [0; 64];

/// Holds the signing key of this validator.
pub trait Signer: Send {
    /// The public half.
    fn public(&self) -> PublicKey;

    /// Signs `bytes`.
    ///
    /// # Errors
    ///
    /// If the key cannot be used now; the process must stop.
    fn sign(&mut self, bytes: &[u8]) -> Result<SignatureBytes, String>;
}

/// A key in this process's memory.
pub struct SoftSigner(SigningKey);

impl SoftSigner {
    /// Signs with `key`.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        Self(key)
    }
}

impl Signer for SoftSigner {
    fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&mut self, bytes: &[u8]) -> Result<SignatureBytes, String> {
        Ok(keys::sign(&self.0, bytes))
    }
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

/// Where a vote stands in the guard's order.
#[must_use]
pub fn place_of_vote(vote: &Vote) -> Place {
    let step = match vote.vote_type {
        VoteType::Prevote => Step::Prevote,
        VoteType::Precommit => Step::Precommit,
    };
    Place { height: vote.height.0, round: number(vote.round), step }
}

/// Where a proposal stands in the guard's order.
#[must_use]
pub fn place_of_proposal(proposal: &Proposal) -> Place {
    Place { height: proposal.height.0, round: number(proposal.round), step: Step::Propose }
}

/// Verifies what the core asks about, in one realm.
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
