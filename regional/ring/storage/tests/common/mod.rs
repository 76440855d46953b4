//! Shared by the tests: seeded choices, a model of the log, and a model of the state.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use satrap_ring_storage::{
    Checkpoint, Mark, Owner, Record, Recovered, Reserve, Row, SpaceConfig, State, StateConfig,
    StorageError, Version, Wal, WalConfig,
    files::Files,
    limits::SEGMENT_BYTES_MIN,
    sim::{SimDisk, Survival},
};

pub const SMALL: WalConfig = WalConfig { segment_bytes: SEGMENT_BYTES_MIN };
pub const NO_RESERVE: SpaceConfig = SpaceConfig { reserve_bytes: 0, low_bytes: 0 };
pub const CACHE: StateConfig = StateConfig { cache_bytes: 1 << 20 };
pub const INSTANCE: [u8; 16] = [7; 16];

pub fn owner() -> Owner {
    Owner { ring: [1; 32], member: "m1".into() }
}

pub fn open_wal(files: Arc<dyn Files>) -> Result<(Wal, Recovered), StorageError> {
    let reserve = Arc::new(Reserve::open(files.clone(), NO_RESERVE)?);
    Wal::open(files, reserve, SMALL, &owner(), INSTANCE)
}

pub fn open_state(files: Arc<dyn Files>) -> Result<State, StorageError> {
    State::open(files, CACHE, &owner(), INSTANCE)
}

pub fn disk(disk: &SimDisk) -> Arc<dyn Files> {
    Arc::new(disk.clone())
}

/// SplitMix64, apart from the disk's.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub fn survival(&mut self) -> Survival {
        match self.below(4) {
            0 => Survival::None,
            1 => Survival::All,
            2 => Survival::Some(128),
            _ => Survival::Some(230),
        }
    }

    pub fn bytes(&mut self, bytes_max: u64) -> Bytes {
        let bytes = self.below(bytes_max + 1);
        let word = self.roll().to_le_bytes();
        (0..bytes).map(|at| word[(at % 8) as usize] ^ (at / 8) as u8).collect()
    }
}

pub fn mark(index: u64) -> Mark {
    Mark { index, id: Bytes::copy_from_slice(&index.to_be_bytes()) }
}

/// The expected content of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub vote: Option<Bytes>,
    pub committed: Option<Mark>,
    pub purged: Option<Mark>,
    pub last: Option<u64>,
    pub entries: BTreeMap<u64, Bytes>,
}

impl Log {
    pub fn of(recovered: &Recovered) -> Self {
        let entries: BTreeMap<u64, Bytes> = recovered.entries.iter().cloned().collect();
        assert_eq!(entries.len(), recovered.entries.len());
        Self {
            vote: recovered.vote.clone(),
            committed: recovered.committed.clone(),
            purged: recovered.purged.clone(),
            last: None,
            entries,
        }
    }

    /// The log without the fields that only the writer knows.
    pub fn seen(&self) -> Self {
        Self { last: None, ..self.clone() }
    }

    pub fn apply(&mut self, record: &Record) {
        match record.clone() {
            Record::Append { index, bytes } => {
                self.entries.insert(index, bytes);
                self.last = Some(index);
            }
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Truncate { from } => {
                self.entries.retain(|index, _| *index < from);
                self.last = self.last.min(from.checked_sub(1));
            }
            Record::Purge(mark) => {
                self.entries.retain(|index, _| *index > mark.index);
                self.last = self.last.max(Some(mark.index));
                self.purged = Some(mark);
            }
            Record::Committed(mark) => self.committed = Some(mark),
        }
    }

    /// One commit that this log allows.
    pub fn random(&self, dice: &mut Dice) -> Vec<Record> {
        let mut model = self.clone();
        let mut records = Vec::new();
        for _ in 0..=dice.below(4) {
            let record = model.random_record(dice);
            model.apply(&record);
            records.push(record);
        }
        records
    }

    fn random_record(&self, dice: &mut Dice) -> Record {
        let index = |mark: &Option<Mark>| mark.as_ref().map(|mark| mark.index);
        let (purged, committed) = (index(&self.purged), index(&self.committed));
        let last = self.last;
        match dice.below(20) {
            0 => Record::Vote(dice.bytes(60)),
            1 => {
                let floor = purged.max(committed).map_or(0, |floor| floor + 1);
                let end = last.map_or(0, |last| last + 1).max(floor);
                Record::Truncate { from: floor + dice.below(end - floor + 1) }
            }
            2..=4 if committed > purged => {
                let low = purged.map_or(0, |purged| purged + 1);
                Record::Purge(mark(low + dice.below(committed.unwrap() - low + 1)))
            }
            // Purge up to a snapshot beyond the log.
            5 if dice.below(6) == 0 => Record::Purge(mark(last.unwrap_or(0) + 5)),
            6..=8 if last > committed => {
                let low = committed.map_or(0, |committed| committed + 1);
                Record::Committed(mark(low + dice.below(last.unwrap() - low + 1)))
            }
            _ => {
                let bytes = dice.bytes(3_000);
                Record::Append { index: last.map_or(1, |last| last + 1), bytes }
            }
        }
    }
}

/// The expected content of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub applied: u64,
    pub compacted: u64,
    pub revision: u64,
    pub pages: BTreeMap<String, Bytes>,
    /// By revision and key.
    pub versions: BTreeMap<(u64, Bytes), Bytes>,
    /// Compacted versions; they may be present or not.
    pub dropped: BTreeSet<(u64, Bytes)>,
}

impl Model {
    pub fn random_checkpoint(&mut self, dice: &mut Dice) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        self.applied += 1 + dice.below(20);
        for _ in 0..dice.below(12) {
            self.revision += 1 + dice.below(2);
            for key in 0..=dice.below(3) {
                let large = dice.below(40) == 0;
                let body = dice.bytes(if large { 200_000 } else { 900 });
                let key = Bytes::from(format!("key{:03}", key * 40 + dice.below(40)));
                let version = Version { revision: self.revision, key: &key, body: &body };
                checkpoint.history.push(version).unwrap();
                self.versions.insert((self.revision, key), body);
            }
        }
        for _ in 0..dice.below(4) {
            let name = format!("page/{:02}", dice.below(30));
            let bytes = (dice.below(5) > 0).then(|| dice.bytes(6_000));
            match &bytes {
                Some(bytes) => self.pages.insert(name.clone(), bytes.clone()),
                None => self.pages.remove(&name),
            };
            checkpoint.pages.push((name, bytes));
        }
        if dice.below(6) == 0 && self.revision > self.compacted {
            self.compacted += dice.below(self.revision - self.compacted + 1);
            self.drop_compacted();
        }
        checkpoint.applied = mark(self.applied);
        checkpoint.compacted = self.compacted;
        checkpoint
    }

    /// Compaction keeps the newest version of each key at the compacted revision.
    fn drop_compacted(&mut self) {
        let mut newest: BTreeMap<Bytes, u64> = BTreeMap::new();
        for (revision, key) in self.versions.keys().filter(|v| v.0 <= self.compacted) {
            newest.insert(key.clone(), *revision);
        }
        let old = self
            .versions
            .keys()
            .filter(|(revision, key)| *revision <= self.compacted && newest[key] != *revision);
        self.dropped.extend(old.cloned().collect::<Vec<_>>());
        self.versions.retain(|version, _| !self.dropped.contains(version));
    }

    pub fn needs(&self, key: &[u8], revision: u64) -> bool {
        self.versions.contains_key(&(revision, Bytes::copy_from_slice(key)))
    }

    /// Checks that `state` holds exactly this model; compacted versions may be missing.
    pub fn check(&self, state: &State) -> Result<(), String> {
        let (mut pages, mut versions) = (BTreeMap::new(), BTreeMap::new());
        let mut last = 0;
        let loaded = state
            .load(|row| {
                match row {
                    Row::Page { name, bytes } => {
                        pages.insert(name.to_owned(), Bytes::copy_from_slice(bytes));
                    }
                    Row::Version(Version { revision, key, body }) => {
                        assert!(revision >= last, "history is in order");
                        last = revision;
                        let version = (revision, Bytes::copy_from_slice(key));
                        if !self.dropped.contains(&version) {
                            versions.insert(version, Bytes::copy_from_slice(body));
                        }
                    }
                }
                Ok::<_, StorageError>(())
            })
            .map_err(|error| error.to_string())?;
        let found = loaded.map_or((0, 0), |l| (l.applied.index, l.compacted));
        if found != (self.applied, self.compacted) {
            return Err(format!("at {found:?}, not {:?}", (self.applied, self.compacted)));
        }
        if pages != self.pages {
            return Err("pages differ".into());
        }
        if versions != self.versions {
            return Err("versions differ".into());
        }
        Ok(())
    }
}
