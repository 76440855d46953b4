//! What a member finds on its disk when it starts, and how the state is written there and read back.
//!
//! The log (`satrap-regional-storage`'s WAL) holds votes and entries; beside it lies the state as of
//! the last checkpoint. A member starts from the checkpoint and applies what the log has after it.
//!
//! # Invariants
//!
//! - **S1** Nothing read is used before its digest matched; the storage checks that.
//! - **S3** The directory belongs to one ring, one member and one instance. A member that lost its
//!   disk comes back with another instance id, and its peers notice.
//! - **S4** The certified replica in a checkpoint is verified again like a stranger's, whether it
//!   comes from the own disk or from a peer.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use satrap_certify::{Genesis, Rejection};
use satrap_host::{Fault, Unusable};
use satrap_merkle::codec::{DecodeError, Reader, Writer};
use satrap_regional_core::{
    Keyspace, Region,
    keyspace::{Changes, Pages, RestoreError},
    kv::{Event, KeyValue, Stamp},
};
use satrap_regional_storage::{
    Checkpoint, Config, History, InstanceId, Mark, Member, Owner, Reserve, Row, State,
    StorageError, Version, Wal, files::Files, snapshot::Received,
};

use super::types::{CodecError, Entry, LogId, Membership, Vote, decode, encode};

/// The page of the certified replica; all others are the keyspace's.
const REGION_PAGE: &str = "region";

/// Why the data of this member cannot be used. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// From the files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory cannot be used.
    #[error("data directory: {0}")]
    Directory(#[from] io::Error),
    /// A record is of another release.
    #[error("{0}; run the release that wrote this data")]
    Codec(#[from] CodecError),
    /// The state contradicts itself.
    #[error("the stored state is not one ({0}); replace this member (`satrap member replace`)")]
    State(#[from] RestoreError),
    /// S4
    #[error("the stored replica does not verify: {0}")]
    Replica(Rejection),
    /// A version or a page does not decode.
    #[error("the stored state does not decode: {0}")]
    Decode(#[from] DecodeError),
}

impl DiskError {
    /// The same, as a fault of the setting `data_dir`.
    #[must_use]
    pub fn unusable(self, data_dir: &Path) -> Unusable {
        let fault = match &self {
            Self::Directory(error) => return Unusable::directory("data_dir", data_dir, error),
            Self::Storage(StorageError::Foreign { .. }) | Self::Codec(_) => Fault::Setting,
            _ => Fault::Machine,
        };
        let full = matches!(&self, Self::Storage(error) if error.is_full());
        let remedy = match (&self, full) {
            (_, true) => "free space on the disk, see deploy/runbooks/disk-full.md",
            (Self::Storage(StorageError::Damaged { .. }) | Self::State(_), _) => {
                "see deploy/runbooks/corrupt-member.md"
            }
            (Self::Storage(StorageError::Foreign { .. }) | Self::Codec(_), _) => {
                "nothing in it was changed"
            }
            (Self::Replica(_) | Self::Decode(_), _) => {
                "replace this member (`satrap member replace`)"
            }
            _ => "check the disk (`dmesg`)",
        };
        Unusable::new("data_dir", fault, format!("{}: {self}", data_dir.display()), remedy)
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// The open directory.
pub struct Disk {
    /// The log.
    pub wal: Wal,
    /// The state.
    pub state: Arc<State>,
    /// Notices a full disk early.
    pub reserve: Arc<Reserve>,
    /// What the log holds.
    pub log: Loaded,
    /// What the state was at the last checkpoint.
    pub restored: Restored,
}

/// What the log held.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Of this directory (S3).
    pub instance: InstanceId,
    /// The last vote.
    pub vote: Option<Vote>,
    /// A lower bound of what is committed.
    pub committed: Option<LogId>,
    /// Everything up to here was removed.
    pub purged: Option<LogId>,
    /// The log with the bytes of each record.
    pub entries: Vec<(Entry, usize)>,
}

/// Both states of a ring and how far they got.
#[derive(Debug)]
pub struct Restored {
    /// Verified again (S4).
    pub region: Region,
    /// The coordination state.
    pub keyspace: Keyspace,
    /// The last entry in them.
    pub applied: Option<LogId>,
    /// The membership at that entry.
    pub membership: Membership,
}

impl Restored {
    /// Before any entry.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        Self {
            region: Region::genesis(genesis),
            keyspace: Keyspace::new(),
            applied: None,
            membership: Membership::default(),
        }
    }
}

impl Disk {
    /// Opens or creates the data of `owner` in `files`; `fresh` becomes the instance of a directory
    /// that is created.
    ///
    /// # Errors
    ///
    /// [`DiskError`]; the member must not start.
    pub fn open(
        files: Arc<dyn Files>,
        config: Config,
        owner: &Owner,
        fresh: InstanceId,
        genesis: &Genesis,
    ) -> Result<Self, DiskError> {
        let Member { reserve, wal, recovered, state } = Member::open(files, config, owner, fresh)?;
        if let Some(cut) = &recovered.cut {
            tracing::warn!(?cut, "the log ended in a write that was never acknowledged");
        }
        let restored = load(&state, genesis)?;
        let id = |mark: Option<Mark>| mark.map(|mark| decode("log id", &mark.id)).transpose();
        let entries = recovered.entries.into_iter().map(|(_, bytes)| {
            let entry: Entry = decode("log entry", &bytes)?;
            Ok((entry, bytes.len()))
        });
        let log = Loaded {
            instance: recovered.instance,
            vote: recovered.vote.map(|vote| decode("vote", &vote)).transpose()?,
            committed: id(recovered.committed)?,
            purged: id(recovered.purged)?,
            entries: entries.collect::<Result<_, CodecError>>()?,
        };
        Ok(Self { wal, state: Arc::new(state), reserve, log, restored })
    }
}

/// Reads a state back, from the own disk or one that was received.
///
/// # Errors
///
/// [`DiskError`] says what about it is wrong.
pub fn load(state: &State, genesis: &Genesis) -> Result<Restored, DiskError> {
    let mut rows = Rows::default();
    let loaded = state.load::<DiskError>(|row| rows.take(&row))?;
    match loaded {
        Some(loaded) => rows.restore(&loaded.applied, genesis),
        None => Ok(Restored::genesis(genesis)),
    }
}

/// Reads a snapshot that has arrived beside `state`, before it is put in place.
///
/// # Errors
///
/// As [`load`].
pub fn load_received(
    state: &State,
    received: &Received,
    genesis: &Genesis,
) -> Result<Restored, DiskError> {
    let mut rows = Rows::default();
    let loaded = state.load_received::<DiskError>(received, |row| rows.take(&row))?;
    loaded.map_or(Ok(Restored::genesis(genesis)), |loaded| rows.restore(&loaded.applied, genesis))
}

/// The rows of a state while they are read.
#[derive(Default)]
pub struct Rows {
    pages: Pages,
    events: Vec<Event>,
}

impl Rows {
    /// Takes the next row.
    ///
    /// # Errors
    ///
    /// [`DiskError::Decode`].
    pub fn take(&mut self, row: &Row<'_>) -> Result<(), DiskError> {
        match row {
            Row::Page { name, bytes } => {
                self.pages.insert((*name).to_owned(), bytes.to_vec());
            }
            Row::Version(version) => self.events.push(Arc::new(read_version(version)?)),
        }
        Ok(())
    }

    /// Makes a state of all rows (S4).
    ///
    /// # Errors
    ///
    /// [`DiskError`] says what about them is wrong.
    pub fn restore(mut self, applied: &Mark, genesis: &Genesis) -> Result<Restored, DiskError> {
        let (applied, membership) = decode("applied mark", &applied.id)?;
        let region = match self.pages.remove(REGION_PAGE) {
            Some(page) => Region::restore(genesis, &page).map_err(DiskError::Replica)?,
            None => Region::genesis(genesis),
        };
        let keyspace = Keyspace::restore(&self.pages, self.events.into_iter())?;
        Ok(Restored { region, keyspace, applied, membership })
    }
}

/// What a checkpoint covers, as the storage keeps it.
#[must_use]
pub fn applied_mark(applied: Option<LogId>, membership: &Membership) -> Mark {
    let index = applied.map_or(0, |id| id.index);
    Mark { index, id: encode(&(applied, membership)).into() }
}

/// Reads an [`applied_mark`].
///
/// # Errors
///
/// [`CodecError`] if another release wrote it.
pub fn read_applied(mark: &Mark) -> Result<(Option<LogId>, Membership), CodecError> {
    decode("applied mark", &mark.id)
}

/// What has changed, ready to be stored; `region` if the replica did.
///
/// # Errors
///
/// [`StorageError`] if a version or page is larger than the storage takes.
pub fn checkpoint(
    applied: Mark,
    compacted: u64,
    changes: Changes,
    region: Option<&Region>,
) -> Result<Checkpoint, StorageError> {
    let mut history = History::default();
    for event in &changes.events {
        let body = version_body(event);
        let revision = event.mod_revision.cast_unsigned();
        history.push(Version { revision, key: event.key(), body: &body })?;
    }
    let mut pages: Vec<(String, Option<Bytes>)> =
        changes.pages.into_iter().map(|(name, page)| (name, Some(page.into()))).collect();
    pages.extend(region.map(|region| (REGION_PAGE.to_owned(), Some(region.snapshot().into()))));
    Ok(Checkpoint { applied, compacted, history, pages })
}

/// All of a version but its key and main revision.
fn version_body(kv: &KeyValue) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(kv.sub_revision);
    for number in [kv.create_revision, kv.version, kv.lease] {
        w.u64(number.cast_unsigned());
    }
    w.encoded(kv.value());
    w.finish()
}

fn read_version(version: &Version<'_>) -> Result<KeyValue, DecodeError> {
    let mut r = Reader::new(version.body);
    let sub_revision = r.u32()?;
    let mut number = || r.u64().map(u64::cast_signed);
    let stamp = Stamp {
        sub_revision,
        mod_revision: version.revision.cast_signed(),
        create_revision: number()?,
        version: number()?,
        lease: number()?,
    };
    let value = &version.body[version.body.len() - r.remaining()..];
    Ok(KeyValue::new(version.key, value, stamp))
}
