//! Surveys the disk of a survivor of a lost quorum: the extent of its log, and the digests of its
//! state.

use std::{collections::BTreeSet, io, sync::Arc};

use satrap_ring_storage::{Config as StorageConfig, InstanceId, files::DirFiles};

use super::OfflineError;
use crate::{
    disk::Disk,
    rebuild::{RebuildError, replay},
    setup::{RingSetup, owner},
    types::LogId,
};

/// One survivor.
///
/// Its log ends at `last_index`, and it knows that everything up to `committed_index` was
/// acknowledged or could have been. The entries between the two are in its log, and it never learned
/// whether they were committed: another majority may have acknowledged them. It never received the
/// entries after `last_index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its name.
    pub member: String,
    /// Its instance id, hex.
    pub instance: String,
    /// The last term it voted in.
    pub term: u64,
    /// The candidate it voted for, if any.
    pub voted_for: Option<String>,
    /// The first entry of its log.
    pub first_index: u64,
    /// The last entry of its log.
    pub last_index: u64,
    /// The term of the last entry. The survivor with the highest term, and then the highest index,
    /// has every write that any survivor has acknowledged.
    pub last_term: u64,
    /// The last entry that it knows to be committed.
    pub committed_index: u64,
    /// The last entry in the state on its disk.
    pub applied_index: u64,
    /// The newest revision at `committed_index`.
    pub committed_revision: i64,
    /// The newest revision at `last_index`, which is kept if this member is trusted.
    pub last_revision: i64,
    /// Digest of the state at `committed_index`; members with an equal index have an equal digest.
    pub committed_digest: String,
    /// Digest of the state at `last_index`.
    pub last_digest: String,
    /// The voters of the ring, as far as it knows, with their peer URLs.
    pub voters: Vec<(String, String)>,
    /// The last epoch; 0 if the history was never cut.
    pub epoch: u32,
}

/// Opens the directory of a stopped member.
pub(super) fn disk(setup: &RingSetup) -> Result<Disk, OfflineError> {
    let path = &setup.data_dir;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no data");
    let exists = path.try_exists().and_then(|exists| exists.then_some(()).ok_or_else(missing));
    let opened = exists.and_then(|()| DirFiles::open(path));
    let files = opened.map_err(|source| RebuildError::Io { path: path.clone(), source })?;
    let (owner, fresh) = (owner(setup), InstanceId::default());
    Ok(Disk::open(Arc::new(files), StorageConfig::default(), &owner, fresh, &setup.state)?)
}

/// Surveys the data of the member of `setup`, which must be stopped.
///
/// # Errors
///
/// [`OfflineError`], in particular if there is no data or a process uses it.
pub fn survey(setup: &RingSetup) -> Result<Survivor, OfflineError> {
    let Disk { log, mut restored, .. } = disk(setup)?;
    let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
    let applied_index = index(restored.position.applied);
    let ends = log
        .entries
        .last()
        .map(|(entry, _)| entry.log_id)
        .or(log.purged)
        .or(restored.position.applied);
    let committed_index = index(log.committed).max(applied_index);
    let first = log.entries.first().map(|(entry, _)| entry.log_id.index);
    replay(&mut restored, &log.entries, committed_index);
    let committed_revision = restored.state.keyspace().store().revision();
    let committed_digest = restored.state.keyspace().digest().to_string();
    replay(&mut restored, &log.entries, u64::MAX);
    let voters: BTreeSet<_> = restored.position.membership.voter_ids().collect();
    let nodes = restored.position.membership.nodes();
    let voters = nodes.filter(|(name, _)| voters.contains(*name));
    Ok(Survivor {
        member: setup.name.to_string(),
        instance: log.instance.iter().map(|byte| format!("{byte:02x}")).collect(),
        term: log.vote.as_ref().map_or(0, |vote| vote.leader_id.term),
        voted_for: log.vote.as_ref().map(|vote| vote.leader_id.voted_for.to_string()),
        first_index: first.unwrap_or_else(|| index(ends) + 1),
        last_index: index(ends),
        last_term: ends.map_or(0, |id| id.committed_leader_id().term),
        committed_index,
        applied_index,
        committed_revision,
        last_revision: restored.state.keyspace().store().revision(),
        committed_digest,
        last_digest: restored.state.keyspace().digest().to_string(),
        voters: voters.map(|(name, node)| (name.to_string(), node.url.clone())).collect(),
        epoch: restored.state.keyspace().epoch(),
    })
}
