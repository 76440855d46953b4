//! Damage to the data of a member that does not run.

use std::{fs, path::Path, sync::Arc};

use satrap_region_server::Config;
use satrap_ring_core::{Batch, Command, Entry, Proposal, Request, kv::PutRequest};
use satrap_ring_raft::{
    disk::{Disk, applied_mark, checkpoint},
    owner,
};
use satrap_ring_storage::{Config as StorageConfig, InstanceId, files::DirFiles};

/// Applies a write to the state that no log holds at that place, as a member does that forgets how far
/// it was. Every row has its digest, and the state is one, but not that of the others.
pub fn apply_once_more(config: &Path) {
    let setup = Config::load(config).unwrap().ring_setup();
    let files = Arc::new(DirFiles::open(&setup.data_dir).unwrap());
    let fresh = InstanceId::default();
    let opened =
        Disk::open(files, StorageConfig::default(), &owner(&setup), fresh, &setup.state).unwrap();
    let mut restored = opened.restored;
    let put = Request::Put(PutRequest::of("before/0", "value"));
    let proposals = vec![Proposal { caller: Default::default(), request: put }];
    let batch = Batch { time: restored.state.keyspace().now(), proposals };
    restored.state.apply(Entry::Command(Ok(Command::Batch(batch))));
    let mark = applied_mark(&restored.position);
    let compacted = restored.state.keyspace().store().compacted().max(0).unsigned_abs();
    let wrong = checkpoint(mark, compacted, restored.state.take_changes()).unwrap();
    opened.state.checkpoint(&wrong).unwrap();
}

fn places(bytes: &[u8], marker: &[u8]) -> Vec<usize> {
    let windows = bytes.windows(marker.len()).enumerate();
    windows.filter(|(_, window)| *window == marker).map(|(place, _)| place).collect()
}

/// How often `marker` occurs in `bytes`.
pub fn count(bytes: &[u8], marker: &[u8]) -> usize {
    places(bytes, marker).len()
}

/// Flips a bit of `marker` wherever it occurs in a file.
pub fn rot(path: &Path, marker: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    for place in places(&bytes, marker) {
        bytes[place] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}
