//! Wall-clock time as an argument.

use core::{fmt, time::Duration};

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

/// Nanoseconds since the Unix epoch; at most the year 2262, so that it fits Tendermint's `i64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The latest time there is.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// This time plus `d`, saturating.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ns).min(Self::MAX.0))
    }

    /// How much later this is than `earlier`; zero if it is not later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// As Tendermint's type.
    #[must_use]
    pub fn to_tendermint(self) -> tendermint::Time {
        let (secs, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        let secs = i64::try_from(secs).expect("u64 nanoseconds are at most 1.8e10 seconds");
        let nanos = u32::try_from(nanos).expect("a remainder below 1e9");
        tendermint::Time::from_unix_timestamp(secs, nanos)
            .expect("years 1970 to 2554 lie inside Tendermint's range")
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_tendermint().to_rfc3339())
    }
}

impl Canonical for Timestamp {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u64()? {
            ns if ns <= Self::MAX.0 => Ok(Self(ns)),
            _ => Err(DecodeError::Invalid("time: after the year 2262")),
        }
    }
}
