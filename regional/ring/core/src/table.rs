//! Tables: ordered rows that track the pages a checkpoint must write, and their part of the digest.
//!
//! All state of the keyspace but the history is rows of some table. A table is split into a fixed
//! number of shards; a shard is a page. So a checkpoint of a million leases of which a thousand
//! were renewed writes some of 1 024 pages, not one of a hundred megabytes.
//!
//! # Invariants
//!
//! - **TABLE-1** Rows change only through this type, so pages and digest cannot miss a change.

use std::collections::{BTreeMap, BTreeSet};

use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use crate::digest::Multiset;

/// A row of a table.
pub(crate) trait Row: Canonical {
    /// The key of the row.
    type Key: Ord + Clone;
    /// The first part of the page's name, and the domain of the digest.
    const NAME: &'static str;
    /// The number of pages; a power of two, never changed once released.
    const SHARDS: u16 = 1;
    /// Rows that a page may hold; bounds the decoder.
    const PAGE_ROWS_MAX: usize = u32::MAX as usize;

    /// The page of a key.
    fn shard(_key: &Self::Key) -> u16 {
        0
    }
    /// Encodes the key.
    fn encode_key(key: &Self::Key, w: &mut Writer);
    /// Decodes a key.
    fn decode_key(r: &mut Reader<'_>) -> Result<Self::Key, DecodeError>;
}

/// Spreads numbers over `shards` pages (Fibonacci hashing: ids are often consecutive).
pub(crate) fn spread(id: u64, shards: u16) -> u16 {
    let mixed = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
    u16::try_from(mixed % u64::from(shards)).expect("a remainder of a u16 fits u16")
}

/// Rows by key.
#[derive(Clone, Debug)]
pub(crate) struct Table<R: Row> {
    shards: Vec<BTreeMap<R::Key, R>>,
    dirty: BTreeSet<u16>,
    sum: Multiset,
    len: usize,
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self {
            shards: (0..R::SHARDS).map(|_| BTreeMap::new()).collect(),
            dirty: BTreeSet::new(),
            sum: Multiset::default(),
            len: 0,
        }
    }
}

fn row_bytes<R: Row>(key: &R::Key, row: &R) -> Vec<u8> {
    let mut w = Writer::default();
    R::encode_key(key, &mut w);
    row.encode(&mut w);
    w.finish()
}

impl<R: Row> Table<R> {
    /// The row of a key.
    pub fn get(&self, key: &R::Key) -> Option<&R> {
        self.shards[usize::from(R::shard(key))].get(key)
    }

    /// Inserts a row; returns the one it replaced.
    pub fn insert(&mut self, key: R::Key, row: R) -> Option<R> {
        let shard = R::shard(&key);
        self.dirty.insert(shard);
        self.sum.insert(R::NAME, &row_bytes(&key, &row));
        let old = self.shards[usize::from(shard)].insert(key.clone(), row);
        match &old {
            Some(old) => self.sum.remove(R::NAME, &row_bytes(&key, old)),
            None => self.len += 1,
        }
        old
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &R::Key) -> Option<R> {
        let shard = R::shard(key);
        let old = self.shards[usize::from(shard)].remove(key)?;
        self.dirty.insert(shard);
        self.sum.remove(R::NAME, &row_bytes(key, &old));
        self.len -= 1;
        Some(old)
    }

    /// Removes every row.
    pub fn clear(&mut self) {
        let occupied = (0..R::SHARDS).filter(|i| !self.shards[usize::from(*i)].is_empty());
        self.dirty.extend(occupied);
        self.shards.iter_mut().for_each(BTreeMap::clear);
        self.sum = Multiset::default();
        self.len = 0;
    }

    /// All rows, in order of key within a shard, shard by shard.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&R::Key, &R)> {
        self.shards.iter().flatten()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// A table of any type of rows.
pub(crate) trait Paged {
    /// The rows' part of the state's digest.
    fn sum(&self) -> &Multiset;
    /// The pages that changed since the last call.
    fn take_dirty(&mut self, pages: &mut BTreeMap<String, Vec<u8>>);
    /// Loads one page, if it is of this table.
    fn load(&mut self, name: &str, page: &[u8]) -> Result<Loaded, DecodeError>;
}

impl<R: Row> Paged for Table<R> {
    fn sum(&self) -> &Multiset {
        &self.sum
    }

    fn take_dirty(&mut self, pages: &mut BTreeMap<String, Vec<u8>>) {
        for shard in std::mem::take(&mut self.dirty) {
            let rows = &self.shards[usize::from(shard)];
            let mut w = Writer::default();
            w.count(rows.len());
            for (key, row) in rows {
                R::encode_key(key, &mut w);
                row.encode(&mut w);
            }
            pages.insert(page_name::<R>(shard), w.finish());
        }
    }

    fn load(&mut self, name: &str, page: &[u8]) -> Result<Loaded, DecodeError> {
        let Some(shard) = (0..R::SHARDS).find(|shard| page_name::<R>(*shard) == name) else {
            return Ok(Loaded::OtherTable);
        };
        let mut r = Reader::new(page);
        let mut last = None;
        for _ in 0..r.count(R::PAGE_ROWS_MAX)? {
            let key = R::decode_key(&mut r)?;
            if R::shard(&key) != shard {
                return Err(DecodeError::Invalid("page: a row of another page"));
            }
            if last.is_some_and(|last| last >= key) {
                return Err(DecodeError::Invalid("page: rows out of order, or two of one key"));
            }
            let row = R::decode(&mut r)?;
            if self.insert(key.clone(), row).is_some() {
                return Err(DecodeError::Invalid("page: loaded twice"));
            }
            last = Some(key);
        }
        if r.remaining() != 0 {
            return Err(DecodeError::Trailing(r.remaining()));
        }
        self.dirty.remove(&shard);
        Ok(Loaded::Stored)
    }
}

/// The result of loading a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// The page was loaded.
    Stored,
    /// The page is of another table.
    OtherTable,
}

fn page_name<R: Row>(shard: u16) -> String {
    if R::SHARDS == 1 { R::NAME.to_owned() } else { format!("{}/{shard:04}", R::NAME) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::PrefixLimits;

    /// A page has one encoding, so a page that loads equals the one that was written.
    #[test]
    fn a_page_with_rows_out_of_order_or_repeated_is_refused() {
        let limits = PrefixLimits { bytes_max: 1, keys_max: 1 };
        let page = |prefixes: &[&'static [u8]]| {
            let mut w = Writer::default();
            w.count(prefixes.len());
            for prefix in prefixes {
                w.bytes(prefix);
                limits.encode(&mut w);
            }
            w.finish()
        };
        let load = |prefixes: &[&'static [u8]]| {
            let mut table = Table::<PrefixLimits>::default();
            table.load(PrefixLimits::NAME, &page(prefixes)).map(|_| table.len())
        };
        assert_eq!(load(&[b"a", b"b"]), Ok(2));
        assert!(load(&[b"b", b"a"]).is_err());
        assert!(load(&[b"a", b"a"]).is_err());
    }
}
