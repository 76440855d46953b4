//! What a survivor of a lost quorum knows, read from its disk.

use std::{collections::BTreeSet, io, sync::Arc};

use satrap_regional_storage::{Config as StorageConfig, InstanceId, files::DirFiles};

use super::{OfflineError, owner};
use crate::{
    config::Config,
    raft::{
        disk::Disk,
        rebuild::{RebuildError, replay},
        types::LogId,
    },
};

/// One survivor.
///
/// Its log ends at `last_index`, and it knows that everything up to `committed_index` was
/// acknowledged or could have been. Between the two lies what it was told to write and never heard
/// the end of: another majority may have acknowledged it. Behind the end lies what it never heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its name.
    pub member: String,
    /// Which disk, hex.
    pub instance: String,
    /// The last term it voted in.
    pub term: u64,
    /// For whom, if for anybody.
    pub voted_for: Option<String>,
    /// The first entry of its log.
    pub first_index: u64,
    /// The last one.
    pub last_index: u64,
    /// The term of the last one. The survivor with the highest term, and then the highest index, has
    /// everything that any survivor has acknowledged.
    pub last_term: u64,
    /// Up to here it knows that entries are committed.
    pub committed_index: u64,
    /// Up to here entries were in the state on disk.
    pub applied_index: u64,
    /// The newest revision at `committed_index`.
    pub committed_revision: i64,
    /// The newest revision at `last_index`: what is kept if this member is trusted.
    pub last_revision: i64,
    /// Digest of the state at `committed_index`; equal on members where that is equal.
    pub committed_digest: String,
    /// Digest of the state at `last_index`.
    pub last_digest: String,
    /// Who votes in the ring, as far as it knows, and where each is reached.
    pub voters: Vec<(String, String)>,
    /// The last epoch; 0 if the history was never cut.
    pub epoch: u32,
}

/// Opens the directory of a member that does not run.
pub(super) fn disk(config: &Config) -> Result<Disk, OfflineError> {
    let path = &config.data_dir;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no data");
    let exists = path.try_exists().and_then(|exists| exists.then_some(()).ok_or_else(missing));
    let opened = exists.and_then(|()| DirFiles::open(path));
    let files = opened.map_err(|source| RebuildError::Io { path: path.clone(), source })?;
    let (owner, fresh) = (owner(config), InstanceId::default());
    let config = &config.genesis;
    Ok(Disk::open(Arc::new(files), StorageConfig::default(), &owner, fresh, config)?)
}

/// Reads what the member of `config` has. It must not run.
///
/// # Errors
///
/// [`OfflineError`], in particular if there is no data, or a process uses it.
pub fn survey(config: &Config) -> Result<Survivor, OfflineError> {
    let Disk { log, mut restored, .. } = disk(config)?;
    let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
    let applied_index = index(restored.applied);
    let ends =
        log.entries.last().map(|(entry, _)| entry.log_id).or(log.purged).or(restored.applied);
    let committed_index = index(log.committed).max(applied_index);
    let first = log.entries.first().map(|(entry, _)| entry.log_id.index);
    replay(&mut restored, &log.entries, committed_index);
    let committed_revision = restored.keyspace.store().revision();
    let committed_digest = restored.keyspace.digest().to_string();
    replay(&mut restored, &log.entries, u64::MAX);
    let voters: BTreeSet<_> = restored.membership.voter_ids().collect();
    let nodes = restored.membership.nodes();
    let voters = nodes.filter(|(name, _)| voters.contains(*name));
    Ok(Survivor {
        member: config.name.to_string(),
        instance: log.instance.iter().map(|byte| format!("{byte:02x}")).collect(),
        term: log.vote.as_ref().map_or(0, |vote| vote.leader_id.term),
        voted_for: log.vote.as_ref().map(|vote| vote.leader_id.voted_for.to_string()),
        first_index: first.unwrap_or_else(|| index(ends) + 1),
        last_index: index(ends),
        last_term: ends.map_or(0, |id| id.committed_leader_id().term),
        committed_index,
        applied_index,
        committed_revision,
        last_revision: restored.keyspace.store().revision(),
        committed_digest,
        last_digest: restored.keyspace.digest().to_string(),
        voters: voters.map(|(name, node)| (name.to_string(), node.url.clone())).collect(),
        epoch: restored.keyspace.epoch(),
    })
}
