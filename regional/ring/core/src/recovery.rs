//! Recovery records: the state keeps one for each cut of its history.
//!
//! A restore from a snapshot and a forced recovery after the loss of a quorum both lose writes that
//! clients saw acknowledged. Nothing can undo that, but clients and operators must learn of it. So
//! each begins a new *epoch*: fencing tokens and sequential keys start above all that were given
//! out before, revisions leap over the lost ones, watchers learn that they must read again, and the
//! record stays in the state and in its status.
//!
//! # Invariants
//!
//! - **RECOVERY-1** A record of a forced recovery is in the state of a member only if that member
//!   has verified enough signatures of the ring's [`Signatories`] on it: when it applies the
//!   record, and again whenever it reads the state from its disk or from a peer. A record of a
//!   restore has no signature: it is made on the machine itself and never taken from the log, but a
//!   member believes those in a snapshot, as it believes the rest of the keyspace there.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::{Signature, VerifyingKey};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::{Refusal, kv::request::Revision, limits, table::Row, time::RingTime};

/// The reason for a cut of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecoveryKind {
    /// A snapshot was restored.
    Restored = 0,
    /// A quorum was lost, and an operator chose the survivor to trust.
    Forced = 1,
}

/// The minute at which epochs start: the beginning of 2025, UTC.
const EPOCH_ZERO_UNIX_MIN: u64 = 28_928_160;
/// More revisions than a ring can write in a minute, as a power of two: over a million a second.
/// With 24 bits of minutes above it every revision is exact in a 64-bit float too, which some
/// clients use.
const REVISIONS_PER_MINUTE_BITS: u32 = 26;

/// The epoch of a recovery at this time, in nanoseconds since 1970. `None` if the clock is not set.
#[must_use]
pub fn epoch_at(unix_ns: u64) -> Option<u32> {
    let minutes = (unix_ns / 60_000_000_000).checked_sub(EPOCH_ZERO_UNIX_MIN)?;
    u32::try_from(minutes).ok().filter(|epoch| *epoch > 0)
}

/// The revision above which an epoch begins.
///
/// It grows faster than any ring writes, so it is above every revision that any history of the ring
/// can have reached by then: also a history that began with an earlier restore of the same
/// snapshot, which this one cannot know.
#[must_use]
pub fn leap_of(epoch: u32) -> Revision {
    i64::from(epoch) << REVISIONS_PER_MINUTE_BITS
}

/// One cut of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryRecord {
    /// The reason.
    pub kind: RecoveryKind,
    /// The epoch that it begins: larger than that of every other history that began from the same
    /// state. One snapshot may be restored twice, and the second restore cannot see the first, so
    /// epochs count minutes, not recoveries; 24 bits of them are 31 years.
    pub epoch: u32,
    /// The newest revision of the chosen state.
    pub kept: Revision,
    /// The next write has a larger revision than this, so that no revision is used twice. Choose it
    /// above everything a client can have seen.
    pub leap: Revision,
    /// Ring time of the chosen state.
    pub time: RingTime,
    /// The members whose state was kept.
    pub trusted: Vec<String>,
    /// The members whose state was given up.
    pub lost: Vec<String>,
    /// The operator's reason.
    pub reason: String,
    /// Ed25519 signatures of operators over all of the above, concatenated; empty for a restore.
    pub signature: Vec<u8>,
}

impl RecoveryRecord {
    /// The bytes that operators sign: all fields but the signatures.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut w = Writer::tagged("satrap/recovery/v1");
        self.encode_body(&mut w);
        w.finish()
    }

    fn encode_body(&self, w: &mut Writer) {
        w.u8(self.kind as u8);
        w.u32(self.epoch);
        w.u64(self.kept.cast_unsigned());
        w.u64(self.leap.cast_unsigned());
        w.u64(self.time.0);
        for members in [&self.trusted, &self.lost] {
            w.count(members.len());
            members.iter().for_each(|member| w.bytes(member.as_bytes()));
        }
        w.bytes(self.reason.as_bytes());
    }
}

/// The operators who may cut the history of a ring, and the number of signatures it takes. The
/// ring's owner configures every member equally for as long as the ring lives, so all members reach
/// the same verdict. By default no signature is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatories {
    /// Ed25519 public keys, and the operator of each. An operator with several keys counts once.
    pub keys: BTreeMap<[u8; 32], String>,
    /// The number of operators who must sign.
    pub needed: usize,
}

impl Signatories {
    /// The operators whose signatures on `record` verify, by the strict rules of RFC 8032.
    #[must_use]
    pub fn signers(&self, record: &RecoveryRecord) -> BTreeSet<String> {
        let bytes = record.signed_bytes();
        let (signatures, _) = record.signature.as_chunks::<SIGNATURE_BYTES>();
        let signed = |key: &[u8; 32]| {
            let Ok(key) = VerifyingKey::from_bytes(key) else { return false };
            let verifies =
                |signature| key.verify_strict(&bytes, &Signature::from_bytes(signature)).is_ok();
            signatures.iter().any(verifies)
        };
        let signers = self.keys.iter().filter(|(key, _)| signed(key));
        signers.map(|(_, person)| person.clone()).collect()
    }

    /// Checks that enough operators have signed `record`.
    ///
    /// # Errors
    ///
    /// [`Refusal::PermissionDenied`].
    pub fn check(&self, record: &RecoveryRecord) -> Result<(), Refusal> {
        if self.needed > 0 && self.signers(record).len() < self.needed {
            return Err(Refusal::PermissionDenied);
        }
        Ok(())
    }
}

/// The length of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

fn members(r: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let n = r.count(limits::RECOVERY_MEMBERS_MAX)?;
    (0..n).map(|_| Ok(r.text(limits::NAME_BYTES_MAX)?.to_owned())).collect()
}

impl Canonical for RecoveryRecord {
    fn encode(&self, w: &mut Writer) {
        self.encode_body(w);
        w.bytes(&self.signature);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: match r.u8()? {
                0 => RecoveryKind::Restored,
                1 => RecoveryKind::Forced,
                _ => return Err(DecodeError::Invalid("recovery")),
            },
            epoch: r.u32()?,
            kept: r.u64()?.cast_signed(),
            leap: r.u64()?.cast_signed(),
            time: RingTime(r.u64()?),
            trusted: members(r)?,
            lost: members(r)?,
            reason: r.text(limits::RECOVERY_TEXT_BYTES_MAX)?.to_owned(),
            signature: r.bytes(limits::RECOVERY_TEXT_BYTES_MAX)?.to_vec(),
        })
    }
}

impl Row for RecoveryRecord {
    type Key = u32;
    const NAME: &'static str = "recoveries";
    const PAGE_ROWS_MAX: usize = limits::RECOVERIES_MAX;

    fn encode_key(key: &u32, w: &mut Writer) {
        w.u32(*key);
    }

    fn decode_key(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
        r.u32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_NS: u64 = 365 * 24 * 3600 * 1_000_000_000;

    #[test]
    fn epochs_are_minutes_and_revisions_stay_exact_in_floats() {
        assert_eq!(epoch_at(0), None);
        let first = epoch_at(55 * YEAR_NS + 30 * 24 * 3600 * 1_000_000_000).unwrap();
        assert_eq!(epoch_at(56 * YEAR_NS + 30 * 24 * 3600 * 1_000_000_000), Some(first + 525_600));
        assert!(leap_of((1 << 24) - 1) + leap_of(1) < 1 << 53);
        assert!(leap_of(first + 1) - leap_of(first) > 60 * 1_000_000);
    }
}
