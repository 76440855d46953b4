//! Offline operations on the data of a stopped member: reads and restores snapshots, compares the
//! survivors of a lost quorum, and makes one of them a new ring.
//!
//! The adversary is haste. An operator who runs these commands has lost data and wants it back at
//! once, so each command first says what it will lose, and refuses what an online command does
//! without loss: a ring with a majority replaces members (`satrap member replace`) instead.
//!
//! # Invariants
//!
//! - **OFFLINE-1** An old directory is never changed: a new one takes its place, and the old one
//!   stays beside it.
//! - **OFFLINE-2** A forced recovery is valid only with enough signatures of operators, over a
//!   record that names the trusted member and the lost ones. Every member verifies them again
//!   (RECOVERY-1 of `satrap_ring_core::recovery`).
//!
//! # Deliberately absent
//!
//! No merging of survivors: two of them may hold different writes at the same revision, and at most
//! one of the two was acknowledged.

mod survey;

use std::{fs, io, path::Path};

use satrap_ring_core::{
    Keyspace, StateSetup,
    kv::{KeyRange, RangeRequest},
    recovery::{RecoveryKind, RecoveryRecord, epoch_at, leap_of},
};
use satrap_ring_storage::{
    StorageError,
    snapshot::{self, FileError},
};
use satrap_runtime::clock;

pub use self::survey::{Survivor, survey};
use crate::{
    disk::{Disk, DiskError, Restored, Rows, read_applied},
    rebuild::{self, RebuildError, Rebuilt, Target},
    setup::{RingSetup, owner},
};

/// A failed offline operation. It changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A snapshot file or the data of a member is unusable.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// The clock is not set, so there is no epoch.
    #[error("the clock of this machine is not set")]
    Clock,
    /// Too few operators signed the forced recovery (OFFLINE-2).
    #[error(
        "the recovery is not signed by enough operators: {have} of {need} that may sign one; give \
         `--operator-key` for each"
    )]
    Unsigned {
        /// Distinct operators whose signatures verify.
        have: usize,
        /// The number that is needed.
        need: usize,
    },
}

impl From<FileError> for OfflineError {
    fn from(error: FileError) -> Self {
        Self::Rebuild(error.into())
    }
}

impl From<DiskError> for OfflineError {
    fn from(error: DiskError) -> Self {
        Self::Rebuild(error.into())
    }
}

impl From<StorageError> for OfflineError {
    fn from(error: StorageError) -> Self {
        Self::Rebuild(error.into())
    }
}

/// A summary of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The ring's id.
    pub ring: [u8; 32],
    /// Digest of the file's content.
    pub digest: [u8; 32],
    /// Digest of the state; members of one ring have the same digest at one index.
    pub state_digest: String,
    /// The newest revision.
    pub revision: i64,
    /// The compacted revision.
    pub compacted: i64,
    /// Live keys.
    pub keys: i64,
    /// Leases.
    pub leases: usize,
    /// Index of the last log entry in it.
    pub index: u64,
    /// The last epoch; 0 if the history was never cut.
    pub epoch: u32,
    /// The voters.
    pub voters: Vec<String>,
}

/// Reads a whole snapshot file, compares every digest, and rebuilds the state in memory.
///
/// # Errors
///
/// [`OfflineError`] names the fault.
pub fn read_snapshot(
    source: &mut impl io::Read,
    config: &StateSetup,
) -> Result<SnapshotFacts, OfflineError> {
    let mut rows = Rows::default();
    let status = snapshot::read::<OfflineError>(source, |row| Ok(rows.take(&row)?))?;
    let voters = read_applied(&status.applied).map_err(DiskError::from)?.membership;
    let voters = voters.voter_ids().map(|name| name.to_string()).collect();
    let restored = rows.restore(&status.applied, config)?;
    let keyspace = restored.state.keyspace();
    Ok(SnapshotFacts {
        ring: status.ring,
        digest: status.digest.unwrap_or_default(),
        state_digest: keyspace.digest().to_string(),
        revision: keyspace.store().revision(),
        compacted: keyspace.store().compacted().max(0),
        keys: live_keys(keyspace),
        leases: keyspace.leases().len(),
        index: status.applied.index,
        epoch: keyspace.epoch(),
        voters,
    })
}

fn live_keys(keyspace: &Keyspace) -> i64 {
    let all = RangeRequest { count_only: true, ..RangeRequest::of(KeyRange::all()) };
    keyspace.store().range(&all).map_or(0, |found| found.count)
}

/// The epoch of a recovery that starts now.
///
/// # Errors
///
/// [`OfflineError::Clock`].
pub fn epoch_now() -> Result<u32, OfflineError> {
    epoch_at(clock::now()).ok_or(OfflineError::Clock)
}

/// Refuses a data directory that holds data or is in use.
///
/// # Errors
///
/// [`OfflineError`].
pub fn check_empty(setup: &RingSetup) -> Result<(), OfflineError> {
    Ok(rebuild::check_empty(&setup.data_dir)?)
}

/// Creates one member of a new ring from a snapshot that [`read_snapshot`] verified. The ring
/// consists of the members in its setup; each is created from the same file and epoch.
///
/// # Errors
///
/// [`OfflineError`]; the directory of this member is unchanged.
pub fn restore(
    path: &Path,
    facts: &SnapshotFacts,
    setup: &RingSetup,
    epoch: u32,
) -> Result<Rebuilt, OfflineError> {
    check_empty(setup)?;
    let mut file = fs::File::open(path).map(io::BufReader::new).map_err(FileError::Io)?;
    let target = Target {
        name: setup.name.clone(),
        owner: owner(setup),
        state: setup.state.clone(),
        data_dir: setup.data_dir.clone(),
        members: setup.members.clone(),
    };
    let rebuilt = rebuild::rebuild(&target, Some(&mut file), &[], |restored| RecoveryRecord {
        reason: format!("snapshot {}", hex(&facts.digest)),
        ..record(RecoveryKind::Restored, epoch, restored)
    })?;
    rebuild::put_in_place(&setup.data_dir, None)?;
    Ok(rebuilt)
}

fn hex(bytes: &[u8]) -> String {
    blake3::Hash::from_slice(bytes).map_or_else(|_| String::new(), |hash| hash.to_string())
}

/// The unsigned record of the history that is cut off after `restored`.
fn record(kind: RecoveryKind, epoch: u32, restored: &Restored) -> RecoveryRecord {
    RecoveryRecord {
        kind,
        epoch,
        kept: restored.state.keyspace().store().revision(),
        leap: leap_of(epoch),
        time: restored.state.keyspace().now(),
        trusted: Vec::new(),
        lost: Vec::new(),
        reason: String::new(),
        signature: Vec::new(),
    }
}

/// An operator's decision in a forced recovery; the trusted member is the one of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// All other members, which are given up.
    pub lost: Vec<String>,
    /// The operator's reason.
    pub reason: String,
    /// Minutes since the Unix epoch, see [`epoch_now`].
    pub epoch: u32,
}

/// The result of a forced recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// The new ring of one member.
    pub rebuilt: Rebuilt,
    /// The signed record.
    pub record: RecoveryRecord,
    /// The new path of the old directory (OFFLINE-1).
    pub aside: std::path::PathBuf,
}

/// Makes the member of `setup` a ring of its own, with all entries on its disk, acknowledged or
/// not.
///
/// # Errors
///
/// [`OfflineError`]; the directory is unchanged.
pub fn force(
    setup: &RingSetup,
    decision: &Decision,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<Forced, OfflineError> {
    let Disk { state, log, mut restored, .. } = survey::disk(setup)?;
    rebuild::replay(&mut restored, &log.entries, u64::MAX);
    let mut signed = RecoveryRecord {
        trusted: vec![setup.name.to_string()],
        lost: decision.lost.clone(),
        reason: decision.reason.clone(),
        ..record(RecoveryKind::Forced, decision.epoch, &restored)
    };
    signed.signature = sign(&signed.signed_bytes());
    let signatories = &setup.state.signatories;
    let (have, need) = (signatories.signers(&signed).len(), signatories.needed);
    if have < need {
        return Err(OfflineError::Unsigned { have, need });
    }
    let name = setup.name.clone();
    let own = setup.members.get(&name).cloned().unwrap_or_default();
    let target = Target {
        name: name.clone(),
        owner: owner(setup),
        state: setup.state.clone(),
        data_dir: setup.data_dir.clone(),
        members: [(name, own)].into(),
    };
    let mut saved = state.reader()?.map(SnapshotStream::new);
    let source = saved.as_mut().map(|stream| stream as &mut dyn io::Read);
    let rebuilt = rebuild::rebuild(&target, source, &log.entries, |_| signed.clone())?;
    let aside = rebuild::beside(&setup.data_dir, &format!("before-{}", decision.epoch));
    rebuild::put_in_place(&setup.data_dir, Some(&aside))?;
    Ok(Forced { rebuilt, record: signed, aside })
}

/// The frames of a snapshot as one stream of bytes.
struct SnapshotStream {
    reader: snapshot::Reader,
    frame: io::Cursor<Vec<u8>>,
}

impl SnapshotStream {
    fn new(reader: snapshot::Reader) -> Self {
        Self { reader, frame: io::Cursor::default() }
    }
}

impl io::Read for SnapshotStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let bytes = self.frame.read(buffer)?;
            if bytes > 0 || buffer.is_empty() {
                return Ok(bytes);
            }
            match self.reader.frame()? {
                Some(frame) => self.frame = io::Cursor::new(frame.bytes),
                None => return Ok(0),
            }
        }
    }
}
