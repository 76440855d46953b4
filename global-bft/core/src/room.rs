//! Room in the realm: bundles, entries and bytes, and how much of them there is (V8, V18).

use core::fmt;

use satrap_certify::{
    Head,
    limits::{
        HEADS_MAX, REALM_BYTES_MAX, REALM_ENTRIES_MAX, TRUST_BYTES_RESERVED,
        TRUST_ENTRIES_RESERVED, TRUST_HEADS_RESERVED,
    },
};

/// Room that one bundle or many take of the realm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bundles.
    pub heads: usize,
    /// Entries in them.
    pub entries: u64,
    /// Keys and values of the entries.
    pub bytes: u64,
}

impl Room {
    /// The room that a bundle takes.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        Self { heads: 1, entries: head.entries, bytes: head.bytes }
    }

    /// This with `before` in it replaced by `after`.
    pub(crate) fn with(self, before: Self, after: Self) -> Self {
        Self {
            heads: self.heads - before.heads + after.heads,
            entries: self.entries - before.entries + after.entries,
            bytes: self.bytes - before.bytes + after.bytes,
        }
    }

    /// Whether this exceeds `max` in something in which `after` is more than `before`.
    pub(crate) fn outgrows(&self, max: &Self, before: &Self, after: &Self) -> bool {
        let grows = |sum: u64, max: u64, before: u64, after: u64| after > before && sum > max;
        grows(self.heads as u64, max.heads as u64, before.heads as u64, after.heads as u64)
            || grows(self.entries, max.entries, before.entries, after.entries)
            || grows(self.bytes, max.bytes, before.bytes, after.bytes)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, entries, bytes } = self;
        write!(f, "{heads} bundles, {entries} entries and {bytes} bytes")
    }
}

/// The room of the whole realm.
pub const REALM: Room =
    Room { heads: HEADS_MAX, entries: REALM_ENTRIES_MAX as u64, bytes: REALM_BYTES_MAX };
/// The part of it that opaque classes can take together.
pub const OPAQUE: Room = Room {
    heads: HEADS_MAX - TRUST_HEADS_RESERVED,
    entries: (REALM_ENTRIES_MAX - TRUST_ENTRIES_RESERVED) as u64,
    bytes: REALM_BYTES_MAX - TRUST_BYTES_RESERVED,
};
