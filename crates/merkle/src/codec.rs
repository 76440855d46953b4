//! The canonical encoding: the only bytes that are hashed, signed, stored or relayed.
//!
//! Protobuf has many encodings of one message, so a signature over protobuf bytes can be made to
//! cover something else after a re-encode. Here every value has exactly one encoding (**E1**):
//! integers are fixed-width big-endian, byte strings carry a `u32` length, lists carry a `u32`
//! count, options carry one byte `0` or `1`. A decoder checks every length against a bound that
//! the caller states *before* it allocates (**E2**) and refuses trailing bytes (**E3**).
//!
//! # Deliberately absent
//!
//! No self-description and no optional fields: a format that changes gets a new domain tag.

use core::fmt;

/// Why bytes are not the canonical encoding of the expected value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends before the value does.
    Truncated,
    /// A length or count exceeds the bound for this field.
    TooLong {
        /// The length or count that the input claims.
        claimed: usize,
        /// The most this field may hold.
        max: usize,
    },
    /// Bytes follow the value.
    Trailing(usize),
    /// A tag byte, or a text, is none of the values this field may have.
    Invalid(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("input ends in the middle of a value"),
            Self::TooLong { claimed, max } => {
                write!(f, "a field claims {claimed} items or bytes, at most {max} are allowed")
            }
            Self::Trailing(n) => write!(f, "{n} bytes follow the value"),
            Self::Invalid(what) => write!(f, "invalid {what}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// A value with exactly one encoding.
pub trait Canonical: Sized {
    /// Appends the encoding of `self`.
    fn encode(&self, w: &mut Writer);

    /// Reads one value.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the input is not the canonical encoding of a value within bounds.
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The whole encoding of `self`.
    fn to_canonical(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.encode(&mut w);
        w.0
    }

    /// Reads a value that must fill `bytes` exactly (**E3**).
    ///
    /// # Errors
    ///
    /// As [`Canonical::decode`], and [`DecodeError::Trailing`].
    fn from_canonical(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader(bytes);
        let value = Self::decode(&mut r)?;
        match r.0.len() {
            0 => Ok(value),
            n => Err(DecodeError::Trailing(n)),
        }
    }
}

/// Refuses the items of a decoded map or set unless they ascend strictly (**E1**): out of order or
/// repeated, they would decode to a value that encodes to other bytes.
///
/// # Errors
///
/// [`DecodeError::Invalid`].
pub fn ascending<T: Ord>(items: impl IntoIterator<Item = T>) -> Result<(), DecodeError> {
    if items.into_iter().is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    Err(DecodeError::Invalid("order: the items of a map or set must ascend without repetition"))
}

/// Appends canonical encodings to a buffer.
#[derive(Default, Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Starts a message that is signed or hashed: the domain tag keeps its bytes from being read
    /// as any other kind of message.
    #[must_use]
    pub fn tagged(domain: &'static str) -> Self {
        let mut w = Self::default();
        w.bytes(domain.as_bytes());
        w
    }

    /// The bytes written so far.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// How many bytes were written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) {
        self.0.push(v);
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_be_bytes());
    }

    /// Bytes that another writer has encoded already.
    pub fn encoded(&mut self, v: &[u8]) {
        self.0.extend_from_slice(v);
    }

    /// Bytes whose number is fixed by the format.
    pub fn array<const N: usize>(&mut self, v: &[u8; N]) {
        self.0.extend_from_slice(v);
    }

    /// A length and that many bytes.
    ///
    /// # Panics
    ///
    /// If `v` holds 4 GiB or more; every caller bounds its fields far below that.
    pub fn bytes(&mut self, v: &[u8]) {
        self.count(v.len());
        self.0.extend_from_slice(v);
    }

    /// The number of items that follow.
    ///
    /// # Panics
    ///
    /// If `n` does not fit `u32`; every caller bounds its lists far below that.
    pub fn count(&mut self, n: usize) {
        self.u32(u32::try_from(n).expect("fields and lists are bounded below u32::MAX"));
    }

    /// A count and that many values.
    pub fn list<T: Canonical>(&mut self, items: &[T]) {
        self.count(items.len());
        for item in items {
            item.encode(self);
        }
    }

    /// `0`, or `1` and the value.
    pub fn option<T: Canonical>(&mut self, item: Option<&T>) {
        match item {
            None => self.u8(0),
            Some(item) => {
                self.u8(1);
                item.encode(self);
            }
        }
    }
}

/// Reads canonical encodings from a slice; nothing is allocated before its bound was checked.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes, big-endian.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes, big-endian.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes whose number is fixed by the format.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let head = self.take(N)?;
        Ok(head.try_into().expect("take returned N bytes"))
    }

    /// A length of at most `max` and that many bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] or [`DecodeError::Truncated`].
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let n = self.count(max)?;
        self.take(n)
    }

    /// As [`Reader::bytes`], and the bytes must be UTF-8.
    ///
    /// # Errors
    ///
    /// As [`Reader::bytes`], and [`DecodeError::Invalid`].
    pub fn text(&mut self, max: usize) -> Result<&'a str, DecodeError> {
        core::str::from_utf8(self.bytes(max)?).map_err(|_| DecodeError::Invalid("UTF-8 text"))
    }

    /// The number of items that follow, at most `max`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] or [`DecodeError::Truncated`].
    pub fn count(&mut self, max: usize) -> Result<usize, DecodeError> {
        let claimed = self.u32()? as usize;
        if claimed > max {
            return Err(DecodeError::TooLong { claimed, max });
        }
        Ok(claimed)
    }

    /// At most `max` values. Memory grows with the input read, not with the count claimed.
    ///
    /// # Errors
    ///
    /// As [`Reader::count`] and as the items' own decoder.
    pub fn list<T: Canonical>(&mut self, max: usize) -> Result<Vec<T>, DecodeError> {
        let n = self.count(max)?;
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(T::decode(self)?);
        }
        Ok(items)
    }

    /// `0`, or `1` and a value.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Invalid`] for any other tag, and as the value's own decoder.
    pub fn option<T: Canonical>(&mut self) -> Result<Option<T>, DecodeError> {
        match self.u8()? {
            0 => Ok(None),
            1 => T::decode(self).map(Some),
            _ => Err(DecodeError::Invalid("option tag")),
        }
    }
}

impl<const N: usize> Canonical for [u8; N] {
    fn encode(&self, w: &mut Writer) {
        w.array(self);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.array()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_before_anything_is_read() {
        let mut w = Writer::default();
        w.count(5);
        let bytes = w.finish();
        assert_eq!(Reader::new(&bytes).bytes(4), Err(DecodeError::TooLong { claimed: 5, max: 4 }));
        assert_eq!(Reader::new(&bytes).bytes(5), Err(DecodeError::Truncated));
        // A count of four billion items must not reserve memory for them.
        let huge = u32::MAX.to_be_bytes();
        assert_eq!(
            Reader::new(&huge).list::<[u8; 32]>(u32::MAX as usize),
            Err(DecodeError::Truncated)
        );
    }

    #[test]
    fn an_option_tag_has_two_values_and_nothing_may_trail() {
        assert_eq!(Reader::new(&[2]).option::<[u8; 1]>(), Err(DecodeError::Invalid("option tag")));
        assert_eq!(<[u8; 1]>::from_canonical(&[1, 2]), Err(DecodeError::Trailing(1)));
    }
}
