//! The signatures that make a checkpoint certain.
//!
//! Wire form: round, a bitmap over the set in Tendermint order, and one signature per set bit. A
//! signer is named by its place, so it cannot be listed twice (xds-pki notes, attack 2), and every
//! signature present must verify, so a valid commit cannot be padded with garbage.

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    checkpoint::Checkpoint,
    genesis::Realm,
    keys::SignatureBytes,
    limits::VALIDATORS_MAX,
    rejection::Rejection,
    validators::ValidatorSet,
    vote::{VoteType, vote_bytes},
};

/// Precommits for one block of one round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The round that decided.
    pub round: u32,
    /// One place per validator, in set order.
    pub signatures: Vec<Option<SignatureBytes>>,
}

impl Commit {
    /// The bytes every signature covers.
    #[must_use]
    pub fn sign_bytes(&self, realm: &Realm, checkpoint: &Checkpoint) -> Vec<u8> {
        let value = (&checkpoint.id(realm), checkpoint.time);
        vote_bytes(realm, VoteType::Precommit, checkpoint.height, self.round, Some(value))
    }

    /// Checks that `set` certified `checkpoint` (rules C5 and C6).
    ///
    /// # Errors
    ///
    /// [`Rejection::Quorum`] or [`Rejection::Signature`].
    pub fn verify(
        &self,
        realm: &Realm,
        checkpoint: &Checkpoint,
        set: &ValidatorSet,
    ) -> Result<(), Rejection> {
        let signed = self.signed_power(set)?;
        let needed = set.quorum_power();
        if signed < needed {
            return Err(Rejection::Quorum { signed, needed, total: set.total_power() });
        }
        let bytes = self.sign_bytes(realm, checkpoint);
        for (index, (validator, signature)) in
            set.validators().iter().zip(&self.signatures).enumerate()
        {
            if signature.is_some_and(|s| !validator.public.verifies(&bytes, &s)) {
                return Err(Rejection::Signature { index, validator: validator.address() });
            }
        }
        Ok(())
    }

    /// The power that signed, by place; says nothing about the signatures.
    fn signed_power(&self, set: &ValidatorSet) -> Result<u64, Rejection> {
        if self.signatures.len() != set.len() {
            return Err(Rejection::CommitSize { places: self.signatures.len(), set: set.len() });
        }
        let signers = set.validators().iter().zip(&self.signatures);
        Ok(signers.filter(|(_, s)| s.is_some()).map(|(v, _)| v.power).sum())
    }

    /// How much power of `trusted` is among the signers of this commit, which `set` made.
    #[must_use]
    pub fn overlap_power(&self, set: &ValidatorSet, trusted: &ValidatorSet) -> u64 {
        let signers = set.addresses().iter().zip(&self.signatures);
        signers
            .filter(|(_, s)| s.is_some())
            .filter_map(|(address, _)| trusted.index_of(address))
            .map(|index| trusted.validators()[index].power)
            .sum()
    }
}

impl Canonical for Commit {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.round);
        w.count(self.signatures.len());
        for places in self.signatures.chunks(8) {
            let bit = |(i, s): (usize, &Option<_>)| u8::from(s.is_some()) << i;
            w.u8(places.iter().enumerate().map(bit).sum());
        }
        self.signatures.iter().flatten().for_each(|s| w.array(s));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let round = r.u32()?;
        if i32::try_from(round).is_err() {
            return Err(DecodeError::Invalid("round: must be below 2^31"));
        }
        let places = r.count(VALIDATORS_MAX)?;
        let mut bits = Vec::new();
        for _ in 0..places.div_ceil(8) {
            bits.push(r.u8()?);
        }
        if !places.is_multiple_of(8) && bits.last().is_some_and(|b| b >> (places % 8) != 0) {
            return Err(DecodeError::Invalid("signer bitmap: a bit beyond the set"));
        }
        let mut signatures = Vec::new();
        for i in 0..places {
            let signed = bits[i / 8] >> (i % 8) & 1 == 1;
            signatures.push(if signed { Some(r.array()?) } else { None });
        }
        Ok(Self { round, signatures })
    }
}
