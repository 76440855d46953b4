//! What a member keeps on disk, and how it is read back.
//!
//! One redb file holds the log, the vote, the newest snapshot and who this member is. The disk may
//! tear, lose or flip what was written, and an operator may start a member on the wrong directory;
//! both must be noticed before the member votes, because a vote given on forgotten state can elect
//! a leader that lacks committed entries.
//!
//! # Invariants
//!
//! - **S1** Every record carries a checksum over its key and bytes, checked on read at start. A bad
//!   record stops the member; it is never skipped.
//! - **S2** The log has no hole: it starts right after what was purged, or at its first entry.
//! - **S3** The directory belongs to one ring and one member. Its instance id is drawn when it is
//!   created, so a member that lost its disk comes back with another one and its peers notice.
//!
//! # Deliberately absent
//!
//! No repair: a damaged member is rebuilt from its peers, not from guesses.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use satrap_certify::Digest;
use satrap_host::{
    rng,
    store::{self, StoreError},
};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{Entry, LogId, MemberName, SnapshotMeta, Vote, decode, encode};
use crate::limits::STORE_CACHE_BYTES;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const PEERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("peers");
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");

const FORMAT: u32 = 1;
const CRC_BYTES: usize = 4;

/// Distinguishes a member from its namesake on another disk.
pub type InstanceId = [u8; 16];

/// Why the data of this member cannot be used. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// From the database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is not what was written (S1, S2).
    #[error("{path}: {what}; move the file away, and let this member rejoin under a new name")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// Which record and what about it.
        what: String,
    },
    /// S3
    #[error(
        "{path} holds the data of member `{member}` of another ring or another member; check \
         `data_dir`, `region`, `name` and `genesis`"
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Whose it is.
        member: MemberName,
    },
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Whose data it is (S3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Digest of genesis and region.
    pub ring: Digest,
    /// The member.
    pub member: MemberName,
}

/// The open database.
#[derive(Debug)]
pub struct Disk {
    database: Database,
    path: PathBuf,
}

/// What was on disk.
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
    /// The instance ids under which peers were first met.
    pub peers: BTreeMap<MemberName, InstanceId>,
}

/// One change, already encoded.
#[derive(Debug)]
pub enum Record {
    /// Sealed entries by index.
    Append(Vec<(u64, Vec<u8>)>),
    /// The new vote.
    Vote(Vote),
    /// A new lower bound of what is committed.
    Committed(LogId),
    /// Remove everything from this index on.
    Truncate(u64),
    /// Remove everything up to here.
    Purge(LogId),
    /// Replace the snapshot.
    Snapshot(SnapshotMeta, Bytes),
    /// Remember a peer.
    Peer(MemberName, InstanceId),
}

impl Disk {
    /// Opens or creates the data of `owner`.
    ///
    /// # Errors
    ///
    /// [`DiskError`]; the member must not start.
    pub fn open(path: &Path, owner: &Owner) -> Result<(Self, Loaded), DiskError> {
        let database = store::open(path, STORE_CACHE_BYTES)?;
        let disk = Self { database, path: path.to_owned() };
        disk.create_tables()?;
        let instance = disk.claim(owner)?;
        let (vote, committed) = (disk.meta("vote")?, disk.meta::<LogId>("committed")?);
        let purged: Option<LogId> = disk.meta("purged")?;
        let entries = disk.read_log(purged.as_ref())?;
        let peers = disk.read_peers()?;
        Ok((disk, Loaded { instance, vote, committed, purged, entries, peers }))
    }

    fn create_tables(&self) -> Result<(), StoreError> {
        store::write(&self.database, |txn| {
            txn.open_table(LOG)?;
            txn.open_table(META)?;
            txn.open_table(PEERS)?;
            txn.open_table(SNAPSHOT)?;
            Ok(())
        })
    }

    /// S3: reads whose data this is, or writes it into a new file.
    fn claim(&self, owner: &Owner) -> Result<InstanceId, DiskError> {
        type Identity = (u32, Digest, MemberName, InstanceId);
        if let Some((format, ring, member, instance)) = self.meta::<Identity>("identity")? {
            if format != FORMAT {
                return Err(self.damaged(format!("format {format}, this release reads {FORMAT}")));
            }
            if (ring, &member) != (owner.ring, &owner.member) {
                return Err(DiskError::Foreign { path: self.path.clone(), member });
            }
            return Ok(instance);
        }
        let mut instance = InstanceId::default();
        rng::fill(&mut instance);
        let identity: Identity = (FORMAT, owner.ring, owner.member.clone(), instance);
        store::write(&self.database, |txn| put_meta(txn, "identity", &identity))?;
        Ok(instance)
    }

    /// Commits `records` in order, all or nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: the process must stop.
    pub fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        store::write(&self.database, |txn| records.iter().try_for_each(|r| r.put(txn)))
    }

    /// The newest snapshot.
    ///
    /// # Errors
    ///
    /// [`DiskError::Damaged`] if its content does not have the digest it was written with.
    pub fn snapshot(&self) -> Result<Option<(SnapshotMeta, Bytes)>, DiskError> {
        let rows = store::read(&self.database, |txn| {
            let table = txn.open_table(SNAPSHOT)?;
            let row = |key| Ok::<_, StoreError>(table.get(key)?.map(|v| v.value().to_vec()));
            Ok::<_, StoreError>(row("header")?.zip(row("content")?))
        })?;
        let Some((header, content)) = rows else { return Ok(None) };
        let (meta, digest): (SnapshotMeta, Digest) =
            self.unseal("snapshot header", b"header", &header)?;
        if blake3::hash(&content) != digest {
            return Err(self.damaged("the snapshot does not have its digest".into()));
        }
        Ok(Some((meta, content.into())))
    }

    fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, DiskError> {
        let row = store::read(&self.database, |txn| {
            let table = txn.open_table(META)?;
            Ok::<_, StoreError>(table.get(key)?.map(|row| row.value().to_vec()))
        })?;
        row.map(|row| self.unseal(key, key.as_bytes(), &row)).transpose()
    }

    /// S1, S2
    fn read_log(&self, purged: Option<&LogId>) -> Result<Vec<(Entry, usize)>, DiskError> {
        let rows = store::read(&self.database, |txn| {
            let table = txn.open_table(LOG)?;
            let rows = table.iter()?.map(|row| row.map(|(k, v)| (k.value(), v.value().to_vec())));
            rows.collect::<Result<Vec<_>, _>>().map_err(StoreError::from)
        })?;
        let mut entries: Vec<(Entry, usize)> = Vec::with_capacity(rows.len());
        let mut next = purged.map(|id| id.index + 1);
        for (index, row) in rows {
            let entry: Entry = self.unseal("log entry", &index.to_be_bytes(), &row)?;
            if entry.log_id.index != index || next.is_some_and(|next| next != index) {
                return Err(self.damaged(format!("log entry {index} is not where it belongs")));
            }
            next = Some(index + 1);
            entries.push((entry, row.len()));
        }
        Ok(entries)
    }

    fn read_peers(&self) -> Result<BTreeMap<MemberName, InstanceId>, DiskError> {
        let rows = store::read(&self.database, |txn| {
            let table = txn.open_table(PEERS)?;
            let rows = table
                .iter()?
                .map(|row| row.map(|(k, v)| (k.value().to_owned(), v.value().to_vec())));
            rows.collect::<Result<Vec<_>, _>>().map_err(StoreError::from)
        })?;
        rows.iter().map(|(name, row)| self.unseal("peer", name.as_bytes(), row)).collect()
    }

    fn unseal<T: DeserializeOwned>(
        &self,
        what: &'static str,
        key: &[u8],
        row: &[u8],
    ) -> Result<T, DiskError> {
        let Some((crc, bytes)) = row.split_first_chunk::<CRC_BYTES>() else {
            return Err(self.damaged(format!("{what} is too short")));
        };
        if u32::from_be_bytes(*crc) != checksum(key, bytes) {
            return Err(self.damaged(format!("{what} {key:?} fails its checksum")));
        }
        decode(what, bytes).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, what: String) -> DiskError {
        DiskError::Damaged { path: self.path.clone(), what }
    }
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(bytes);
    hasher.finalize()
}

fn seal<T: Serialize>(key: &[u8], value: &T) -> Vec<u8> {
    let bytes = encode(value);
    let mut row = checksum(key, &bytes).to_be_bytes().to_vec();
    row.extend_from_slice(&bytes);
    row
}

/// The record of `entry`.
#[must_use]
pub fn seal_entry(entry: &Entry) -> (u64, Vec<u8>) {
    let index = entry.log_id.index;
    (index, seal(&index.to_be_bytes(), entry))
}

fn put_meta<T: Serialize>(
    txn: &WriteTransaction,
    key: &'static str,
    value: &T,
) -> Result<(), StoreError> {
    txn.open_table(META)?.insert(key, seal(key.as_bytes(), value).as_slice())?;
    Ok(())
}

impl Record {
    /// About how many bytes this writes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Append(entries) => entries.iter().map(|(_, row)| row.len()).sum(),
            Self::Snapshot(_, content) => content.len(),
            _ => 64,
        }
    }

    fn put(&self, txn: &WriteTransaction) -> Result<(), StoreError> {
        match self {
            Self::Append(entries) => {
                let mut table = txn.open_table(LOG)?;
                for (index, row) in entries {
                    table.insert(index, row.as_slice())?;
                }
            }
            Self::Vote(vote) => put_meta(txn, "vote", vote)?,
            Self::Committed(id) => put_meta(txn, "committed", id)?,
            Self::Truncate(from) => {
                txn.open_table(LOG)?.retain_in::<u64, _>(*from.., |_, _| false)?
            }
            Self::Purge(upto) => {
                txn.open_table(LOG)?.retain_in::<u64, _>(..=upto.index, |_, _| false)?;
                put_meta(txn, "purged", upto)?;
            }
            Self::Snapshot(meta, content) => {
                let header = (meta, Digest::from(blake3::hash(content)));
                let mut table = txn.open_table(SNAPSHOT)?;
                table.insert("header", seal(b"header", &header).as_slice())?;
                table.insert("content", &content[..])?;
            }
            Self::Peer(name, instance) => {
                let row = seal(name.as_str().as_bytes(), &(name, instance));
                txn.open_table(PEERS)?.insert(name.as_str(), row.as_slice())?;
            }
        }
        Ok(())
    }
}
