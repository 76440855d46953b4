//! The set of validators whose signatures certify a checkpoint.
//!
//! The set holds only what its hash covers: keys and powers, in Tendermint's order. Names, URLs
//! and jurisdictions are in the governance state, under its own certified root; a set that came
//! from a peer can therefore not carry a name that is not certified.

use std::{collections::BTreeSet, sync::Arc};

use satrap_merkle::{
    Digest,
    codec::{Canonical, DecodeError, Reader, Writer},
};

use crate::{
    keys::{Address, PublicKey},
    limits::{TOTAL_POWER_MAX, VALIDATORS_MAX},
};

/// One vote in the global quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    /// The key its votes are signed with.
    pub public: PublicKey,
    /// Its voting power, at least 1.
    pub power: u64,
}

impl Validator {
    /// Address derived from the key.
    #[must_use]
    pub fn address(&self) -> Address {
        self.public.address()
    }

    /// As Tendermint's type.
    #[must_use]
    pub fn to_tendermint(&self) -> tendermint::validator::Info {
        let key = tendermint::PublicKey::from_raw_ed25519(&self.public.0)
            .expect("a set holds only keys that are curve points");
        let power = tendermint::vote::Power::try_from(self.power)
            .expect("powers are bounded below Tendermint's maximum");
        tendermint::validator::Info::new(key, power)
    }
}

impl Canonical for Validator {
    fn encode(&self, w: &mut Writer) {
        self.public.encode(w);
        w.u64(self.power);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { public: PublicKey::decode(r)?, power: r.u64()? })
    }
}

/// Why validators do not form a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// No validators, or too many.
    #[error("a set holds 1 to {VALIDATORS_MAX} validators, not {0}")]
    Size(usize),
    /// The same key twice would count twice.
    #[error("validator key {0} is listed twice")]
    Duplicate(PublicKey),
    /// A key no signature can verify under.
    #[error("validator key {0} is not a usable Ed25519 key")]
    Key(PublicKey),
    /// A power of zero, or a sum that is too large.
    #[error("powers must be at least 1 and sum to at most {TOTAL_POWER_MAX}")]
    Power,
}

/// Validators in Tendermint's order: power descending, then address ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatorSet(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    validators: Vec<Validator>,
    addresses: Vec<Address>,
    total_power: u64,
    hash: Digest,
}

impl ValidatorSet {
    /// Sorts and checks `validators`.
    ///
    /// # Errors
    ///
    /// [`SetError`].
    pub fn new(mut validators: Vec<Validator>) -> Result<Self, SetError> {
        if !(1..=VALIDATORS_MAX).contains(&validators.len()) {
            return Err(SetError::Size(validators.len()));
        }
        let mut seen = BTreeSet::new();
        let mut total_power = 0_u64;
        for v in &validators {
            if !seen.insert(v.public) {
                return Err(SetError::Duplicate(v.public));
            }
            if !v.public.is_usable() {
                return Err(SetError::Key(v.public));
            }
            total_power = total_power.saturating_add(v.power);
            if v.power == 0 || total_power > TOTAL_POWER_MAX {
                return Err(SetError::Power);
            }
        }
        validators.sort_by_cached_key(|v| (core::cmp::Reverse(v.power), v.address()));
        let addresses = validators.iter().map(Validator::address).collect();
        let hash = tendermint_set(&validators).hash();
        let hash = hash.as_bytes().try_into().expect("SHA-256 has 32 bytes");
        Ok(Self(Arc::new(Inner { validators, addresses, total_power, hash })))
    }

    /// The validators in order.
    #[must_use]
    pub fn validators(&self) -> &[Validator] {
        &self.0.validators
    }

    /// How many there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.0.validators.len()
    }

    /// The place of `address` in the order.
    #[must_use]
    pub fn index_of(&self, address: &Address) -> Option<usize> {
        self.0.addresses.iter().position(|a| a == address)
    }

    /// Addresses in order.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.0.addresses
    }

    /// The sum of all powers.
    #[must_use]
    pub fn total_power(&self) -> u64 {
        self.0.total_power
    }

    /// The least power that certifies: more than two thirds of the total.
    #[must_use]
    pub fn quorum_power(&self) -> u64 {
        self.0.total_power * 2 / 3 + 1
    }

    /// The least power that must have signed a skipped-to checkpoint for this set to vouch for
    /// it: more than one third, so at least one honest validator.
    #[must_use]
    pub fn vouching_power(&self) -> u64 {
        self.0.total_power / 3 + 1
    }

    /// Tendermint's `validators_hash`.
    #[must_use]
    pub fn hash(&self) -> Digest {
        self.0.hash
    }

    /// As Tendermint's type, with `proposer` set (Go refuses a set without one).
    #[must_use]
    pub fn to_tendermint(&self, proposer: &Address) -> tendermint::validator::Set {
        let set = tendermint_set(&self.0.validators);
        let infos = set.validators().clone();
        let proposer = self.index_of(proposer).map(|i| infos[i].clone());
        tendermint::validator::Set::new(infos, proposer)
    }
}

fn tendermint_set(validators: &[Validator]) -> tendermint::validator::Set {
    let infos = validators.iter().map(Validator::to_tendermint).collect();
    tendermint::validator::Set::without_proposer(infos)
}

impl Canonical for ValidatorSet {
    fn encode(&self, w: &mut Writer) {
        w.list(&self.0.validators);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let validators = r.list(VALIDATORS_MAX)?;
        let set =
            Self::new(validators.clone()).map_err(|_| DecodeError::Invalid("validator set"))?;
        // One set, one encoding (E1).
        if set.validators() != validators {
            return Err(DecodeError::Invalid("validator order"));
        }
        Ok(set)
    }
}
