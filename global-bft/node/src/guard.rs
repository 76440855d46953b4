//! The last-sign guard: decides whether this validator may sign a message, so that it signs no two for one place even
//! after it has lost its database.
//!
//! The write-ahead log already keeps a restarted validator from contradicting itself, as long as it
//! is there and up to date. This guard is a second memory in a second file: it holds the digests of
//! the last messages that the signer was asked to sign, by height, round and step. If the database is lost, or comes
//! back from an old image, the guard refuses every message that is not provably new, and the
//! validator abstains until the chain has passed what it signed before.
//!
//! # Invariants
//!
//! - **SIGN-1** For one height, round and step, one digest is admitted, ever.
//! - **SIGN-2** A place at or below the newest one is admitted only with the digest recorded for it.
//! - **SIGN-3** The file holds two slots, written in turn; a torn write damages only the older one.
//!
//! # Deliberately absent
//!
//! It cannot see that *both* files came back from an old image. Never restore a validator from a
//! backup, and never run two processes with one key.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use satrap_certify::Digest;
use satrap_merkle::codec::{Canonical as _, DecodeError, Reader, Writer};
use sha2::{Digest as _, Sha256};

use crate::limits::GUARD_RECORDS_MAX;

const DOMAIN: &str = "satrap/last-sign/v1";
/// One disk block: a torn write stays inside it.
const SLOT_BYTES: usize = 4_096;
const MODE_SECRET: u32 = 0o600;

/// Where in the protocol a message belongs; ordered as a validator signs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Height.
    pub height: u64,
    /// Round.
    pub round: u32,
    /// Which of the three messages of a round.
    pub step: Step,
}

/// The messages a validator signs in one round, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Proposal.
    Propose = 0,
    /// First vote.
    Prevote = 1,
    /// Second vote.
    Precommit = 2,
}

impl Step {
    /// The step that is written as `tag`, its discriminant.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Invalid`]
    pub fn from_tag(tag: u8) -> Result<Self, DecodeError> {
        match tag {
            0 => Ok(Self::Propose),
            1 => Ok(Self::Prevote),
            2 => Ok(Self::Precommit),
            _ => Err(DecodeError::Invalid("step: must be 0, 1 or 2")),
        }
    }
}

/// Why a message must not be signed or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another digest is on record for that height, round and step (SIGN-1).
    #[error("another message was signed for {0:?} before")]
    Conflict(Place),
    /// The place is at or below the newest one, and no digest is on record for it (SIGN-2).
    #[error("{offered:?} is not after {newest:?}, the newest that was signed")]
    Behind {
        /// The place of the message that was to be signed.
        offered: Place,
        /// The newest place that was admitted.
        newest: Place,
    },
}

/// Two durable slots.
pub trait Slots: Send {
    /// The content of both slots; empty if never written.
    ///
    /// # Errors
    ///
    /// From the medium.
    fn read(&self) -> io::Result<[Vec<u8>; 2]>;

    /// Replaces one slot, and returns once that is durable.
    ///
    /// # Errors
    ///
    /// From the medium; the process must then stop.
    fn write(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()>;
}

/// The real medium: one small file.
pub struct SlotFile(File);

impl SlotFile {
    /// Opens or creates the file.
    ///
    /// # Errors
    ///
    /// From the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(MODE_SECRET);
        let file = options.open(path)?;
        // Both slots are written back as they are read, or as zeros. The bytes read may be in memory only,
        // because their sync failed; and a later write must replace bytes that are on disk: a file system
        // that turns read-only may lose others although it reports success for their sync.
        let mut held = Vec::with_capacity(2 * SLOT_BYTES);
        (&file).take(2 * SLOT_BYTES as u64).read_to_end(&mut held)?;
        held.resize(2 * SLOT_BYTES, 0);
        file.write_all_at(&held, 0)?;
        file.sync_all()?;
        satrap_runtime::files::sync_directory(satrap_runtime::files::parent(path))?;
        Ok(Self(file))
    }
}

impl Slots for SlotFile {
    fn read(&self) -> io::Result<[Vec<u8>; 2]> {
        let mut slots = [Vec::new(), Vec::new()];
        let length = self.0.metadata()?.len();
        for (slot, bytes) in (0_u64..).zip(&mut slots) {
            let offset = slot * SLOT_BYTES as u64;
            if length >= offset + SLOT_BYTES as u64 {
                bytes.resize(SLOT_BYTES, 0);
                self.0.read_exact_at(bytes, offset)?;
            }
        }
        Ok(slots)
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        let mut block = vec![0; SLOT_BYTES];
        block[..bytes.len()].copy_from_slice(bytes);
        self.0.write_all_at(&block, (slot * SLOT_BYTES) as u64)?;
        self.0.sync_data()
    }
}

/// The digests of the messages that this validator was last allowed to sign.
pub struct Guard {
    slots: Box<dyn Slots>,
    serial: u64,
    records: BTreeMap<Place, Digest>,
    dirty: bool,
}

impl Guard {
    /// Reads the newer intact slot.
    ///
    /// # Errors
    ///
    /// From the medium, or [`io::ErrorKind::InvalidData`] if slots were written but none is intact:
    /// then the messages that were signed are unknown.
    pub fn load(slots: Box<dyn Slots>) -> io::Result<Self> {
        let held = slots.read()?;
        let written = held.iter().any(|bytes| bytes.iter().any(|b| *b != 0));
        let newest = held.iter().filter_map(|bytes| decode(bytes).ok()).max_by_key(|(s, _)| *s);
        match newest {
            Some((serial, records)) => Ok(Self { slots, serial, records, dirty: false }),
            None if written => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the last-sign file is damaged; give this validator a new key",
            )),
            None => Ok(Self { slots, serial: 0, records: BTreeMap::new(), dirty: false }),
        }
    }

    /// The newest place that was signed.
    #[must_use]
    pub fn newest(&self) -> Option<Place> {
        self.records.keys().next_back().copied()
    }

    /// Whether `digest` contradicts what was signed for `place`.
    ///
    /// # Errors
    ///
    /// [`Refused::Conflict`].
    pub fn check(&self, place: Place, digest: &Digest) -> Result<(), Refused> {
        match self.records.get(&place) {
            Some(held) if held != digest => Err(Refused::Conflict(place)),
            _ => Ok(()),
        }
    }

    /// Admits a message that is about to be signed or sent again; [`Guard::persist`] must follow
    /// before it leaves.
    ///
    /// # Errors
    ///
    /// [`Refused`] names the rule.
    pub fn admit(&mut self, place: Place, digest: &Digest) -> Result<(), Refused> {
        self.check(place, digest)?;
        if self.records.contains_key(&place) {
            return Ok(());
        }
        if let Some(newest) = self.newest().filter(|newest| *newest >= place) {
            return Err(Refused::Behind { offered: place, newest });
        }
        self.records.insert(place, *digest);
        if self.records.len() > GUARD_RECORDS_MAX {
            self.records.pop_first();
        }
        self.dirty = true;
        Ok(())
    }

    /// Makes durable what was admitted.
    ///
    /// # Errors
    ///
    /// From the medium; the process must then stop.
    pub fn persist(&mut self) -> io::Result<()> {
        if self.dirty {
            self.serial += 1;
            let slot = usize::from(self.serial % 2 == 1);
            self.slots.write(slot, &encode(self.serial, &self.records))?;
            self.dirty = false;
        }
        Ok(())
    }
}

fn encode(serial: u64, records: &BTreeMap<Place, Digest>) -> Vec<u8> {
    let mut w = Writer::tagged(DOMAIN);
    w.u64(serial);
    w.count(records.len());
    for (place, digest) in records {
        w.u64(place.height);
        w.u32(place.round);
        w.u8(place.step as u8);
        w.array(digest);
    }
    let mut bytes = w.finish();
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(slot: &[u8]) -> Result<(u64, BTreeMap<Place, Digest>), DecodeError> {
    let mut r = Reader::new(slot);
    if r.bytes(DOMAIN.len())? != DOMAIN.as_bytes() {
        return Err(DecodeError::Invalid("last-sign file format"));
    }
    let serial = r.u64()?;
    let mut records = BTreeMap::new();
    for _ in 0..r.count(GUARD_RECORDS_MAX)? {
        let (height, round) = (r.u64()?, r.u32()?);
        let step = Step::from_tag(r.u8()?)?;
        records.insert(Place { height, round, step }, r.array()?);
    }
    let written = slot.len() - r.remaining();
    let checksum = <[u8; 32]>::decode(&mut r)?;
    if Sha256::digest(&slot[..written]).as_slice() != checksum {
        return Err(DecodeError::Invalid("checksum"));
    }
    Ok((serial, records))
}

const _: () = assert!(4 + DOMAIN.len() + 8 + 4 + GUARD_RECORDS_MAX * 45 + 32 <= SLOT_BYTES);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn place(height: u64, round: u32, step: Step) -> Place {
        Place { height, round, step }
    }

    fn open(path: &Path) -> Guard {
        Guard::load(Box::new(SlotFile::open(path).unwrap())).unwrap()
    }

    #[test]
    fn one_message_per_place_and_never_backwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-sign");
        let mut guard = open(&path);
        let first = place(5, 0, Step::Prevote);
        guard.admit(first, &[1; 32]).unwrap();
        guard.persist().unwrap();
        let mut guard = open(&path);
        assert_eq!(guard.admit(first, &[1; 32]), Ok(()), "the same message again");
        assert_eq!(guard.admit(first, &[2; 32]), Err(Refused::Conflict(first)));
        let before = place(5, 0, Step::Propose);
        let behind = Refused::Behind { offered: before, newest: first };
        assert_eq!(guard.admit(before, &[3; 32]), Err(behind));
        assert_eq!(guard.admit(place(5, 0, Step::Precommit), &[2; 32]), Ok(()));
        assert_eq!(guard.admit(place(5, 1, Step::Propose), &[2; 32]), Ok(()));
        assert_eq!(guard.admit(place(6, 0, Step::Propose), &[2; 32]), Ok(()));
    }

    #[test]
    fn a_torn_write_falls_back_to_the_other_slot_and_two_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-sign");
        let mut guard = open(&path);
        for height in 1..=3 {
            guard.admit(place(height, 0, Step::Prevote), &[1; 32]).unwrap();
            guard.persist().unwrap();
        }
        drop(guard);
        let mut bytes = std::fs::read(&path).unwrap();
        // Serial 3 is in slot 1.
        bytes[SLOT_BYTES + 40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open(&path).newest().unwrap().height, 2);
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = Guard::load(Box::new(SlotFile::open(&path).unwrap())).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    /// A file of an older build may have a hole where a slot is.
    #[test]
    fn both_slots_have_room_on_the_disk_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-sign");
        let both = 2 * SLOT_BYTES as u64;
        File::create(&path).unwrap().set_len(both).unwrap();
        assert_eq!(open(&path).newest(), None);
        let held = std::fs::metadata(&path).unwrap();
        assert_eq!(held.len(), both);
        assert!(held.blocks() * 512 >= both, "{} blocks", held.blocks());
    }

    #[test]
    fn at_the_limit_and_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("last-sign");
        let mut guard = open(&path);
        let records = GUARD_RECORDS_MAX as u64;
        for height in 1..=records + 1 {
            guard.admit(place(height, 0, Step::Prevote), &[9; 32]).unwrap();
        }
        guard.persist().unwrap();
        let mut guard = open(&path);
        assert_eq!(guard.admit(place(2, 0, Step::Prevote), &[9; 32]), Ok(()), "oldest kept");
        assert!(guard.admit(place(1, 0, Step::Prevote), &[9; 32]).is_err(), "dropped: refused");
    }
}
