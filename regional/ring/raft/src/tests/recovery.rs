//! Tests of offline recovery, for logs that end in other entries than writes.

use std::{collections::BTreeMap, path::Path};

use openraft::EntryPayload;
use satrap_ring_core::{
    Batch, Caller, Command, Proposal, Request, RingTime,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
    kv::PutRequest,
};

use super::{
    register,
    storage::{append, block_on, command, log_id, open_as},
};
use crate::{
    Compaction, RingSetup, Timing,
    disk::Disk,
    offline::{self, Decision},
    owner,
    types::{Entry, MemberName, MemberNode},
};

fn setup(data_dir: &Path) -> RingSetup {
    RingSetup {
        ring: [1; 32],
        realm: "test-realm".into(),
        region: "eu".into(),
        state: register::config(),
        name: MemberName::from(1),
        members: BTreeMap::from([(MemberName::from(1), "https://m1:7000".into())]),
        peer_url_overrides: BTreeMap::new(),
        client_urls: Vec::new(),
        data_dir: data_dir.to_owned(),
        timing: Timing::default(),
        compaction: Compaction::beyond(100),
        storage: satrap_ring_storage::Config::default(),
    }
}

fn ask(index: u64, request: Request) -> Entry {
    let proposals = vec![Proposal { caller: Caller::default(), request }];
    let batch = Command::Batch(Batch { time: RingTime(index), proposals });
    command(1, index, &batch.encode())
}

/// An entry with members `m1` to `m{count}`, with their ids.
fn membership(index: u64, count: u64) -> Entry {
    let node = |n| (MemberName::from(n), MemberNode { id: 100 + n, ..MemberNode::default() });
    let voters = (1..=count).map(MemberName::from).collect();
    let nodes: BTreeMap<_, _> = (1..=count).map(node).collect();
    let membership = openraft::Membership::new(vec![voters], nodes).unwrap();
    Entry { log_id: log_id(1, index), payload: EntryPayload::Membership(membership) }
}

/// The ring removed a member without space, acknowledged a write, and then lost its quorum. The
/// survivor has the write in its log only, not in a checkpoint.
#[test]
fn a_recovery_keeps_what_was_written_after_a_member_left_that_had_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(&dir.path().join("m1"));
    let no_space = AlarmMember { kind: AlarmKind::NoSpace, member: 103 };
    let put = |index, key: &'static str| ask(index, Request::Put(PutRequest::of(key, "value")));
    block_on(async {
        let mut member = open_as(&setup.data_dir, &owner(&setup)).unwrap();
        let entries = [
            membership(0, 3),
            put(1, "before"),
            ask(2, Request::Alarm(AlarmRequest::Activate(no_space))),
            membership(3, 2),
            put(4, "after"),
        ];
        append(&mut member.log, entries).await;
        member.close();
    });
    let survivor = offline::survey(&setup).unwrap();
    assert_eq!((survivor.last_index, survivor.last_revision), (4, 3));
    let decision = Decision { lost: vec!["m2".into()], reason: "a test".into(), epoch: 7 };
    offline::force(&setup, &decision, |_| Vec::new()).unwrap();
    let files = satrap_ring_storage::files::DirFiles::open(&setup.data_dir).unwrap();
    let config = satrap_ring_storage::Config::default();
    let disk =
        Disk::open(std::sync::Arc::new(files), config, &owner(&setup), [9; 16], &setup.state);
    let state = disk.unwrap().restored.state;
    for key in ["before", "after"] {
        let kept = state.keyspace().store().get(key.as_bytes());
        assert!(kept.is_some(), "`{key}` was acknowledged");
    }
    assert_eq!(state.keyspace().epoch(), 7);
}
