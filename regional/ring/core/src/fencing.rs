//! Fenced roles: one holder at a time, and a fencing token that lets a resource refuse a former holder.
//!
//! A lease assures its holder that it is the only one, but a holder that was paused learns too late
//! that its lease ended (Jepsen on etcd 3.4.3: locks without tokens do not exclude). So a grant of
//! a role carries a token that is larger than every earlier token of that role, and the resource
//! that the role protects refuses a token smaller than the largest it has seen. The guard library
//! does that; a lock without tokens only saves work, and correctness must not depend on it.
//!
//! ```text
//!           grant (token n)                    grant (token n+1)
//!   Free ───────────────────▶ Held by a lease ──────X  RoleHeld
//!    ▲                               │ release, revoke, expiry
//!    └───────────────────────────────┘   the role keeps its newest token
//! ```
//!
//! # Invariants
//!
//! - **LEASE-4** The tokens granted for one role strictly increase, forever: a role that lost its holder
//!   keeps its counter, and a recovery begins an epoch above all tokens that may have been lost.
//! - **LEASE-5** A role has at most one holder, and a holder has a live lease.

use std::collections::BTreeMap;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{
    fencing_token::FencingToken,
    kv::request::LeaseId,
    limits,
    refusal::Refusal,
    table::{Row, Table, spread},
};

/// Requests a role under a new lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRole {
    /// The role. A user that may write the key of this name may take the role, and only such a user may end or
    /// renew its lease, or attach keys to it.
    pub role: String,
    /// The holder's name, which other candidates see.
    pub holder: String,
    /// Seconds the role is held unless its lease is renewed; bounded as for leases.
    pub ttl_s: i64,
    /// Id of the lease, chosen by the API.
    pub lease: LeaseId,
}

/// Releases a role and ends its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRole {
    /// The role.
    pub role: String,
    /// The token of the grant; a former holder cannot release the current grant.
    pub token: FencingToken,
}

/// The holder of a role, and its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The holder's name in the grant.
    pub holder: String,
    /// Its lease, which is live (LEASE-5).
    pub lease: LeaseId,
}

/// One role, as the state stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencedRole {
    /// The newest token granted.
    pub token: FencingToken,
    /// Its holder, unless it is free.
    pub held: Option<Held>,
}

/// All roles that ever had a holder.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    pub(crate) rows: Table<FencedRole>,
    /// Derived: the role that each lease holds; at most one, because each grant creates its own
    /// lease.
    by_lease: BTreeMap<LeaseId, String>,
}

impl Roles {
    /// The role of this name; `None` if it never had a holder.
    #[must_use]
    pub fn get(&self, role: &str) -> Option<&FencedRole> {
        self.rows.get(&role.to_owned())
    }

    /// The role that a lease holds.
    pub(crate) fn role_of(&self, lease: LeaseId) -> Option<&str> {
        self.by_lease.get(&lease).map(String::as_str)
    }

    /// The token of the next grant.
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

    /// Frees the role of a lease that ended (LEASE-5); the role's counter stays (LEASE-4).
    pub(crate) fn lease_ended(&mut self, lease: LeaseId) {
        if let Some(role) = self.by_lease.remove(&lease) {
            let token = self.get(&role).map_or(FencingToken::default(), |role| role.token);
            self.rows.insert(role, FencedRole { token, held: None });
        }
    }

    /// Rebuilds the derived fields.
    pub(crate) fn rebuild(&mut self) {
        let held = |(role, row): (&String, &FencedRole)| {
            row.held.as_ref().map(|held| (held.lease, role.clone()))
        };
        self.by_lease = self.rows.iter().filter_map(held).collect();
    }

    /// Every lease that holds a role, for the check of a restored state.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.by_lease.keys().copied()
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
