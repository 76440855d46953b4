//! The log store and the state machine on a real database.

use std::{fs, path::Path, sync::Arc, thread};

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt as _,
    vote::leader_id_std::CommittedLeaderId,
};
use redb::{ReadableTable as _, TableDefinition};
use satrap_certify::{Interest, Replica, Timestamp};
use satrap_host::{clock, runtime, store};
use satrap_merkle::codec::Canonical as _;
use satrap_regional_core::Command;
use tempfile::TempDir;

use super::realm::{Realm, tampered};
use crate::{
    limits::APPEND_BATCH_BYTES,
    raft::{
        disk::{Disk, DiskError, Owner},
        log_store::{LogSize, LogStore},
        state_machine::{SnapshotStore, StateMachine},
        types::{Entry, LogId, MemberName, Payload, RaftStorageError, Types, Vote},
        writer::Writer,
    },
};

/// A member's storage, as [`crate::raft::Ring::open`] puts it together.
struct Member {
    log: LogStore,
    machine: StateMachine,
    instance: [u8; 16],
    writer: thread::JoinHandle<()>,
}

fn owner() -> Owner {
    Owner { ring: [1; 32], member: MemberName::from(0) }
}

fn open(path: &Path, realm: &Realm) -> Result<Member, DiskError> {
    let (disk, loaded) = Disk::open(path, &owner())?;
    let disk = Arc::new(disk);
    let last = loaded.entries.last().map(|(entry, _)| entry.log_id).or(loaded.purged);
    let (writer, handle) = Writer::new(disk.clone(), loaded.committed, last.map(|id| id.index));
    let writer = thread::spawn(move || writer.run().unwrap());
    let instance = loaded.instance;
    let log = LogStore::new(loaded, handle.clone());
    let (machine, _) = StateMachine::new(realm.genesis.clone(), SnapshotStore::new(disk, handle));
    Ok(Member { log, machine, instance, writer })
}

impl Member {
    /// Closes the database, as the end of the process would.
    fn close(self) {
        drop((self.log, self.machine));
        self.writer.join().unwrap();
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry::new_blank(log_id(term, index))
}

fn command(term: u64, index: u64, bytes: Vec<u8>) -> Entry {
    let payload = EntryPayload::Normal(Payload(Bytes::from(bytes)));
    Entry { log_id: log_id(term, index), payload }
}

/// Appends and waits until the entries are on disk.
async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry> + Send) {
    let entries: Vec<_> = entries.into_iter().collect();
    let (flushed, done) = Types::oneshot();
    log.append(entries, IOFlushed::signal(flushed)).await.unwrap();
    done.await.unwrap().unwrap();
}

async fn indices(log: &mut LogStore) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime::current_thread().unwrap().block_on(future)
}

struct Builder(Realm);

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), RaftStorageError> {
        let dir = tempfile::tempdir().unwrap();
        let member = open(&dir.path().join("db"), &self.0).unwrap();
        Ok((dir, member.log, member.machine))
    }
}

#[test]
fn openraft_accepts_the_storage() {
    block_on(Suite::test_all(Builder(Realm::new()))).unwrap();
}

#[test]
fn everything_acknowledged_is_there_after_reopening() {
    let (dir, realm) = (tempfile::tempdir().unwrap(), Realm::new());
    let path = dir.path().join("db");
    block_on(async {
        let mut member = open(&path, &realm).unwrap();
        let log = &mut member.log;
        log.save_vote(&Vote::new(3, 1.into())).await.unwrap();
        append(log, (0..10).map(|i| blank(1, i))).await;
        log.truncate_after(Some(log_id(1, 7))).await.unwrap();
        append(log, [blank(2, 8), command(2, 9, vec![7; 100])]).await;
        log.purge(log_id(1, 2)).await.unwrap();
        // Past the log: a member that was told of a commit before it got the entries.
        log.save_committed(Some(log_id(2, 20))).await.unwrap();
        append(log, [blank(2, 10)]).await;
        let instance = member.instance;
        member.close();

        let mut member = open(&path, &realm).unwrap();
        assert_eq!(member.instance, instance);
        let log = &mut member.log;
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1.into())));
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(1, 2)));
        assert_eq!(state.last_log_id, Some(log_id(2, 10)));
        assert_eq!(indices(log).await, (3..=10).collect::<Vec<_>>());
        let tail = log.try_get_log_entries(7..=9).await.unwrap();
        assert_eq!(tail, [blank(1, 7), blank(2, 8), command(2, 9, vec![7; 100])]);
        assert_eq!(log.read_committed().await.unwrap(), None, "a mark past the log is not kept");
        log.save_committed(Some(log_id(2, 9))).await.unwrap();
        member.close();

        let mut member = open(&path, &realm).unwrap();
        assert_eq!(member.log.read_committed().await.unwrap(), Some(log_id(2, 9)));
        member.close();
    });
}

/// A crash copies the file at an arbitrary moment between two commits of the writer.
#[test]
fn a_crash_at_any_commit_leaves_a_log_without_holes() {
    let (dir, realm) = (tempfile::tempdir().unwrap(), Realm::new());
    let (path, crashed) = (dir.path().join("db"), dir.path().join("crashed"));
    block_on(async {
        let mut member = open(&path, &realm).unwrap();
        for round in 0..12_u64 {
            let first = indices(&mut member.log).await.last().map_or(0, |last| last + 1);
            append(&mut member.log, (first..first + 3).map(|i| blank(round + 1, i))).await;
            if round % 3 == 2 {
                member.log.truncate_after(Some(log_id(round + 1, first))).await.unwrap();
            }
            if round % 4 == 3 {
                member.log.purge(log_id(round + 1, first - 1)).await.unwrap();
            }
            let held = indices(&mut member.log).await;
            fs::copy(&path, &crashed).unwrap();
            let mut survivor = open(&crashed, &realm).unwrap();
            assert_eq!(indices(&mut survivor.log).await, held, "round {round}");
            survivor.close();
        }
        member.close();
    });
}

#[test]
fn damaged_missing_and_foreign_records_stop_the_member() {
    const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
    let (dir, realm) = (tempfile::tempdir().unwrap(), Realm::new());
    let path = dir.path().join("db");
    block_on(async {
        let mut member = open(&path, &realm).unwrap();
        append(&mut member.log, (0..5).map(|i| command(1, i, vec![i as u8; 50]))).await;
        member.close();
    });
    let intact = fs::read(&path).unwrap();
    type Damage = fn(&mut redb::Table<'_, u64, &[u8]>);
    let damages: [(&str, Damage); 3] = [
        ("fails its checksum", |log| {
            let mut row = log.get(2).unwrap().unwrap().value().to_vec();
            *row.last_mut().unwrap() ^= 1;
            log.insert(2, row.as_slice()).unwrap();
        }),
        ("is not where it belongs", |log| drop(log.remove(2).unwrap())),
        ("fails its checksum", |log| {
            let row = log.get(2).unwrap().unwrap().value().to_vec();
            log.insert(3, row.as_slice()).unwrap();
        }),
    ];
    for (expected, damage) in damages {
        fs::write(&path, &intact).unwrap();
        let database = store::open(&path, 1 << 20).unwrap();
        store::write(&database, |txn| {
            damage(&mut txn.open_table(LOG)?);
            Ok::<_, store::StoreError>(())
        })
        .unwrap();
        drop(database);
        let error = open(&path, &realm).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    fs::write(&path, &intact).unwrap();
    let stranger = Owner { member: MemberName::from(9), ..owner() };
    assert!(matches!(Disk::open(&path, &stranger), Err(DiskError::Foreign { .. })));
}

#[test]
fn requests_are_cut_by_bytes_and_purges_keep_what_fits() {
    let (dir, realm) = (tempfile::tempdir().unwrap(), Realm::new());
    block_on(async {
        let mut member = open(&dir.path().join("db"), &realm).unwrap();
        let log = &mut member.log;
        let half = APPEND_BATCH_BYTES / 2 + 1;
        let sizes = [2 * APPEND_BATCH_BYTES, 10, half, half];
        append(log, (0..).zip(sizes).map(|(i, size)| command(1, i, vec![0; size]))).await;
        let count = async |log: &mut LogStore, start| {
            log.limited_get_log_entries(start, 4).await.unwrap().len()
        };
        assert_eq!(count(log, 0).await, 1, "a single entry always fits");
        assert_eq!(count(log, 1).await, 2, "the third would exceed the batch");
        assert_eq!(count(log, 3).await, 1);

        let size = log.size();
        assert_eq!(size.entries, 4);
        assert!(size.bytes > 3 * APPEND_BATCH_BYTES);
        let keep = |entries, bytes| LogSize { entries, bytes };
        assert_eq!(log.purge_point(3, keep(4, usize::MAX)), None);
        assert_eq!(log.purge_point(3, keep(3, usize::MAX)), Some(0));
        assert_eq!(log.purge_point(3, keep(4, APPEND_BATCH_BYTES)), Some(2));
        assert_eq!(
            log.purge_point(1, keep(1, usize::MAX)),
            Some(0),
            "only what is in the snapshot"
        );
        member.close();
    });
}

fn adopt(realm: &Realm, from: &Replica) -> Vec<u8> {
    let update = Box::new(realm.update_for(&from.position()).unwrap());
    Command::Adopt { update, now: Timestamp(clock::now()) }.to_canonical()
}

async fn apply(machine: &mut StateMachine, entry: Entry) {
    machine.apply(futures::stream::iter([Ok((entry, None))])).await.unwrap();
}

#[test]
fn a_snapshot_carries_the_region_and_survives_reopening() {
    let (dir, mut realm) = (tempfile::tempdir().unwrap(), Realm::new());
    let genesis = Replica::genesis(&realm.genesis, Interest::Everything);
    realm.publish("pki/trust", "a", &[1; 100_000]);
    let adopted = adopt(&realm, &genesis);
    block_on(async {
        let mut member = open(&dir.path().join("leader"), &realm).unwrap();
        apply(&mut member.machine, command(1, 1, adopted)).await;
        let snapshot = member.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let height = |s: &crate::raft::types::Snapshot| {
            s.snapshot.verified.as_ref().map(|region| region.replica().height())
        };
        assert_eq!(height(&snapshot), Some(1));

        let mut other = open(&dir.path().join("follower"), &realm).unwrap();
        let mut sent = snapshot.snapshot.clone();
        sent.verified = None;
        other.machine.install_snapshot(&snapshot.meta, sent.clone()).await.unwrap();
        assert_eq!(other.machine.applied_state().await.unwrap().0, Some(log_id(1, 1)));
        // A build that was slower than the installation must not replace it.
        let mut stale = member.machine.get_snapshot_builder().await;
        apply(&mut member.machine, blank(1, 2)).await;
        member.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        stale.build_snapshot().await.unwrap();
        drop(stale);
        let newest = member.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(newest.meta.last_log_id, Some(log_id(1, 2)));
        member.close();
        other.close();

        let mut other = open(&dir.path().join("follower"), &realm).unwrap();
        let held = other.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(held.snapshot.bytes, sent.bytes);
        assert_eq!(held.meta, snapshot.meta);
        // One flipped bit anywhere is refused before it becomes state.
        let mut bytes = sent.bytes.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        sent.bytes = bytes.into();
        let error = other.machine.install_snapshot(&snapshot.meta, sent).await.unwrap_err();
        assert!(error.to_string().contains("refused by rule"), "{error}");
        other.close();
    });
}

#[test]
fn a_command_that_does_not_verify_changes_nothing() {
    let (dir, mut realm) = (tempfile::tempdir().unwrap(), Realm::new());
    let genesis = Replica::genesis(&realm.genesis, Interest::Everything);
    realm.publish("pki/trust", "a", b"good");
    let update = realm.update_for(&genesis.position()).unwrap();
    let forged =
        Command::Adopt { update: Box::new(tampered(update)), now: Timestamp(clock::now()) };
    block_on(async {
        let mut member = open(&dir.path().join("db"), &realm).unwrap();
        apply(&mut member.machine, command(1, 1, forged.to_canonical())).await;
        apply(&mut member.machine, command(1, 2, b"noise".to_vec())).await;
        let (applied, _) = member.machine.applied_state().await.unwrap();
        assert_eq!(applied, Some(log_id(1, 2)));
        let snapshot = member.machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let region = snapshot.snapshot.verified.unwrap();
        assert_eq!(region.replica().height(), 0);
        member.close();
    });
}
