//! Builds the data of a new ring from old data: from a snapshot, or from the disk of a survivor.
//!
//! Either way acknowledged writes may be lost for good. So the rebuild makes sure that clients and
//! members notice, that all members of the new ring agree, and that an interruption leaves either
//! the old data or the new.
//!
//! ```text
//!   snapshot ──┐                                              written beside the directory,
//!              ├─▶ state ─▶ recovery record, full leases ─▶   read again, renamed into its place
//!   survivor's log ──┘
//! ```
//!
//! # Invariants
//!
//! - **REBUILD-1** The same source and record give the same state, log id and membership on every
//!   member, although each is built on its own machine.
//! - **REBUILD-2** The term of the new ring is that of the old one plus the epoch, so members that
//!   were built with different records do not agree on the log id; Raft then replaces the state of
//!   those with the older record by that of those with the newer.
//! - **REBUILD-3** Votes and instance ids are not taken over: every member is a new one. The disks
//!   of the other members are unknown here; the first leader records them.
//! - **REBUILD-4** The directory appears under its name only once its content has been read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::{errors::MembershipError, vote::leader_id_std::CommittedLeaderId};
use satrap_ring_api::refusal;
use satrap_ring_core::{
    AppliedState, Batch, Command, Entry as StateEntry, Proposal, Refusal, Request, StateSetup,
    alarm::AlarmRequest, members::MemberRequest, recovery::RecoveryRecord,
};
use satrap_ring_storage::{
    Config, InstanceId, Mark, Member, Owner, Record, Reserve, StorageError, WalConfig,
    files::{DirFiles, Files},
    snapshot::{self, FileError, Restore},
};
use satrap_runtime::{files as host_files, rng};

use super::{
    disk::{self, Disk, DiskError, Position, Restored, applied_mark},
    members::founder_id,
    types::{Entry, LogId, MemberName, MemberNode, Membership, Vote, encode},
};

/// A failed rebuild. The old data is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The source cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source is unusable, or the new data cannot be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The epoch of the recovery is not above the last one.
    #[error("{}; is the clock of this machine right?", refusal::text(.0))]
    Recovery(Refusal),
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The directory holds data already.
    #[error(
        "{path} holds `{name}`; a member is only ever made in an empty directory: move the old one \
         away"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// A file in the directory.
        name: String,
    },
    /// The membership is invalid.
    #[error("members: {0}")]
    Members(#[from] MembershipError<MemberName>),
    /// The new data does not read back as it was written.
    #[error("{path}: the new data does not read back as it was written; check the disk")]
    ReadBack {
        /// The directory.
        path: PathBuf,
    },
}

impl From<StorageError> for RebuildError {
    fn from(error: StorageError) -> Self {
        Self::Disk(error.into())
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RebuildError {
    let path = path.to_owned();
    move |source| RebuildError::Io { path, source }
}

/// The member to create, and its ring.
#[derive(Clone, Debug)]
pub struct Target {
    /// The member's name.
    pub name: MemberName,
    /// The owner of the data.
    pub owner: Owner,
    /// The initial state of its members.
    pub state: StateSetup,
    /// The directory for the data.
    pub data_dir: PathBuf,
    /// The voters of the new ring, with their peer URLs.
    pub members: BTreeMap<MemberName, String>,
}

/// The result of a rebuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The index at which the log of the new ring begins.
    pub index: u64,
    /// The first term of the new ring.
    pub term: u64,
    /// Digest of the state; equal on all members of the new ring (REBUILD-1).
    pub digest: String,
    /// The newest revision.
    pub revision: i64,
}

/// Applies the entries of a log after the state, up to `index`.
pub fn replay(restored: &mut Restored, entries: &[(Entry, usize)], index: u64) {
    let applied = restored.position.applied.map(|id| id.index);
    let is_new = |entry: &Entry| applied.is_none_or(|applied| applied < entry.log_id.index);
    for (entry, _) in entries {
        if entry.log_id.index <= index && is_new(entry) {
            drop(restored.apply(entry));
        }
    }
}

/// Applies the record that begins the new epoch, with only the requests that follow from it
/// (REBUILD-1).
fn recover(
    state: &mut AppliedState,
    record: &RecoveryRecord,
    ids: &BTreeSet<u64>,
) -> Result<(), Refusal> {
    state.recover(record)?;
    let keyspace = state.keyspace();
    let root = keyspace.auth().caller_of_user("root");
    // Clients may have renewed leases since, so restore each lease to its full TTL.
    let mut requests: Vec<_> =
        keyspace.leases().list().map(|id| Request::LeaseRenew { id }).collect();
    // Invitations and alarms of the old ring do not apply to the new one.
    let invited = keyspace.members().invited().map(|(id, _)| id);
    let forget = invited.map(|id| Request::Member(MemberRequest::Forget { id }));
    requests.extend(forget);
    let gone = keyspace.alarms().list(None).filter(|alarm| !ids.contains(&alarm.member));
    requests.extend(gone.map(|alarm| Request::Alarm(AlarmRequest::Deactivate(alarm))));
    let proposal = |request| Proposal { caller: root.clone(), request };
    let proposals = requests.into_iter().map(proposal).collect();
    let batch = Batch { time: keyspace.now(), proposals };
    // A lease may have ended meanwhile; the state then refuses its renewal.
    drop(state.apply(StateEntry::Command(Ok(Command::Batch(batch)))));
    Ok(())
}

/// Builds the data of one member of the new ring from a snapshot and the entries after it.
///
/// # Errors
///
/// [`RebuildError`]; the old data is unchanged.
pub fn rebuild(
    target: &Target,
    source: Option<&mut dyn io::Read>,
    entries: &[(Entry, usize)],
    record: impl FnOnce(&Restored) -> RecoveryRecord,
) -> Result<Rebuilt, RebuildError> {
    let Target { owner, state: config, data_dir, members, .. } = target;
    let staging = beside(data_dir, "rebuilding");
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&staging)(error)),
        _ => {}
    }
    let mut instance = InstanceId::default();
    // REBUILD-3
    rng::fill(&mut instance);
    let files: Arc<dyn Files> = Arc::new(DirFiles::open(&staging).map_err(at(&staging))?);
    if let Some(mut source) = source {
        let (reserve, wal) = (
            Arc::new(Reserve::open(files.clone(), Config::default().space)?),
            WalConfig::default(),
        );
        let (files, owner, ring) = (files.clone(), owner.clone(), Some(owner.ring));
        let restore = Restore { files, reserve, owner, instance, ring, wal };
        snapshot::restore(&mut source, &restore)?;
    }
    let Member { mut wal, state, .. } =
        Member::open(files.clone(), Config::default(), owner, instance)?;
    let mut restored = disk::load(&state, config)?;
    replay(&mut restored, entries, u64::MAX);
    let record = record(&restored);
    let node = |(name, url): (&MemberName, &String)| {
        let id = founder_id(&owner.ring, name);
        (name.clone(), MemberNode { id, url: url.clone(), learner: false, ..MemberNode::default() })
    };
    let nodes: BTreeMap<_, _> = members.iter().map(node).collect();
    recover(&mut restored.state, &record, &nodes.values().map(|node| node.id).collect())
        .map_err(RebuildError::Recovery)?;
    let (term, index) = restored.position.applied.map_or((0, 0), |id| {
        // REBUILD-2
        (id.committed_leader_id().term, id.index)
    });
    let (term, index) = (term + u64::from(record.epoch), index + 1);
    let applied = LogId::new(CommittedLeaderId::new(term), index);
    let voters = nodes.keys().cloned().collect();
    let membership = openraft::Membership::new(vec![voters], nodes)?;
    let membership = Membership::new(Some(applied), membership);
    let mark = applied_mark(&Position { applied: Some(applied), membership });
    let changes = restored.state.take_changes();
    let compacted = restored.state.keyspace().store().compacted().max(0).cast_unsigned();
    state.checkpoint(&disk::checkpoint(mark, compacted, changes)?)?;
    let vote = encode(&Vote::new(term, target.name.clone())).into();
    let purged = Mark { index, id: encode(&applied).into() };
    wal.commit(&[Record::Vote(vote), Record::Purge(purged)])?;
    wal.seal()?;
    drop((wal, state));
    let digest = restored.state.keyspace().digest();
    let again = Disk::open(files, Config::default(), owner, instance, config)?;
    if again.restored.state.keyspace().digest() != digest || again.log.purged != Some(applied) {
        return Err(RebuildError::ReadBack { path: staging });
    }
    let revision = again.restored.state.keyspace().store().revision();
    Ok(Rebuilt { index, term, digest: digest.to_string(), revision })
}

/// A path beside a directory.
#[must_use]
pub fn beside(directory: &Path, suffix: &str) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{name}.{suffix}"))
}

/// Files that every start leaves, even without data.
const LEFTOVERS: [&str; 2] = ["lock", "reserve"];

/// Checks that a member can be created in a directory: it holds no data, and no process uses it.
///
/// # Errors
///
/// [`RebuildError::NotEmpty`], or from the file system.
pub fn check_empty(directory: &Path) -> Result<(), RebuildError> {
    if !directory.try_exists().map_err(at(directory))? {
        return Ok(());
    }
    let files = DirFiles::open(directory).map_err(at(directory))?;
    let names = files.list().map_err(at(directory))?;
    match names.into_iter().find(|name| !LEFTOVERS.contains(&name.as_str())) {
        Some(name) => Err(RebuildError::NotEmpty { path: directory.to_owned(), name }),
        None => Ok(()),
    }
}

/// Renames the result of [`rebuild`] to its final name (REBUILD-4). An existing directory there is
/// moved to `aside`, or must be empty.
///
/// # Errors
///
/// From the file system; the data is then under one of the two names.
pub fn put_in_place(directory: &Path, aside: Option<&Path>) -> Result<(), RebuildError> {
    match aside {
        Some(aside) => fs::rename(directory, aside).map_err(at(aside))?,
        None if directory.try_exists().map_err(at(directory))? => {
            check_empty(directory)?;
            fs::remove_dir_all(directory).map_err(at(directory))?;
        }
        None => {}
    }
    fs::rename(beside(directory, "rebuilding"), directory).map_err(at(directory))?;
    let parent = host_files::parent(directory);
    host_files::sync_directory(parent).map_err(at(parent))
}
