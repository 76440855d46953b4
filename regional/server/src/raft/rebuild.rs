//! Makes the data of a new ring from that of an old one: a snapshot, or the disk of a survivor.
//!
//! Either way acknowledged writes may be gone, and nothing brings them back. What is left is to make
//! sure that everybody notices, that all members of the new ring agree, and that an interruption
//! leaves the old data or the new, never a mixture.
//!
//! ```text
//!   snapshot ──┐                                              written beside the directory,
//!              ├─▶ state ─▶ recovery record, full leases ─▶   read again, renamed into its place
//!   survivor's log ──┘
//! ```
//!
//! # Invariants
//!
//! - **B1** The same source and record give the same state, log id and membership on every member,
//!   though each is made on its own machine.
//! - **B2** The term of the new ring is that of the old one plus the epoch, so members that were made
//!   with different records do not agree on the log id; Raft then brings those with the older record
//!   the state of those with the newer.
//! - **B3** Votes and instance ids are not taken over: every member is a new one. Which disks the
//!   others have cannot be known here; the first leader has it recorded.
//! - **B4** The directory appears under its name only once its content has been read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::{EntryPayload, errors::MembershipError, vote::leader_id_std::CommittedLeaderId};
use satrap_certify::{Genesis, Label};
use satrap_host::{files as host_files, rng};
use satrap_regional_core::{
    Batch, Command, Keyspace, Proposal, Refusal, Request, alarm::AlarmRequest,
    members::MemberRequest, recovery::RecoveryRecord,
};
use satrap_regional_storage::{
    Config, InstanceId, Mark, Member, Owner, Record, Reserve, StorageError, WalConfig,
    files::{DirFiles, Files},
    snapshot::{self, Edit, FileError, Restore},
};

use super::{
    disk::{self, Disk, DiskError, Restored, applied_mark},
    members::founder_id,
    types::{Entry, LogId, MemberName, MemberNode, Membership, Vote, encode},
};

/// Why there is no new data. The old data is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The source.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source, or what was written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The recovery is not ahead of what was.
    #[error("{0}; is the clock of this machine right?")]
    Recovery(#[from] Refusal),
    /// The file system, about a directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// There is data already.
    #[error(
        "{path} holds `{name}`; a member is only ever made in an empty directory: move the old one \
         away"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        name: String,
    },
    /// The members contradict each other.
    #[error("members: {0}")]
    Members(#[from] MembershipError<MemberName>),
    /// What was written reads back as something else.
    #[error("{path}: what was written does not read back as it was")]
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

/// The member that is made, and its ring.
#[derive(Clone, Debug)]
pub struct Target {
    /// The member.
    pub name: MemberName,
    /// The same, and its ring.
    pub owner: Owner,
    /// The realm.
    pub genesis: Arc<Genesis>,
    /// Where the data goes.
    pub data_dir: PathBuf,
    /// Who votes in the new ring, and where its peers reach each.
    pub members: BTreeMap<Label, String>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where the log of the new ring begins.
    pub index: u64,
    /// Its first term.
    pub term: u64,
    /// Of the state; equal on all members of the new ring (B1).
    pub digest: String,
    /// The newest revision there is.
    pub revision: i64,
}

/// Applies what a log holds after the state, up to `index`.
pub fn replay(restored: &mut Restored, entries: &[(Entry, usize)], index: u64) {
    for (entry, _) in entries {
        let applied = restored.applied.map_or(0, |id| id.index);
        if entry.log_id.index > index
            || (restored.applied.is_some() && entry.log_id.index <= applied)
        {
            continue;
        }
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                restored.membership = Membership::new(Some(entry.log_id), membership.clone());
            }
            // As a running member does, one that does not decode changes nothing.
            EntryPayload::Normal(payload) => {
                let command = payload.open().map(|(_, bytes)| Command::from_shared(&bytes));
                match command {
                    Some(Ok(Command::Batch(batch))) => drop(restored.keyspace.apply(&batch)),
                    Some(Ok(Command::Adopt { update, now })) => {
                        drop(restored.region.adopt(&update, now));
                    }
                    Some(Err(_)) | None => {}
                }
            }
        }
        restored.applied = Some(entry.log_id);
    }
}

/// Begins the new epoch: nothing but the record and what follows from it is decided here (B1).
fn recover(
    keyspace: &mut Keyspace,
    record: &RecoveryRecord,
    ids: &BTreeSet<u64>,
) -> Result<(), Refusal> {
    let root = keyspace.auth().caller_of_user("root");
    let mut requests = vec![Request::Recovery(record.clone())];
    // Holders may have renewed since, so each has all of its time again.
    requests.extend(keyspace.leases().list().map(|id| Request::LeaseRenew { id }));
    // Whoever was expected or complained in the old ring is not known in the new one.
    let invited = keyspace.members().invited().map(|(id, _)| id);
    let forget = invited.map(|id| Request::Member(MemberRequest::Forget { id }));
    requests.extend(forget);
    let gone = keyspace.alarms().list(None).filter(|alarm| !ids.contains(&alarm.member));
    requests.extend(gone.map(|alarm| Request::Alarm(AlarmRequest::Deactivate(alarm))));
    let proposal = |request| Proposal { caller: root.clone(), request };
    let proposals = requests.into_iter().map(proposal).collect();
    let replies = keyspace.apply(&Batch { time: keyspace.now(), proposals });
    // The rest may find that a lease has ended meanwhile.
    replies.into_iter().next().map_or(Ok(()), |reply| reply.map(drop))
}

/// Makes the data of one member of the new ring from a snapshot and the entries behind it.
///
/// # Errors
///
/// [`RebuildError`]; the old data is as it was.
pub fn rebuild(
    target: &Target,
    source: Option<&mut dyn io::Read>,
    entries: &[(Entry, usize)],
    record: impl FnOnce(&Restored) -> RecoveryRecord,
) -> Result<Rebuilt, RebuildError> {
    let Target { owner, genesis, data_dir, members, .. } = target;
    let staging = beside(data_dir, "rebuilding");
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&staging)(error)),
        _ => {}
    }
    let mut instance = InstanceId::default();
    // B3
    rng::fill(&mut instance);
    let files: Arc<dyn Files> = Arc::new(DirFiles::open(&staging).map_err(at(&staging))?);
    if let Some(mut source) = source {
        let (reserve, wal) = (
            Arc::new(Reserve::open(files.clone(), Config::default().space)?),
            WalConfig::default(),
        );
        let (files, owner, ring) = (files.clone(), owner.clone(), Some(owner.ring));
        let restore = Restore { files, reserve, owner, instance, ring, wal };
        snapshot::restore(&mut source, &restore, |status, _| {
            Ok(Edit { applied: status.applied.clone(), pages: Vec::new() })
        })?;
    }
    let Member { mut wal, state, .. } =
        Member::open(files.clone(), Config::default(), owner, instance)?;
    let mut restored = disk::load(&state, genesis)?;
    replay(&mut restored, entries, u64::MAX);
    let record = record(&restored);
    let node = |(name, url): (&Label, &String)| {
        let name = MemberName::from(name);
        let id = founder_id(&owner.ring, &name);
        (name, MemberNode { id, url: url.clone(), learner: false, ..MemberNode::default() })
    };
    let nodes: BTreeMap<_, _> = members.iter().map(node).collect();
    recover(&mut restored.keyspace, &record, &nodes.values().map(|node| node.id).collect())?;
    let (term, index) = restored.applied.map_or((0, 0), |id| {
        // B2
        (id.committed_leader_id().term, id.index)
    });
    let (term, index) = (term + u64::from(record.epoch), index + 1);
    let applied = LogId::new(CommittedLeaderId::new(term), index);
    let voters = nodes.keys().cloned().collect();
    let membership = openraft::Membership::new(vec![voters], nodes)?;
    let mark = applied_mark(Some(applied), &Membership::new(Some(applied), membership));
    let changes = restored.keyspace.take_changes();
    let compacted = restored.keyspace.store().compacted().max(0).cast_unsigned();
    state.checkpoint(&disk::checkpoint(mark, compacted, changes, Some(&restored.region))?)?;
    let vote = encode(&Vote::new(term, target.name.clone())).into();
    let purged = Mark { index, id: encode(&applied).into() };
    wal.commit(&[Record::Vote(vote), Record::Purge(purged)])?;
    wal.seal()?;
    drop((wal, state));
    let digest = restored.keyspace.digest();
    let again = Disk::open(files, Config::default(), owner, instance, genesis)?;
    if again.restored.keyspace.digest() != digest || again.log.purged != Some(applied) {
        return Err(RebuildError::ReadBack { path: staging });
    }
    let revision = again.restored.keyspace.store().revision();
    Ok(Rebuilt { index, term, digest: digest.to_string(), revision })
}

/// A sibling of a directory.
#[must_use]
pub fn beside(directory: &Path, suffix: &str) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{name}.{suffix}"))
}

/// Names that say nothing about a member: what every start leaves.
const LEFTOVERS: [&str; 2] = ["lock", "reserve"];

/// Whether a member can be made in a directory: it holds no data, and no process uses it.
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

/// Gives what [`rebuild`] made its name (B4); what has that name now becomes `aside`, or must be
/// empty.
///
/// # Errors
///
/// From the file system; the data is then under one name or the other.
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
