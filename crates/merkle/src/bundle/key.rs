//! Keys: what a bundle's entries are sorted by, read as bits.

use core::fmt;
use std::sync::Arc;

use crate::codec::{Canonical, DecodeError, Reader, Writer};

/// Longest key. It caps the depth of every tree and thereby the size of every proof.
pub const KEY_BYTES_MAX: usize = 512;

/// A text of 1 to [`KEY_BYTES_MAX`] bytes without NUL, ordered by bytes; cheap to clone.
///
/// In the tree a key ends in one NUL, so no key is a prefix of another.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

/// Bytes that are not a [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Empty or too long.
    #[error("a key of {0} bytes: expected 1 to {KEY_BYTES_MAX}")]
    Length(usize),
    /// NUL ends a key in the tree, so it cannot be inside one.
    #[error("a key with a NUL byte at offset {0}: expected none")]
    Nul(usize),
}

impl Key {
    /// Checks `bytes`.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if they are too many, too few, or contain NUL.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(1..=KEY_BYTES_MAX).contains(&bytes.len()) {
            return Err(KeyError::Length(bytes.len()));
        }
        match bytes.iter().position(|b| *b == 0) {
            Some(at) => Err(KeyError::Nul(at)),
            None => Ok(Self(bytes.into())),
        }
    }

    /// The key without its terminator.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bits(&self) -> Bits<'_> {
        Bits(&self.0)
    }

    /// The first bit in which two keys differ.
    pub(super) fn critical_bit(&self, other: &Self) -> Option<u32> {
        // A comparison of slices is many times faster than one of bytes, and prefixes are long.
        const CHUNK: usize = 32;
        let (a, b) = (self.as_bytes(), other.as_bytes());
        let chunks = a.chunks_exact(CHUNK).zip(b.chunks_exact(CHUNK));
        let equal = CHUNK * chunks.take_while(|(a, b)| a == b).count();
        let differ = |at: &usize| self.bits().byte(*at) != other.bits().byte(*at);
        let at = (equal..a.len().max(b.len())).find(differ)?;
        let difference = self.bits().byte(at) ^ other.bits().byte(at);
        Some(Bits::index(at) + difference.leading_zeros())
    }
}

/// A byte string read as bits, most significant first, with zeros after its end.
///
/// Bit order and byte order agree, so the left-to-right order of leaves is the order of keys.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a>(pub &'a [u8]);

impl Bits<'_> {
    /// The number of the first bit of byte `at`.
    pub fn index(at: usize) -> u32 {
        u32::try_from(8 * at).expect("positions in keys and prefixes are far below 2^29")
    }

    fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// The child of a node with this critical bit that the string leads to: 0 left, 1 right.
    pub fn side(self, bit: u32) -> usize {
        usize::from(self.byte(bit as usize / 8) >> (7 - bit % 8) & 1)
    }
}

impl Canonical for Key {
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::new(r.bytes(KEY_BYTES_MAX)?)
            .map_err(|_| DecodeError::Invalid("key: expected 1 to 512 bytes without NUL"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_a_length_and_no_nul() {
        assert_eq!(Key::new(b""), Err(KeyError::Length(0)));
        assert!(Key::new(&[b'x'; KEY_BYTES_MAX]).is_ok());
        assert_eq!(Key::new(&[b'x'; KEY_BYTES_MAX + 1]), Err(KeyError::Length(513)));
        assert_eq!(Key::new(b"a\0b"), Err(KeyError::Nul(1)));
        assert!(Key::from_canonical(&[0, 0, 0, 1, 0]).is_err());
        assert_eq!(Key::from_canonical(&[0, 0, 0, 1, b'a']), Ok(Key::new(b"a").unwrap()));
    }

    #[test]
    fn a_prefix_differs_from_its_extension_in_the_terminator() {
        let key = |text: &str| Key::new(text.as_bytes()).unwrap();
        assert_eq!(key("a").critical_bit(&key("a")), None);
        assert_eq!(key("a").critical_bit(&key("b")), Some(6));
        // `b` is 0110_0010, the terminator 0000_0000.
        assert_eq!(key("ab").critical_bit(&key("a")), Some(9));
        let (long, longer) = ([b'x'; 511], [b'x'; 512]);
        let bit = Key::new(&long).unwrap().critical_bit(&Key::new(&longer).unwrap());
        assert_eq!(bit, Some(8 * 511 + 1));
    }
}
