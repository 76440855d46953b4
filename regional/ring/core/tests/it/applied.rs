//! Tests of `apply`: the effect of an entry on a member's whole state.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use satrap_merkle::codec::Canonical as _;
use satrap_ring_core::{
    AppliedState, Batch, Caller, Command, Entry, Extension, Extensions, Outcome, Proposal, Refusal,
    Registration, Rejected, Reply, Request, RingTime, Signatories, StateChanges, StateSetup,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
    kv::{Event, PutRequest},
    recovery::{RecoveryKind, RecoveryRecord},
};

/// An extension that sums the numbers in its commands, and refuses zero.
#[derive(Debug, Default)]
struct Sum(u64);

const TAG: u8 = 7;

impl Extension for Sum {
    fn apply(&self, body: &Bytes) -> Result<Arc<dyn Extension>, Rejected> {
        let added = body.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        if added == 0 {
            return Err(Rejected { rule: "TXN-1".into(), why: "nothing to add".into() });
        }
        Ok(Arc::new(Self(self.0 + added)))
    }

    fn version(&self) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn restore(&self, page: &[u8]) -> Result<Arc<dyn Extension>, Rejected> {
        let bytes = page.try_into();
        let cut = |_| Rejected { rule: "TXN-2".into(), why: "eight bytes are expected".into() };
        bytes.map(u64::from_be_bytes).map(|sum| Arc::new(Self(sum)) as _).map_err(cut)
    }
}

fn config() -> StateSetup {
    let sum = Registration { tag: TAG, page: "sum", initial: Arc::new(Sum::default()) };
    StateSetup { extensions: Extensions::new([sum]), ..StateSetup::default() }
}

fn add(body: &'static [u8]) -> Entry {
    let command = Command::Extension { tag: TAG, body: Bytes::from_static(body) };
    Entry::Command(Command::decode(&command.encode().into()))
}

#[test]
fn commands_begin_with_the_tags_that_logs_have() {
    let batch = Batch { time: RingTime(7), proposals: Vec::new() };
    let encoded = Command::Batch(batch.clone()).encode();
    assert_eq!(encoded, [vec![1], batch.to_canonical()].concat());
    assert_eq!(encoded, Command::encode_batch(RingTime(7), 0, &[]));
    let body = Bytes::from_static(b"body");
    assert_eq!(Command::Extension { tag: 0, body }.encode(), b"\0body");
}

fn ask(state: &mut AppliedState, request: Request) -> Reply {
    let proposals = vec![Proposal { caller: Caller::default(), request }];
    let batch = Batch { time: RingTime(1), proposals };
    match state.apply(Entry::Command(Ok(Command::Batch(batch)))) {
        Outcome::Batch(mut replies) => replies.remove(0),
        other => panic!("{other:?}"),
    }
}

fn put(state: &mut AppliedState, key: &'static str) -> Reply {
    ask(state, Request::Put(PutRequest::of(key, "value")))
}

fn members(ids: impl IntoIterator<Item = u64>) -> Entry {
    Entry::Members(ids.into_iter().collect())
}

/// STATE-6
#[test]
fn removing_a_member_clears_its_nospace_and_keeps_its_corrupt_alarm() {
    let mut state = AppliedState::new(&config());
    state.apply(members([1, 2, 3]));
    let alarm = |kind, member| Request::Alarm(AlarmRequest::Activate(AlarmMember { kind, member }));
    for member in [2, 3] {
        ask(&mut state, alarm(AlarmKind::NoSpace, member)).unwrap();
    }
    state.apply(members([1, 2]));
    assert_eq!(put(&mut state, "k"), Err(Refusal::NoSpace), "member 2 still has no space");
    state.apply(members([1]));
    put(&mut state, "k").unwrap();
    ask(&mut state, alarm(AlarmKind::Corrupt, 1)).unwrap();
    state.apply(members([4]));
    assert_eq!(put(&mut state, "k"), Err(Refusal::Corrupt));
}

/// STATE-3, and that the three steps of a running member equal `apply`.
#[test]
fn an_extension_moves_by_its_own_commands_only() {
    let (mut one, mut other) = (AppliedState::new(&config()), AppliedState::new(&config()));
    let unknown = Command::Extension { tag: TAG + 1, body: Bytes::from_static(b"x") };
    let entries = [
        (Entry::Blank, Outcome::Blank),
        (add(&[1, 2]), Outcome::Extension(3)),
        (
            add(&[0]),
            Outcome::Rejected(Rejected { rule: "TXN-1".into(), why: "nothing to add".into() }),
        ),
        (add(&[4]), Outcome::Extension(7)),
    ];
    for (entry, expected) in entries {
        let view = one.extensions().clone();
        let before = view.get::<Sum>().0;
        let verified = other.extensions().prepare(entry.clone()).verify();
        assert_eq!(one.apply(entry), expected);
        assert_eq!(other.commit(verified), expected);
        assert_eq!(view.get::<Sum>().0, before, "a view stays as it was");
    }
    for bad in [Entry::Command(Ok(unknown)), Entry::Command(Command::decode(&Bytes::new()))] {
        assert!(matches!(one.apply(bad), Outcome::Rejected(_)));
    }
    assert_eq!((one.extensions().get::<Sum>().0, other.extensions().get::<Sum>().0), (7, 7));
    assert_eq!(one.extensions().behind(other.extensions()), None);
    other.apply(add(&[1]));
    assert_eq!(one.extensions().behind(other.extensions()), Some(("sum", 7, 8)));
}

/// Restores a state from the changes in checkpoints.
fn restore(config: &StateSetup, changes: &StateChanges) -> Result<AppliedState, String> {
    let mut pages = changes.keyspace.pages.clone();
    for (page, extension) in &changes.extensions {
        pages.insert((*page).to_owned(), extension.snapshot());
    }
    let events: Vec<Event> = changes.keyspace.events.clone();
    AppliedState::restore(config, BTreeSet::from([1]), pages, events.into_iter())
        .map_err(|error| error.to_string())
}

#[test]
fn a_checkpoint_has_what_changed_and_restores_all_of_it() {
    let mut state = AppliedState::new(&config());
    assert!(state.take_changes().extensions.is_empty(), "nothing has changed");
    state.apply(add(&[5]));
    put(&mut state, "k").unwrap();
    let changes = state.take_changes();
    let restored = restore(&config(), &changes).unwrap();
    assert_eq!(restored.extensions().get::<Sum>().0, 5);
    assert_eq!(restored.keyspace().digest(), state.keyspace().digest());
    assert!(state.take_changes().extensions.is_empty(), "it was taken");
    let mut damaged = state.take_changes();
    damaged.extensions.push(("sum", Arc::new(Cut)));
    let error = restore(&config(), &damaged).unwrap_err();
    assert_eq!(error, "page sum does not verify: [TXN-2] eight bytes are expected");
}

/// An extension of a peer whose page is cut short.
#[derive(Debug)]
struct Cut;

impl Extension for Cut {
    fn apply(&self, _: &Bytes) -> Result<Arc<dyn Extension>, Rejected> {
        unreachable!("it is only read")
    }

    fn version(&self) -> u64 {
        0
    }

    fn snapshot(&self) -> Vec<u8> {
        vec![1]
    }

    fn restore(&self, _: &[u8]) -> Result<Arc<dyn Extension>, Rejected> {
        unreachable!("it is only read")
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// Two of three operators, one of whom has two keys.
fn signed_config() -> StateSetup {
    let persons = [(1, "alice"), (2, "alice"), (3, "bob"), (4, "carol")];
    let keys = persons.map(|(seed, person)| (key(seed).verifying_key().to_bytes(), person.into()));
    StateSetup { signatories: Signatories { keys: keys.into(), needed: 2 }, ..config() }
}

fn record(kind: RecoveryKind, signers: &[u8]) -> RecoveryRecord {
    let mut record = RecoveryRecord {
        kind,
        epoch: 5,
        kept: 1,
        leap: 100,
        time: RingTime(0),
        trusted: vec!["m1".into()],
        lost: vec!["m2".into(), "m3".into()],
        reason: "a test".into(),
        signature: Vec::new(),
    };
    let bytes = record.signed_bytes();
    record.signature = signers.iter().flat_map(|seed| key(*seed).sign(&bytes).to_bytes()).collect();
    record
}

/// RECOVERY-1
#[test]
fn a_recovery_from_the_log_needs_the_signatures_of_enough_persons() {
    let mut altered = record(RecoveryKind::Forced, &[1, 3]);
    altered.reason = "another reason".into();
    let refused = [
        record(RecoveryKind::Forced, &[]),
        record(RecoveryKind::Forced, &[1]),
        record(RecoveryKind::Forced, &[1, 2]),
        record(RecoveryKind::Forced, &[3, 3]),
        record(RecoveryKind::Forced, &[3, 9]),
        record(RecoveryKind::Restored, &[]),
        altered,
    ];
    for record in refused {
        let mut state = AppliedState::new(&signed_config());
        let before = state.keyspace().digest();
        let reply = ask(&mut state, Request::Recovery(record.clone()));
        assert_eq!(reply, Err(Refusal::PermissionDenied), "{record:?}");
        assert_eq!((state.keyspace().epoch(), state.keyspace().recoveries().count()), (0, 0));
        if record.kind == RecoveryKind::Forced {
            assert_eq!(state.recover(&record), Err(Refusal::PermissionDenied), "{record:?}");
        }
        // Time advances, and nothing else changes.
        ask(&mut state, Request::Tick).unwrap();
        assert_ne!(state.keyspace().digest(), before);
    }
    let mut state = AppliedState::new(&signed_config());
    let good = record(RecoveryKind::Forced, &[2, 4]);
    ask(&mut state, Request::Recovery(good.clone())).unwrap();
    assert_eq!(state.keyspace().recoveries().collect::<Vec<_>>(), [&good]);
    let mut state = AppliedState::new(&signed_config());
    state.recover(&record(RecoveryKind::Restored, &[])).unwrap();
    assert_eq!(state.keyspace().epoch(), 5, "an operator at the machine restores a snapshot");
}

/// RECOVERY-1: also checked for a peer's state.
#[test]
fn a_state_with_a_forged_recovery_is_not_restored() {
    let unsigned = record(RecoveryKind::Forced, &[3]);
    let mut trusting = AppliedState::new(&config());
    ask(&mut trusting, Request::Recovery(unsigned)).unwrap();
    let changes = trusting.take_changes();
    let error = restore(&signed_config(), &changes).unwrap_err();
    assert_eq!(error, "the forced recovery of epoch 5 is not signed by enough operators");
    restore(&config(), &changes).unwrap();
    let mut state = AppliedState::new(&signed_config());
    ask(&mut state, Request::Recovery(record(RecoveryKind::Forced, &[1, 3]))).unwrap();
    let restored = restore(&signed_config(), &state.take_changes()).unwrap();
    assert_eq!(restored.keyspace().epoch(), 5);
}
