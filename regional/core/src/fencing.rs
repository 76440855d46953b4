//! Who holds a role, and the token that proves it to whoever must not obey a former holder.
//!
//! A lease tells its holder that it is the only one, but a holder that was paused learns too late
//! that it no longer is (Jepsen on etcd 3.4.3: locks without tokens do not exclude). So a role is
//! granted with a token that is larger than every token of that role before, and the resource that
//! the role protects refuses a token smaller than the largest it has seen. The guard library does
//! that; a lock without tokens is a [`LockKind::Hint`], and the API says so in its types.
//!
//! ```text
//!           grant (token n)                    grant (token n+1)
//!   Free ───────────────────▶ Held by a lease ──────X  RoleHeld
//!    ▲                               │ release, revoke, expiry
//!    └───────────────────────────────┘   the token stays remembered
//! ```
//!
//! # Invariants
//!
//! - **L4** The tokens granted for one role strictly increase, forever: a role that lost its holder
//!   keeps its counter, and a recovery begins an epoch above all tokens that may have been lost.
//! - **L5** A role has at most one holder, and a holder has a live lease.
//!
//! # Tokens
//!
//! A token is one number of 64 bits: 32 of *epoch*, 32 of counter (001-30), so that resources can
//! compare and store it as an integer. The upper 24 bits of the epoch are the keyspace's recovery
//! epoch, the lower 8 count how often this role's counter overflowed. An overflow therefore never
//! reaches the range of a later recovery, and a role that used all 2^40 tokens between two
//! recoveries refuses rather than repeats one.

use core::fmt;
use std::collections::BTreeMap;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    kv::request::LeaseId,
    limits,
    refusal::Refusal,
    table::{Row, Table, spread},
};

/// Bits of a token's epoch that count overflows of its counter.
const OVERFLOW_BITS: u32 = 8;
/// Recovery epochs that fit a token.
pub const RECOVERY_EPOCH_MAX: u32 = (1 << (32 - OVERFLOW_BITS)) - 1;

/// Proof of having been granted a role; larger means later. Zero is never granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken {
    /// Recovery epoch and overflows, see the module.
    pub epoch: u32,
    /// Grants within that epoch.
    pub counter: u32,
}

impl FencingToken {
    /// The token as one number, in the same order.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.counter)
    }

    /// The token of a number.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a u64")]
    pub fn from_u64(number: u64) -> Self {
        Self { epoch: (number >> 32) as u32, counter: number as u32 }
    }

    /// The next of a role, in the keyspace's `recovery_epoch` (L4).
    fn next(self, recovery_epoch: u32) -> Option<Self> {
        let first = recovery_epoch << OVERFLOW_BITS;
        if self.epoch < first {
            return Some(Self { epoch: first, counter: 1 });
        }
        if let Some(counter) = self.counter.checked_add(1) {
            return Some(Self { epoch: self.epoch, counter });
        }
        let last = first | ((1 << OVERFLOW_BITS) - 1);
        (self.epoch < last).then(|| Self { epoch: self.epoch + 1, counter: 1 })
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

/// What a lock promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// It comes with a token that the protected resource checks.
    Fenced,
    /// It usually excludes others, and saves work when it does. Correctness must not rest on it.
    Hint,
}

/// Asks for a role under a new lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRole {
    /// Which role. Whoever may write the key of this name may take it.
    pub role: String,
    /// Shown to whoever asks for the role meanwhile.
    pub holder: String,
    /// Seconds the role is held unless its lease is renewed; bounds as for leases.
    pub ttl_s: i64,
    /// Id of the lease, chosen by the rim.
    pub lease: LeaseId,
}

/// Gives a role back; its lease ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRole {
    /// Which role.
    pub role: String,
    /// What the grant answered; a former holder cannot release the present one.
    pub token: FencingToken,
}

/// Who holds a role, and by which lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// As the grant named them.
    pub holder: String,
    /// A live lease (L5).
    pub lease: LeaseId,
}

/// What the ring remembers of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencedRole {
    /// The newest token granted.
    pub token: FencingToken,
    /// Who holds it, unless it is free.
    pub held: Option<Held>,
}

/// All roles that ever had a holder.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    pub(crate) rows: Table<FencedRole>,
    /// Derived: which role a lease keeps. A lease keeps at most one, for each grant makes its own.
    by_lease: BTreeMap<LeaseId, String>,
}

impl Roles {
    /// What is known of a role; nothing if it never had a holder.
    #[must_use]
    pub fn get(&self, role: &str) -> Option<&FencedRole> {
        self.rows.get(&role.to_owned())
    }

    /// The token that a grant would give.
    pub(crate) fn next_token(
        &self,
        role: &str,
        recovery_epoch: u32,
    ) -> Result<FencingToken, Refusal> {
        let known = self.get(role);
        if known.is_none() && self.rows.len() >= limits::FENCED_ROLES_MAX {
            return Err(Refusal::Full("fenced roles"));
        }
        let last = known.map_or(FencingToken::default(), |role| role.token);
        last.next(recovery_epoch).ok_or(Refusal::TokensExhausted)
    }

    /// Records a grant whose lease was just created.
    pub(crate) fn hold(&mut self, grant: &GrantRole, token: FencingToken) {
        let held = Held { holder: grant.holder.clone(), lease: grant.lease };
        self.by_lease.insert(grant.lease, grant.role.clone());
        self.rows.insert(grant.role.clone(), FencedRole { token, held: Some(held) });
    }

    /// The lease that a release must end.
    pub(crate) fn lease_of(&self, release: &ReleaseRole) -> Result<LeaseId, Refusal> {
        match self.get(&release.role) {
            Some(FencedRole { token, held: Some(held) }) if *token == release.token => {
                Ok(held.lease)
            }
            known => Err(Refusal::StaleToken {
                current: known.map_or(FencingToken::default(), |role| role.token),
            }),
        }
    }

    /// A lease ended; the role it kept is free (L5) and its counter stays (L4).
    pub(crate) fn lease_ended(&mut self, lease: LeaseId) {
        if let Some(role) = self.by_lease.remove(&lease) {
            let token = self.get(&role).map_or(FencingToken::default(), |role| role.token);
            self.rows.insert(role, FencedRole { token, held: None });
        }
    }

    /// Rebuilds what is derived.
    pub(crate) fn rebuild(&mut self) {
        let held = |(role, row): (&String, &FencedRole)| {
            row.held.as_ref().map(|held| (held.lease, role.clone()))
        };
        self.by_lease = self.rows.iter().filter_map(held).collect();
    }

    /// Every lease that keeps a role, with that role; for the check of a restored state.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.by_lease.keys().copied()
    }
}

impl Canonical for FencingToken {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.to_u64());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self::from_u64(r.u64()?))
    }
}

impl Canonical for GrantRole {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.role.as_bytes());
        w.bytes(self.holder.as_bytes());
        w.u64(self.ttl_s.cast_unsigned());
        w.u64(self.lease.cast_unsigned());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            role: r.text(limits::NAME_BYTES_MAX)?.to_owned(),
            holder: r.text(limits::NAME_BYTES_MAX)?.to_owned(),
            ttl_s: r.u64()?.cast_signed(),
            lease: r.u64()?.cast_signed(),
        })
    }
}

impl Canonical for ReleaseRole {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.role.as_bytes());
        self.token.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let role = r.text(limits::NAME_BYTES_MAX)?.to_owned();
        Ok(Self { role, token: FencingToken::decode(r)? })
    }
}

impl Canonical for Held {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.holder.as_bytes());
        w.u64(self.lease.cast_unsigned());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let holder = r.text(limits::NAME_BYTES_MAX)?.to_owned();
        Ok(Self { holder, lease: r.u64()?.cast_signed() })
    }
}

impl Canonical for FencedRole {
    fn encode(&self, w: &mut Writer) {
        self.token.encode(w);
        w.option(self.held.as_ref());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { token: FencingToken::decode(r)?, held: r.option()? })
    }
}

impl Row for FencedRole {
    type Key = String;
    const NAME: &'static str = "roles";
    const SHARDS: u16 = 64;

    fn shard(role: &String) -> u16 {
        let sum = |hash: u64, byte: &u8| hash.wrapping_mul(0x100_0000_01B3) ^ u64::from(*byte);
        spread(role.as_bytes().iter().fold(0xCBF2_9CE4_8422_2325, sum), Self::SHARDS)
    }

    fn encode_key(key: &String, w: &mut Writer) {
        w.bytes(key.as_bytes());
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<String, DecodeError> {
        Ok(r.text(limits::NAME_BYTES_MAX)?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_orders_as_its_number_does_and_overflows_upwards_001_30() {
        let last = FencingToken { epoch: 7 << 8, counter: u32::MAX };
        let next = last.next(7).unwrap();
        assert_eq!(next, FencingToken { epoch: (7 << 8) + 1, counter: 1 });
        assert!(next > last && next.to_u64() > last.to_u64());
        assert_eq!(FencingToken::from_u64(next.to_u64()), next);
        // The next recovery begins above every overflow of this one, and the last is refused.
        let exhausted = FencingToken { epoch: (7 << 8) + 255, counter: u32::MAX };
        assert_eq!(exhausted.next(7), None);
        assert_eq!(exhausted.next(8), Some(FencingToken { epoch: 8 << 8, counter: 1 }));
        assert!(exhausted.next(8).unwrap() > exhausted);
    }
}
