//! The fencing token of a role: a number that grows with every grant (LEASE-4).
//!
//! A token is one number of 64 bits: 32 of *epoch*, 32 of counter (001-30), so that resources can
//! compare and store it as an integer. The upper 24 bits of the epoch are the keyspace's recovery
//! epoch, the lower 8 count how often this role's counter overflowed. An overflow therefore never
//! reaches the range of a later recovery, and a role that used all 2^40 tokens between two
//! recoveries refuses rather than repeats one.

use core::fmt;

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

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

    /// The next of a role, in the keyspace's `recovery_epoch` (LEASE-4).
    pub(crate) fn next(self, recovery_epoch: u32) -> Option<Self> {
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

/// As clients print and parse it (`satrap_client::FencingToken`).
impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.counter)
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
        // The next recovery begins above every overflow of this one; the last token is followed by
        // none.
        let exhausted = FencingToken { epoch: (7 << 8) + 255, counter: u32::MAX };
        assert_eq!(exhausted.next(7), None);
        assert_eq!(exhausted.next(8), Some(FencingToken { epoch: 8 << 8, counter: 1 }));
        assert!(exhausted.next(8).unwrap() > exhausted);
    }
}
