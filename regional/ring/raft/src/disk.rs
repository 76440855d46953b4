//! A member's data directory: read when it starts, and the encoding of the state in checkpoints.
//!
//! The WAL of `satrap-ring-storage` holds votes and entries; beside it lies the state as of the
//! last checkpoint. A member starts from the checkpoint and applies the later entries of the log.
//!
//! # Invariants
//!
//! - **DISK-1** No data is used before its digest matched; the storage checks that.
//! - **DISK-3** The directory belongs to one ring, one member and one instance. A member that lost
//!   its disk starts with another instance id, so its peers detect the loss.
//! - **DISK-4** The state in a checkpoint is validated like untrusted data, whether it comes from
//!   this member's disk or from a peer.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use openraft::EntryPayload;
use satrap_merkle::codec::{DecodeError, Reader, Writer};
use satrap_ring_core::{
    AppliedState, Extension, Outcome, StateChanges, StateSetup,
    keyspace::{Pages, RestoreError},
    kv::{Event, KeyValue, Stamp},
};
use satrap_ring_storage::{
    Checkpoint, Config, History, InstanceId, Mark, Member, Owner, Reserve, Row, State,
    StorageError, Version, Wal, files::Files, snapshot::Received,
};
use satrap_runtime::{Fault, Unusable};

use super::types::{
    CodecError, Entry, LogId, MemberName, MemberNode, Membership, Payload, Vote, decode, encode,
    state_entry,
};

/// This member cannot use its data. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory cannot be used.
    #[error("data directory: {0}")]
    Directory(#[from] io::Error),
    /// Another release wrote a record.
    #[error("{0}; run the release that wrote this data")]
    Codec(#[from] CodecError),
    /// The state is inconsistent.
    #[error("stored state is invalid ({0}); replace this member (`satrap member replace`)")]
    State(#[from] RestoreError),
    /// A version or a page cannot be decoded.
    #[error("stored state does not decode: {0}")]
    Decode(#[from] DecodeError),
}

impl DiskError {
    /// Turns the error into a fault of the setting `data_dir`.
    #[must_use]
    pub fn unusable(self, data_dir: &Path) -> Unusable {
        let fault = match &self {
            Self::Directory(error) => return Unusable::directory("data_dir", data_dir, error),
            Self::Storage(StorageError::Foreign { .. } | StorageError::Format { .. })
            | Self::Codec(_) => Fault::Setting,
            _ => Fault::Machine,
        };
        let full = matches!(&self, Self::Storage(error) if error.is_full());
        let remedy = match (&self, full) {
            (_, true) => "free space on the disk, see deploy/runbooks/disk-full.md",
            (Self::Storage(StorageError::Damaged { .. }) | Self::State(_), _) => {
                "see deploy/runbooks/corrupt-member.md"
            }
            (
                Self::Storage(StorageError::Foreign { .. } | StorageError::Format { .. })
                | Self::Codec(_),
                _,
            ) => "no data was changed",
            (Self::Decode(_), _) => "replace this member (`satrap member replace`)",
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

/// The open data directory.
pub struct Disk {
    /// The log.
    pub wal: Wal,
    /// The state.
    pub state: Arc<State>,
    /// The reserve, which detects a full disk early.
    pub reserve: Arc<Reserve>,
    /// The content of the log.
    pub log: Loaded,
    /// The state at the last checkpoint.
    pub restored: Restored,
}

/// The content of the log when it was opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The instance id of this directory (DISK-3).
    pub instance: InstanceId,
    /// The last vote.
    pub vote: Option<Vote>,
    /// A lower bound of the committed entries.
    pub committed: Option<LogId>,
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The entries, each with the size of its record.
    pub entries: Vec<(Entry, usize)>,
}

/// The position of a state in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last applied entry.
    pub applied: Option<LogId>,
    /// The membership as of that entry.
    pub membership: Membership,
}

impl Position {
    /// Advances to an entry that was applied.
    pub fn pass(&mut self, log_id: LogId, payload: &EntryPayload<Payload, MemberName, MemberNode>) {
        if let EntryPayload::Membership(membership) = payload {
            self.membership = Membership::new(Some(log_id), membership.clone());
        }
        self.applied = Some(log_id);
    }
}

/// The applied state of a member, read from its disk or from a snapshot.
#[derive(Debug)]
pub struct Restored {
    /// The validated state (DISK-4).
    pub state: AppliedState,
    /// The position of the state.
    pub position: Position,
}

impl Restored {
    /// The state before any entry.
    #[must_use]
    pub fn new(config: &StateSetup) -> Self {
        Self { state: AppliedState::new(config), position: Position::default() }
    }

    /// Applies an entry in the same way as a running member.
    pub fn apply(&mut self, entry: &Entry) -> Outcome {
        let outcome = self.state.apply(state_entry(&entry.payload));
        self.position.pass(entry.log_id, &entry.payload);
        outcome
    }
}

impl Disk {
    /// Opens or creates the data of `owner` in `files`; `fresh` becomes the instance id of a
    /// directory that is created.
    ///
    /// # Errors
    ///
    /// [`DiskError`]; the member must not start.
    pub fn open(
        files: Arc<dyn Files>,
        config: Config,
        owner: &Owner,
        fresh: InstanceId,
        state: &StateSetup,
    ) -> Result<Self, DiskError> {
        let Member { reserve, wal, recovered, state: stored } =
            Member::open(files, config, owner, fresh)?;
        if let Some(cut) = &recovered.cut {
            tracing::warn!(?cut, "removed an unacknowledged write from the end of the log");
        }
        let restored = load(&stored, state)?;
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
        Ok(Self { wal, state: Arc::new(stored), reserve, log, restored })
    }
}

/// Loads the state from this member's disk.
///
/// # Errors
///
/// [`DiskError`] names the fault.
pub fn load(stored: &State, config: &StateSetup) -> Result<Restored, DiskError> {
    let mut rows = Rows::default();
    let loaded = stored.load::<DiskError>(|row| rows.take(&row))?;
    match loaded {
        Some(loaded) => rows.restore(&loaded.applied, config),
        None => Ok(Restored::new(config)),
    }
}

/// Loads a snapshot that has arrived beside `stored`, before it is put in place.
///
/// # Errors
///
/// As [`load`].
pub fn load_received(
    stored: &State,
    received: &Received,
    config: &StateSetup,
) -> Result<Restored, DiskError> {
    let mut rows = Rows::default();
    let loaded = stored.load_received::<DiskError>(received, |row| rows.take(&row))?;
    loaded.map_or_else(|| Ok(Restored::new(config)), |loaded| rows.restore(&loaded.applied, config))
}

/// The rows of a state that is being read.
#[derive(Default)]
pub struct Rows {
    pages: Pages,
    events: Vec<Event>,
}

impl Rows {
    /// Adds the next row.
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

    /// Validates all rows and builds the state (DISK-4).
    ///
    /// # Errors
    ///
    /// [`DiskError`] names the fault.
    pub fn restore(self, applied: &Mark, config: &StateSetup) -> Result<Restored, DiskError> {
        let position = read_applied(applied)?;
        let members = position.membership.nodes().map(|(_, node)| node.id).collect();
        let Self { pages, events } = self;
        let state = AppliedState::restore(config, members, pages, events.into_iter())?;
        Ok(Restored { state, position })
    }
}

/// Encodes the position of a checkpoint for the storage.
#[must_use]
pub fn applied_mark(position: &Position) -> Mark {
    let Position { applied, membership } = position;
    let index = applied.map_or(0, |id| id.index);
    Mark { index, id: encode(&(applied, membership)).into() }
}

/// Decodes an [`applied_mark`].
///
/// # Errors
///
/// [`CodecError`] if another release wrote it.
pub fn read_applied(mark: &Mark) -> Result<Position, CodecError> {
    let (applied, membership) = decode("applied mark", &mark.id)?;
    Ok(Position { applied, membership })
}

/// Builds the checkpoint that stores `changes`.
///
/// # Errors
///
/// [`StorageError`] if a version or page is over the storage's limit.
pub fn checkpoint(
    applied: Mark,
    compacted: u64,
    changes: StateChanges,
) -> Result<Checkpoint, StorageError> {
    let StateChanges { keyspace: changes, extensions } = changes;
    let mut history = History::default();
    for event in &changes.events {
        let body = version_body(event);
        let revision = event.mod_revision.cast_unsigned();
        history.push(Version { revision, key: event.key(), body: &body })?;
    }
    let mut pages: Vec<(String, Option<Bytes>)> =
        changes.pages.into_iter().map(|(name, page)| (name, Some(page.into()))).collect();
    let snapshot = |(page, extension): (&str, Arc<dyn Extension>)| {
        (page.to_owned(), Some(extension.snapshot().into()))
    };
    pages.extend(extensions.into_iter().map(snapshot));
    Ok(Checkpoint { applied, compacted, history, pages })
}

/// The encoding of a version without its key and main revision.
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
