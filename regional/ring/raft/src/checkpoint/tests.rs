//! Tests of full and damaged disks under a running member.

use openraft::vote::leader_id_std::CommittedLeaderId;
use satrap_ring_core::{
    Batch, Caller, Command, Entry, Outcome, Proposal, Request, RingTime, kv::PutRequest,
};
use satrap_ring_storage::{
    Config, Owner, SpaceConfig, StateConfig, WalConfig,
    files::Files as _,
    limits::{CHECKPOINT_SPARE_BYTES, SEGMENT_BYTES_MIN},
    sim::{Faults, SimDisk, Survival},
};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::*;
use crate::{disk::Disk, tests::register};

const RESERVE_BYTES: u64 = 2 * CHECKPOINT_SPARE_BYTES;
const LOW_BYTES: u64 = 1024 * 1024;
const CACHE_BYTES: usize = 1024 * 1024;

fn open(sim: &SimDisk) -> Disk {
    let config = Config {
        wal: WalConfig { segment_bytes: SEGMENT_BYTES_MIN },
        space: SpaceConfig { reserve_bytes: RESERVE_BYTES, low_bytes: LOW_BYTES },
        state: StateConfig { cache_bytes: CACHE_BYTES },
    };
    let owner = Owner { ring: [1; 32], member: "m1".into() };
    Disk::open(Arc::new(sim.clone()), config, &owner, [7; 16], &register::config()).unwrap()
}

fn member(sim: &SimDisk) -> (Shared, Checkpoints) {
    let Disk { state, reserve, restored, .. } = open(sim);
    let shared = Shared::new(restored);
    (shared.clone(), Checkpoints::new(shared, state, reserve))
}

/// The state on disk after a power cut.
fn open_again(sim: &SimDisk, member: (Shared, Checkpoints)) -> Restored {
    drop(member);
    sim.crash(Survival::None);
    open(sim).restored
}

fn put(shared: &Shared, index: u64, value: &[u8]) {
    apply(shared, index, [Request::Put(PutRequest::of(format!("k{index}"), value.to_vec()))]);
}

/// Applies a batch as the state machine does.
fn apply(shared: &Shared, index: u64, requests: impl IntoIterator<Item = Request>) {
    let proposal = |request| Proposal { caller: Caller::default(), request };
    let proposals = requests.into_iter().map(proposal).collect();
    let (mut state, mut position) = shared.lock();
    let batch = Batch { time: RingTime(index), proposals };
    let outcome = state.apply(Entry::Command(Ok(Command::Batch(batch))));
    assert!(matches!(outcome, Outcome::Batch(replies) if replies.iter().all(Result::is_ok)));
    position.applied = Some(LogId::new(CommittedLeaderId::new(1), index));
}

/// Sets the number of free bytes.
fn leave(sim: &SimDisk, free_bytes: u64) {
    sim.set_faults(Faults::default());
    let used = u64::MAX - sim.free_bytes().unwrap();
    sim.set_faults(Faults { capacity_bytes: used + free_bytes, ..Faults::default() });
}

/// CHECKPOINT-4
#[test]
fn a_full_disk_delays_checkpoints_and_loses_none() {
    let sim = SimDisk::new(1);
    let (shared, checkpoints) = member(&sim);
    put(&shared, 1, b"before");
    checkpoints.step().unwrap();

    leave(&sim, 0);
    put(&shared, 2, b"in the room of the reserve");
    checkpoints.step().unwrap();
    assert!(shared.faults().is_empty());
    assert!(sim.content("reserve").is_none(), "it was needed");

    leave(&sim, 0);
    put(&shared, 3, b"kept");
    let (asked, mut answer) = oneshot::channel();
    checkpoints.serve(asked).unwrap();
    put(&shared, 4, b"kept as well");
    checkpoints.step().unwrap();
    assert_eq!(
        answer.try_recv(),
        Err(TryRecvError::Empty),
        "no answer before the checkpoint is on disk"
    );
    assert!(matches!(checkpoints.complete(), Err(StorageError::NoSpace { .. })));
    let faults = shared.faults();
    assert!(faults.len() == 1 && faults[0].contains("full"), "{faults:?}");

    leave(&sim, RESERVE_BYTES + 4 * CHECKPOINT_SPARE_BYTES);
    checkpoints.step().unwrap();
    assert_eq!(answer.try_recv(), Ok(()));
    assert!(shared.faults().is_empty());
    assert!(sim.content("reserve").is_some(), "there is room for it again");

    let digest = shared.read(|keyspace| keyspace.digest());
    let restored = open_again(&sim, (shared, checkpoints));
    assert_eq!(restored.state.keyspace().digest(), digest);
}

/// CHECKPOINT-5
#[test]
fn rot_under_a_running_member_is_reported_and_stops_nothing() {
    let sim = SimDisk::new(1);
    let (shared, checkpoints) = member(&sim);
    // More than the engine's cache holds, or it would never read the disk again.
    let value = b"a value that is not read ".repeat(3_000);
    let count = 4 * CACHE_BYTES / value.len();
    (1..=count as u64).for_each(|index| put(&shared, index, &value));
    checkpoints.step().unwrap();
    let content = sim.content("state.redb").unwrap();
    let marker = &value[..100];
    for (offset, _) in content.windows(100).enumerate().filter(|(_, bytes)| *bytes == marker) {
        sim.rot("state.redb", offset as u64 + 3, 4);
    }
    for _ in 0..SCRUB_EVERY_STEPS - 1 {
        checkpoints.step().unwrap();
    }
    let faults = shared.faults();
    assert!(faults.len() == 1 && faults[0].contains("history row"), "{faults:?}");
    put(&shared, count as u64 + 1, b"more");
    checkpoints.step().unwrap();
}

/// One step reclaims as much as a ring can write between two steps; after that the disk is left
/// alone.
#[test]
fn compacted_versions_are_reclaimed_faster_than_they_were_written() {
    let sim = SimDisk::new(1);
    let (shared, checkpoints) = member(&sim);
    let held = || shared.read(|keyspace| keyspace.store().sizes().resident_bytes);
    let versions = MEMORY_RECLAIM_PIECES * MEMORY_RECLAIM_VERSIONS / 3;
    let again = || Request::Put(PutRequest::of("again and again", "a value"));
    apply(&shared, 1, [again()]);
    let one = held();
    apply(&shared, 2, std::iter::repeat_with(again).take(versions));
    checkpoints.step().unwrap();
    assert_eq!(held(), one * (versions as u64 + 1));
    let revision = shared.read(|keyspace| keyspace.store().revision());
    apply(&shared, 3, [Request::Compact { revision }]);
    checkpoints.step().unwrap();
    assert_eq!(held(), one);
    assert_eq!(checkpoints.lock().reclaimed, revision);
    let restored = open_again(&sim, (shared, checkpoints));
    assert_eq!(restored.state.keyspace().store().sizes().resident_bytes, one);
}
