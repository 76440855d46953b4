//! Disks that are full or rotten, under a member that goes on.

use openraft::vote::leader_id_std::CommittedLeaderId;
use satrap_certify::Genesis;
use satrap_regional_core::{Batch, Caller, Proposal, Request, RingTime, kv::PutRequest};
use satrap_regional_storage::{
    Config, Owner, SpaceConfig, StateConfig, WalConfig,
    files::Files as _,
    limits::{CHECKPOINT_SPARE_BYTES, SEGMENT_BYTES_MIN},
    sim::{Faults, SimDisk, Survival},
};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::*;
use crate::{raft::disk::Disk, tests::realm::Realm};

const RESERVE_BYTES: u64 = 2 * CHECKPOINT_SPARE_BYTES;
const LOW_BYTES: u64 = 1024 * 1024;
const CACHE_BYTES: usize = 1024 * 1024;

fn open(sim: &SimDisk, genesis: &Genesis) -> Disk {
    let config = Config {
        wal: WalConfig { segment_bytes: SEGMENT_BYTES_MIN },
        space: SpaceConfig { reserve_bytes: RESERVE_BYTES, low_bytes: LOW_BYTES },
        state: StateConfig { cache_bytes: CACHE_BYTES },
    };
    let owner = Owner { ring: [1; 32], member: "m1".into() };
    Disk::open(Arc::new(sim.clone()), config, &owner, [7; 16], genesis).unwrap()
}

fn member(sim: &SimDisk, genesis: &Genesis) -> (Shared, Checkpoints) {
    let Disk { state, reserve, restored, .. } = open(sim, genesis);
    let shared = Shared::new(restored);
    (shared.clone(), Checkpoints::new(shared, state, reserve))
}

/// What is on disk after the power was cut.
fn open_again(sim: &SimDisk, genesis: &Genesis, member: (Shared, Checkpoints)) -> Restored {
    drop(member);
    sim.crash(Survival::None);
    open(sim, genesis).restored
}

fn put(shared: &Shared, index: u64, value: &[u8]) {
    apply(shared, index, [Request::Put(PutRequest::of(format!("k{index}"), value.to_vec()))]);
}

/// As the state machine does.
fn apply(shared: &Shared, index: u64, requests: impl IntoIterator<Item = Request>) {
    let proposal = |request| Proposal { caller: Caller::default(), request };
    let proposals = requests.into_iter().map(proposal).collect();
    let (mut keyspace, mut standing) = shared.lock();
    let replies = keyspace.apply(&Batch { time: RingTime(index), proposals });
    assert!(replies.iter().all(Result::is_ok));
    standing.applied = Some(LogId::new(CommittedLeaderId::new(1), index));
}

/// So many bytes are free from now on.
fn leave(sim: &SimDisk, free_bytes: u64) {
    sim.set_faults(Faults::default());
    let used = u64::MAX - sim.free_bytes().unwrap();
    sim.set_faults(Faults { capacity_bytes: used + free_bytes, ..Faults::default() });
}

/// K4
#[test]
fn a_full_disk_delays_checkpoints_and_loses_none() {
    let (sim, realm) = (SimDisk::new(1), Realm::new());
    let (shared, checkpoints) = member(&sim, &realm.genesis);
    put(&shared, 1, b"before");
    checkpoints.step().unwrap();

    leave(&sim, 0);
    put(&shared, 2, b"in the room of the reserve");
    checkpoints.step().unwrap();
    assert!(shared.complaints().is_empty());
    assert!(sim.content("reserve").is_none(), "it was needed");

    leave(&sim, 0);
    put(&shared, 3, b"kept");
    let (asked, mut answer) = oneshot::channel();
    checkpoints.serve(asked).unwrap();
    put(&shared, 4, b"kept as well");
    checkpoints.step().unwrap();
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty), "nobody is told of what is not there");
    assert!(matches!(checkpoints.complete(), Err(StorageError::NoSpace { .. })));
    let complaints = shared.complaints();
    assert!(complaints.len() == 1 && complaints[0].contains("full"), "{complaints:?}");

    leave(&sim, RESERVE_BYTES + 4 * CHECKPOINT_SPARE_BYTES);
    checkpoints.step().unwrap();
    assert_eq!(answer.try_recv(), Ok(()));
    assert!(shared.complaints().is_empty());
    assert!(sim.content("reserve").is_some(), "there is room for it again");

    let digest = shared.read(|keyspace| keyspace.digest());
    let restored = open_again(&sim, &realm.genesis, (shared, checkpoints));
    assert_eq!(restored.keyspace.digest(), digest);
}

/// K5
#[test]
fn rot_under_a_running_member_is_told_and_ends_nothing() {
    let (sim, realm) = (SimDisk::new(1), Realm::new());
    let (shared, checkpoints) = member(&sim, &realm.genesis);
    // More than the engine keeps in memory, or it would never look at the disk again.
    let value = b"a value that nobody reads".repeat(3_000);
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
    let complaints = shared.complaints();
    assert!(complaints.len() == 1 && complaints[0].contains("history row"), "{complaints:?}");
    put(&shared, count as u64 + 1, b"more");
    checkpoints.step().unwrap();
}

/// As much as a ring can write between two steps is given back in one, and then the disk is left alone.
#[test]
fn what_was_compacted_is_given_back_faster_than_it_was_written() {
    let (sim, realm) = (SimDisk::new(1), Realm::new());
    let (shared, checkpoints) = member(&sim, &realm.genesis);
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
    let restored = open_again(&sim, &realm.genesis, (shared, checkpoints));
    assert_eq!(restored.keyspace.store().sizes().resident_bytes, one);
}
