//! The on-disk format of one segment of the log.
//!
//! ```text
//!   0          512
//!   ┌──────────┬──────────────┬─────────┬─────────┬───────────────────────────
//!   │ header   │ group: head  │ group   │ group   │ zeros, or an older life
//!   └──────────┴──────────────┴─────────┴─────────┴───────────────────────────
//! ```
//!
//! One group is one commit: written with one call, synced, and only then followed by the next. So a
//! group that cannot be read, with a readable one behind it, was synced once and is damage; without
//! one, it is the tail of an interrupted write.
//!
//! Segments are reused. The checksum of a group is keyed with the identity, the generation and the
//! offset, so neither a group of an earlier life nor bytes that a client stored in the shape of a
//! group are taken for one.

use bytes::{Buf, BufMut};
use memchr::memmem;

use super::record::Item;
use crate::{InstanceId, Owner, RingDigest, StorageError, limits::NAME_BYTES_MAX};

/// The first sector.
pub(super) const HEADER_BYTES: usize = 512;
/// Ahead of the items of a group: magic, length, generation, sequence, checksum, reserved.
pub(super) const GROUP_HEADER_BYTES: usize = 32;
const GROUP_ALIGN: usize = 8;
const MAGIC: &[u8; 8] = b"satrapwl";
const GROUP_MAGIC: u32 = 0x6b6c_6177;
const FORMAT: u32 = 1;

/// The log that the segment belongs to, and the generation of the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub generation: u64,
    /// Sequence number of the group at the head.
    pub first_sequence: u64,
    pub segment_bytes: u64,
    pub owner: Owner,
    pub instance: InstanceId,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put_slice(MAGIC);
        out.put_u32_le(FORMAT);
        out.put_u64_le(self.generation);
        out.put_u64_le(self.first_sequence);
        out.put_u64_le(self.segment_bytes);
        out.put_slice(&self.owner.ring);
        out.put_slice(&self.instance);
        let name = self.owner.member.as_bytes();
        out.put_u16_le(u16::try_from(name.len()).expect("a name within its limit"));
        out.put_slice(name);
        out.resize(HEADER_BYTES - 4, 0);
        out.put_u32_le(crc32fast::hash(&out));
        out
    }

    pub(super) fn decode(file: &str, block: &[u8]) -> Result<Self, StorageError> {
        let damaged = |what: &str| StorageError::damaged(file, what);
        let (content, crc) = block
            .get(..HEADER_BYTES)
            .and_then(|block| block.split_last_chunk::<4>())
            .ok_or_else(|| damaged("the header is cut short"))?;
        let mut rest = content;
        if !rest.starts_with(MAGIC) {
            return Err(damaged("this is no segment of a log"));
        }
        if u32::from_le_bytes(*crc) != crc32fast::hash(content) {
            return Err(damaged("the header fails its checksum"));
        }
        rest.advance(MAGIC.len());
        let format = rest.get_u32_le();
        if format != FORMAT {
            let file = file.to_owned();
            return Err(StorageError::Format { file, format, supported: FORMAT });
        }
        let generation = rest.get_u64_le();
        let first_sequence = rest.get_u64_le();
        let segment_bytes = rest.get_u64_le();
        let (mut ring, mut instance) = (RingDigest::default(), InstanceId::default());
        rest.copy_to_slice(&mut ring);
        rest.copy_to_slice(&mut instance);
        let bytes = usize::from(rest.get_u16_le());
        let name = rest.get(..bytes.min(NAME_BYTES_MAX)).unwrap_or_default();
        let member = String::from_utf8_lossy(name).into_owned();
        let owner = Owner { ring, member };
        Ok(Self { generation, first_sequence, segment_bytes, owner, instance })
    }

    fn key(&self, offset: u64) -> crc32fast::Hasher {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.instance);
        hasher.update(&self.owner.ring);
        hasher.update(&self.generation.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher
    }
}

/// Starts a group in `out`, which is empty; items follow.
pub(super) fn begin_group(out: &mut Vec<u8>) {
    debug_assert!(out.is_empty(), "one group at a time");
    out.resize(GROUP_HEADER_BYTES, 0);
}

/// Completes the group in `out` for `offset` of the segment of `header`.
pub(super) fn end_group(out: &mut Vec<u8>, header: &Header, sequence: u64, offset: u64) {
    let body_bytes = u32::try_from(out.len() - GROUP_HEADER_BYTES).expect("fits a segment");
    let mut head = Vec::with_capacity(GROUP_HEADER_BYTES);
    head.put_u32_le(GROUP_MAGIC);
    head.put_u32_le(body_bytes);
    head.put_u64_le(header.generation);
    head.put_u64_le(sequence);
    let mut crc = header.key(offset);
    crc.update(&head);
    crc.update(&out[GROUP_HEADER_BYTES..]);
    head.put_u32_le(crc.finalize());
    head.put_u32_le(0);
    out[..GROUP_HEADER_BYTES].copy_from_slice(&head);
    out.resize(out.len().next_multiple_of(GROUP_ALIGN), 0);
}

/// Size of a group whose items take `body_bytes`.
pub(super) fn group_bytes(body_bytes: usize) -> usize {
    (GROUP_HEADER_BYTES + body_bytes).next_multiple_of(GROUP_ALIGN)
}

/// A group in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group<'a> {
    pub sequence: u64,
    pub body: &'a [u8],
    /// Offset of the next group.
    pub end: usize,
}

/// The group at `offset`, if it is complete and of this generation.
pub(super) fn group_at<'a>(segment: &'a [u8], offset: usize, header: &Header) -> Option<Group<'a>> {
    let head = segment.get(offset..offset.checked_add(GROUP_HEADER_BYTES)?)?;
    let mut fields = head;
    let (magic, body_bytes) = (fields.get_u32_le(), fields.get_u32_le() as usize);
    let (generation, sequence) = (fields.get_u64_le(), fields.get_u64_le());
    let (crc, reserved) = (fields.get_u32_le(), fields.get_u32_le());
    if magic != GROUP_MAGIC || generation != header.generation || reserved != 0 {
        return None;
    }
    let end = offset + group_bytes(body_bytes);
    let padded = segment.get(offset + GROUP_HEADER_BYTES..end)?;
    let (body, padding) = padded.split_at(body_bytes);
    let mut computed = header.key(offset as u64);
    computed.update(&head[..GROUP_HEADER_BYTES - 8]);
    computed.update(body);
    let whole = computed.finalize() == crc && padding.iter().all(|byte| *byte == 0);
    whole.then_some(Group { sequence, body, end })
}

/// The first readable group after `offset`: it proves that the bytes at `offset` were synced.
pub(super) fn group_behind(segment: &[u8], offset: usize, header: &Header) -> Option<usize> {
    let from = offset + GROUP_ALIGN;
    // Nearly all of what is searched is zeros, at every start of a member.
    memmem::find_iter(segment.get(from..)?, &GROUP_MAGIC.to_le_bytes())
        .map(|at| from + at)
        .filter(|at| at.is_multiple_of(GROUP_ALIGN))
        .find(|at| group_at(segment, *at, header).is_some())
}

/// The items of a group.
pub(super) fn items(mut body: &[u8]) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    while !body.is_empty() {
        items.push(Item::decode(&mut body)?);
    }
    Ok(items)
}

/// The name of a segment in use.
pub(super) fn segment_name(generation: u64) -> String {
    format!("wal-{generation:016x}.seg")
}

/// The name of a spare segment.
pub(super) fn spare_name(generation: u64) -> String {
    format!("wal-{generation:016x}.spare")
}

/// The role that a file's name gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Segment(u64),
    Spare(u64),
    /// An unfinished file of a process that died.
    Unfinished,
}

/// The suffix of a file that is not complete yet.
pub(super) const UNFINISHED: &str = ".new";

/// Parses a name; `None` if the log did not give it.
pub(super) fn role(name: &str) -> Option<Role> {
    let rest = name.strip_prefix("wal-")?;
    if rest.ends_with(UNFINISHED) {
        return Some(Role::Unfinished);
    }
    let (generation, role) = rest.split_once('.')?;
    let generation = u64::from_str_radix(generation, 16).ok()?;
    match role {
        "seg" => Some(Role::Segment(generation)),
        "spare" => Some(Role::Spare(generation)),
        _ => None,
    }
}

/// Whether `name` names a segment in use.
pub(crate) fn is_segment(name: &str) -> bool {
    matches!(role(name), Some(Role::Segment(_)))
}
