//! What is done to a member that does not run: snapshots are read and restored, survivors of a lost
//! quorum are compared, and one of them is made the ring.
//!
//! The adversary is haste. Whoever runs these verbs has lost something and wants it back at once, so
//! each says first what it will cost and refuses what an online verb does without loss: a ring that
//! still has a majority replaces members (`satrap member replace`), it is not recovered.
//!
//! # Invariants
//!
//! - **F1** An old directory is never changed: a new one takes its place, and the old one stays beside
//!   it.
//! - **F2** A forced recovery counts only with the signatures of as many operators as govern the
//!   realm, over a record that says whose state counts and whose is given up.
//!
//! # Deliberately absent
//!
//! No merging of survivors: two of them may hold different writes at the same revision, and only one
//! of the two was ever acknowledged, if any.

mod survey;

use std::{collections::BTreeSet, fs, io, path::Path};

use satrap_certify::{Genesis, PublicKey};
use satrap_host::clock;
use satrap_regional_core::{
    Keyspace,
    kv::{KeyRange, RangeRequest},
    recovery::{RecoveryKind, RecoveryRecord, epoch_at, leap_of},
};
use satrap_regional_storage::{
    Owner, StorageError,
    snapshot::{self, FileError},
};

pub use self::survey::{Survivor, survey};
use crate::{
    config::Config,
    raft::{
        disk::{Disk, DiskError, Restored, Rows, read_applied},
        rebuild::{self, RebuildError, Rebuilt, Target},
        ring_id,
    },
};

/// Bytes of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A snapshot file, or data of a member.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// No time to make an epoch of.
    #[error("the clock of this machine is not set")]
    Clock,
    /// F2
    #[error(
        "the recovery is not signed by enough operators: {have} of {need} that the genesis lists"
    )]
    Unsigned {
        /// Distinct operators whose signatures verify.
        have: usize,
        /// How many must.
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

/// What a snapshot file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Digest of genesis and region.
    pub ring: [u8; 32],
    /// Digest of the file's content.
    pub digest: [u8; 32],
    /// Of the state; members of one ring at one index have the same.
    pub state_digest: String,
    /// The newest revision.
    pub revision: i64,
    /// Older ones than this are gone.
    pub compacted: i64,
    /// Live keys.
    pub keys: i64,
    /// Leases.
    pub leases: usize,
    /// Index of the last log entry in it.
    pub index: u64,
    /// The last epoch; 0 if the history was never cut.
    pub epoch: u32,
    /// Members that voted.
    pub voters: Vec<String>,
}

/// Reads all of a snapshot file, compares every digest, and rebuilds the state in memory.
///
/// # Errors
///
/// [`OfflineError`] says what is wrong with it.
pub fn read_snapshot(
    source: &mut impl io::Read,
    genesis: &Genesis,
) -> Result<SnapshotFacts, OfflineError> {
    let mut rows = Rows::default();
    let status = snapshot::read::<OfflineError>(source, |row| Ok(rows.take(&row)?))?;
    let voters = read_applied(&status.applied).map_err(DiskError::from)?.1;
    let voters = voters.voter_ids().map(|name| name.to_string()).collect();
    let restored = rows.restore(&status.applied, genesis)?;
    let keyspace = &restored.keyspace;
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

/// Digest of genesis and region of a member, as snapshots carry it.
#[must_use]
pub fn ring_of(config: &Config) -> [u8; 32] {
    ring_id(&config.ring_setup())
}

fn owner(config: &Config) -> Owner {
    Owner { ring: ring_of(config), member: config.name.to_string() }
}

/// The epoch of a recovery that is made now.
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
pub fn check_empty(config: &Config) -> Result<(), OfflineError> {
    Ok(rebuild::check_empty(&config.data_dir)?)
}

/// Makes one member of a new ring from a snapshot that [`read_snapshot`] found good. The ring
/// consists of the members in its configuration; each is made from the same file and epoch.
///
/// # Errors
///
/// [`OfflineError`]; the directory of this member is as it was.
pub fn restore(
    path: &Path,
    facts: &SnapshotFacts,
    config: &Config,
    epoch: u32,
) -> Result<Rebuilt, OfflineError> {
    check_empty(config)?;
    let mut file = fs::File::open(path).map(io::BufReader::new).map_err(FileError::Io)?;
    let target = Target {
        name: (&config.name).into(),
        owner: owner(config),
        genesis: config.genesis.clone(),
        data_dir: config.data_dir.clone(),
        members: config.peer_urls.clone(),
    };
    let rebuilt = rebuild::rebuild(&target, Some(&mut file), &[], |restored| RecoveryRecord {
        reason: format!("snapshot {}", hex(&facts.digest)),
        ..record(RecoveryKind::Restored, epoch, restored)
    })?;
    rebuild::put_in_place(&config.data_dir, None)?;
    Ok(rebuilt)
}

fn hex(bytes: &[u8]) -> String {
    blake3::Hash::from_slice(bytes).map_or_else(|_| String::new(), |hash| hash.to_string())
}

/// A record of what is cut off behind `restored`, with nobody's word for it.
fn record(kind: RecoveryKind, epoch: u32, restored: &Restored) -> RecoveryRecord {
    RecoveryRecord {
        kind,
        epoch,
        kept: restored.keyspace.store().revision(),
        leap: leap_of(epoch),
        time: restored.keyspace.now(),
        trusted: Vec::new(),
        lost: Vec::new(),
        reason: String::new(),
        signature: Vec::new(),
    }
}

/// What an operator decides in a forced recovery; the trusted member is the one of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Every other member.
    pub lost: Vec<String>,
    /// In the operator's words.
    pub reason: String,
    /// Minutes, see [`epoch_now`].
    pub epoch: u32,
}

/// How many operators stand behind the signatures of a record (F2).
#[must_use]
pub fn signers(genesis: &Genesis, record: &RecoveryRecord) -> BTreeSet<String> {
    let bytes = record.signed_bytes();
    let (signatures, _) = record.signature.as_chunks::<SIGNATURE_BYTES>();
    let operators = genesis.governance.operators.values();
    let signed = operators.filter(|operator| {
        let verifies = |signature| PublicKey::verifies(&operator.public, &bytes, signature);
        signatures.iter().any(verifies)
    });
    signed.map(|operator| operator.principal.to_string()).collect()
}

/// What came of a forced recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// The new ring of one.
    pub rebuilt: Rebuilt,
    /// What was signed.
    pub record: RecoveryRecord,
    /// Where the old directory is now (F1).
    pub aside: std::path::PathBuf,
}

/// Makes the member of `config` a ring of its own with all that its disk holds, acknowledged or not.
///
/// # Errors
///
/// [`OfflineError`]; the directory is as it was.
pub fn force(
    config: &Config,
    decision: &Decision,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<Forced, OfflineError> {
    let Disk { state, log, mut restored, .. } = survey::disk(config)?;
    rebuild::replay(&mut restored, &log.entries, u64::MAX);
    let mut signed = RecoveryRecord {
        trusted: vec![config.name.to_string()],
        lost: decision.lost.clone(),
        reason: decision.reason.clone(),
        ..record(RecoveryKind::Forced, decision.epoch, &restored)
    };
    signed.signature = sign(&signed.signed_bytes());
    let (have, need) = (signers(&config.genesis, &signed).len(), approvals(&config.genesis));
    if have < need {
        return Err(OfflineError::Unsigned { have, need });
    }
    let name = config.name.clone();
    let own = config.peer_urls.get(&name).cloned().unwrap_or_default();
    let target = Target {
        name: (&name).into(),
        owner: owner(config),
        genesis: config.genesis.clone(),
        data_dir: config.data_dir.clone(),
        members: [(name, own)].into(),
    };
    let mut saved = state.reader()?.map(SnapshotStream::new);
    let source = saved.as_mut().map(|stream| stream as &mut dyn io::Read);
    let rebuilt = rebuild::rebuild(&target, source, &log.entries, |_| signed.clone())?;
    let aside = rebuild::beside(&config.data_dir, &format!("before-{}", decision.epoch));
    rebuild::put_in_place(&config.data_dir, Some(&aside))?;
    Ok(Forced { rebuilt, record: signed, aside })
}

fn approvals(genesis: &Genesis) -> usize {
    usize::try_from(genesis.governance.approvals).unwrap_or(usize::MAX).max(1)
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
