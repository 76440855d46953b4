//! Tests of the log store and the state machine on a real disk.

mod snapshots;

use std::{
    fs, io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use futures::{
    Stream,
    future::{Either, ready, select},
};
use openraft::{
    EntryPayload, OptionalSend, RaftLogReader as _, RaftSnapshotBuilder as _,
    entry::RaftEntry as _,
    storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt as _,
    vote::leader_id_std::CommittedLeaderId,
};
use satrap_ring_core::{
    Batch, Caller, Command, Extension as _, Proposal, Request, RingTime,
    digest::StateDigest,
    kv::{KeyRange, PutRequest, RangeRequest},
};
use satrap_ring_storage::{
    Config, InstanceId, Owner, StorageError, WalConfig, files::DirFiles, limits::SEGMENT_BYTES_MIN,
    snapshot::Refused,
};
use satrap_runtime::runtime;
use tempfile::TempDir;

use self::snapshots::{all, frames, receive};
use super::register::{self, Register};
use crate::{
    checkpoint::{Checkpoints, Shared},
    clock::RingClock,
    disk::{Disk, DiskError},
    inbox::{Inbox, InboxError, Snapshot, SnapshotContent, Transfer},
    limits::APPEND_BATCH_BYTES,
    log_store::{LogSize, LogStore},
    meters::Meters,
    platform::Real,
    state_machine::{SnapshotBuilder, StateMachine},
    types::{Entry, LogId, Membership, Payload, RaftStorageError, SnapshotMeta, Types, Vote},
    waiters::{Origin, Waiters},
    writer::Writer,
};

/// A member's storage, assembled as [`crate::Ring::open`] does.
pub(super) struct Member {
    pub(super) log: LogStore,
    machine: StateMachine,
    shared: Shared,
    checkpoints: Checkpoints,
    inbox: Inbox,
    instance: InstanceId,
    threads: Vec<thread::JoinHandle<Result<(), StorageError>>>,
}

fn owner() -> Owner {
    Owner { ring: [1; 32], member: "m0".into() }
}

/// A small configuration, so that tests span several segments.
fn config() -> Config {
    Config { wal: WalConfig { segment_bytes: SEGMENT_BYTES_MIN }, ..Config::default() }
}

fn open(path: &Path) -> Result<Member, DiskError> {
    open_as(path, &owner())
}

pub(super) fn open_as(path: &Path, owner: &Owner) -> Result<Member, DiskError> {
    let files = Arc::new(DirFiles::open(path)?);
    let disk = Disk::open(files.clone(), config(), owner, [7; 16], &register::config())?;
    let (writer, handle) = Writer::new(disk.wal, disk.log.committed, Meters::default());
    let writer = thread::spawn(move || writer.run());
    let instance = disk.log.instance;
    let log = LogStore::new(disk.log, handle);
    let shared = Shared::new(disk.restored);
    let checkpoints = Checkpoints::new(shared.clone(), disk.state, disk.reserve);
    let (requests, asked) = mpsc::sync_channel(4);
    let thread = checkpoints.clone();
    let checkpointer = thread::spawn(move || thread.run(&asked));
    let (machine, _, _) = StateMachine::new(
        shared.clone(),
        checkpoints.clone(),
        requests,
        Arc::new(RingClock::default().into()),
        Waiters::new(1),
    );
    let threads = vec![writer, checkpointer];
    let (alarm, _) = tokio::sync::mpsc::channel(1);
    let inbox = Inbox::new(files, owner.clone(), instance, register::config(), alarm);
    Ok(Member { log, machine, shared, checkpoints, inbox, instance, threads })
}

impl Member {
    /// Closes the files, as the end of the process would.
    pub(super) fn close(self) {
        let Self { log, machine, threads, .. } = self;
        drop((log, machine));
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    }

    async fn snapshot(&mut self) -> Snapshot {
        self.machine.get_snapshot_builder().await.build_snapshot().await.unwrap()
    }

    async fn receive(&self, frames: &[Vec<u8>]) -> Result<Transfer, InboxError> {
        receive(&self.checkpoints, &self.inbox, frames).await
    }

    /// The value of `key`.
    fn value(&self, key: &str) -> Option<Vec<u8>> {
        let request = RangeRequest::of(KeyRange::key(key.to_owned()));
        let range = self.shared.read(|keyspace| keyspace.range(&Caller::default(), &request));
        range.unwrap().kvs.first().map(|kv| kv.value().to_vec())
    }

    fn digest(&self) -> StateDigest {
        self.shared.read(|keyspace| keyspace.digest())
    }

    fn version(&self) -> u64 {
        self.shared.extensions().get::<Register>().version()
    }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry::new_blank(log_id(term, index))
}

pub(super) fn command(term: u64, index: u64, bytes: &[u8]) -> Entry {
    let payload = EntryPayload::Normal(Payload::new(Origin::default(), bytes));
    Entry { log_id: log_id(term, index), payload }
}

fn put(index: u64, key: &str, value: &[u8]) -> Entry {
    let request = Request::Put(PutRequest::of(key.to_owned(), value.to_vec()));
    let proposals = vec![Proposal { caller: Caller::default(), request }];
    let batch = Command::Batch(Batch { time: RingTime(index), proposals });
    command(1, index, &batch.encode())
}

/// Appends entries and waits until they are on disk.
pub(super) async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = Entry> + Send) {
    let entries: Vec<_> = entries.into_iter().collect();
    let (flushed, done) = Types::<Real>::oneshot();
    log.append(entries, IOFlushed::signal(flushed)).await.unwrap();
    done.await.unwrap().unwrap();
}

async fn indices(log: &mut LogStore) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime::current_thread().unwrap().block_on(future)
}

struct Builder;

impl StoreBuilder<Types, LogStore, Shipped, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Shipped), RaftStorageError> {
        let dir = tempfile::tempdir().unwrap();
        let member = open(dir.path()).unwrap();
        let Member { log, machine, checkpoints, inbox, .. } = member;
        Ok((dir, log, Shipped { machine, checkpoints, inbox }))
    }
}

/// The state machine with a network for its snapshots: the suite passes the sender's snapshot to
/// the receiver unchanged.
struct Shipped {
    machine: StateMachine,
    checkpoints: Checkpoints,
    inbox: Inbox,
}

impl RaftStateMachine<Types> for Shipped {
    type SnapshotData = SnapshotContent;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        self.machine.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.machine.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotContent,
    ) -> io::Result<()> {
        let sent = frames(&snapshot);
        let taken =
            receive(&self.checkpoints, &self.inbox, &sent).await.map_err(io::Error::other)?;
        self.machine.install_snapshot(meta, all(taken)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.machine.get_current_snapshot().await
    }
}

#[test]
fn openraft_accepts_the_storage() {
    block_on(Suite::test_all(Builder)).unwrap();
}

#[test]
fn everything_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    block_on(async {
        let mut member = open(path).unwrap();
        let log = &mut member.log;
        log.save_vote(&Vote::new(3, 1.into())).await.unwrap();
        append(log, (0..10).map(|i| blank(1, i))).await;
        log.truncate_after(Some(log_id(1, 7))).await.unwrap();
        append(log, [blank(2, 8), command(2, 9, &[7; 100])]).await;
        // Past the log: a member that learns of a commit before it has the entries.
        log.save_committed(Some(log_id(2, 20))).await.unwrap();
        append(log, [blank(2, 10)]).await;
        let instance = member.instance;
        member.close();

        let mut member = open(path).unwrap();
        assert_eq!(member.instance, instance);
        let log = &mut member.log;
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 1.into())));
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (None, Some(log_id(2, 10))));
        assert_eq!(indices(log).await, (0..=10).collect::<Vec<_>>());
        let tail = log.try_get_log_entries(7..=9).await.unwrap();
        assert_eq!(tail, [blank(1, 7), blank(2, 8), command(2, 9, &[7; 100])]);
        assert_eq!(log.read_committed().await.unwrap(), None, "a mark past the log is not kept");
        log.save_committed(Some(log_id(2, 9))).await.unwrap();
        member.close();

        let mut member = open(path).unwrap();
        assert_eq!(member.log.read_committed().await.unwrap(), Some(log_id(2, 9)));
        member.close();
    });
}

#[test]
fn a_purged_log_begins_where_the_checkpoint_ends() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut member = open(dir.path()).unwrap();
        append(&mut member.log, (0..10).map(|i| blank(1, i))).await;
        for index in 0..6 {
            apply(&mut member.machine, blank(1, index)).await;
        }
        member.snapshot().await;
        member.log.purge(log_id(1, 4)).await.unwrap();
        member.close();

        let mut member = open(dir.path()).unwrap();
        let state = member.log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(1, 4)));
        assert_eq!(indices(&mut member.log).await, (5..10).collect::<Vec<_>>());
        assert_eq!(member.machine.applied_state().await.unwrap().0, Some(log_id(1, 5)));
        // An entry that no checkpoint covers must not be purged; a member that purged it could not
        // start.
        member.log.purge(log_id(1, 8)).await.unwrap();
        member.close();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("the log is purged up to 8"), "{error}");
    });
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for old in fs::read_dir(to).unwrap() {
        fs::remove_file(old.unwrap().path()).unwrap();
    }
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Copies the directory at an arbitrary moment between two commits of the writer, as a crash would
/// leave it.
#[test]
fn a_crash_at_any_commit_leaves_a_log_without_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
    block_on(async {
        let mut member = open(&path).unwrap();
        for round in 0..12_u64 {
            let first = indices(&mut member.log).await.last().map_or(0, |last| last + 1);
            append(&mut member.log, (first..first + 3).map(|i| blank(round + 1, i))).await;
            if round % 3 == 2 {
                member.log.truncate_after(Some(log_id(round + 1, first))).await.unwrap();
            }
            if round % 4 == 3 {
                for index in first - 2..first {
                    apply(&mut member.machine, blank(round + 1, index)).await;
                }
                member.snapshot().await;
                member.log.purge(log_id(round + 1, first - 1)).await.unwrap();
            }
            let held = indices(&mut member.log).await;
            copy_files(&path, &crashed);
            let mut survivor = open(&crashed).unwrap();
            assert_eq!(indices(&mut survivor.log).await, held, "round {round}");
            survivor.close();
        }
        member.close();
    });
}

/// The name of the only file that starts with `prefix`.
fn file_of(path: &Path, prefix: &str) -> String {
    let names = fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name());
    let mut names = names.map(|name| name.into_string().unwrap());
    names.find(|name| name.starts_with(prefix)).unwrap()
}

#[test]
fn damaged_missing_and_foreign_data_stop_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let (intact, path) = (dir.path().join("intact"), dir.path().join("damaged"));
    block_on(async {
        let mut member = open(&intact).unwrap();
        append(&mut member.log, (0..3).map(|i| put(i, "k", &[i as u8 + 1; 50]))).await;
        apply(&mut member.machine, put(0, "k", &[1; 50])).await;
        member.snapshot().await;
        append(&mut member.log, [blank(1, 3)]).await;
        member.close();
    });
    let (log, state) = (file_of(&intact, "wal-"), file_of(&intact, "state"));
    let found = |file: &str, needle: &[u8]| {
        let content = fs::read(path.join(file)).unwrap();
        content.windows(needle.len()).position(|window| window == needle).unwrap()
    };
    let flip = |file: &str, at: usize| {
        let mut content = fs::read(path.join(file)).unwrap();
        content[at] ^= 1;
        fs::write(path.join(file), content).unwrap();
    };
    let refused = |why: &str| {
        let error = open(&path).err().unwrap_or_else(|| panic!("{why}"));
        assert!(matches!(error, DiskError::Storage(StorageError::Damaged { .. })), "{error}");
    };
    copy_files(&intact, &path);
    // Not in the last commit, which could be an interrupted write.
    flip(&log, found(&log, &[2; 50]) + 7);
    refused("a flipped bit in the log");
    copy_files(&intact, &path);
    flip(&state, found(&state, &[1; 50]) + 7);
    refused("a flipped bit in the state");
    copy_files(&intact, &path);
    fs::remove_file(path.join(&log)).unwrap();
    refused("votes are gone");
    copy_files(&intact, &path);
    let stranger = Owner { member: "m9".into(), ..owner() };
    let error = open_as(&path, &stranger).err().unwrap();
    assert!(matches!(error, DiskError::Storage(StorageError::Foreign { .. })), "{error}");
    let elsewhere = Owner { ring: [2; 32], ..owner() };
    let error = open_as(&path, &elsewhere).err().unwrap();
    assert!(matches!(error, DiskError::Storage(StorageError::Foreign { .. })), "{error}");
    open(&path).unwrap().close();
}

#[test]
fn requests_are_cut_by_bytes_and_purges_keep_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut member = open(dir.path()).unwrap();
        let log = &mut member.log;
        let half = APPEND_BATCH_BYTES / 2 + 1;
        let sizes = [2 * APPEND_BATCH_BYTES, 10, half, half];
        append(log, (0..).zip(sizes).map(|(i, size)| command(1, i, &vec![0; size]))).await;
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

async fn apply(machine: &mut StateMachine, entry: Entry) {
    machine.apply(futures::stream::iter([Ok((entry, None))])).await.unwrap();
}

#[test]
fn a_command_that_does_not_verify_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut member = open(dir.path()).unwrap();
        let before = member.digest();
        // One command that is verified inline, and one that is verified on another thread.
        for (index, bytes) in [(1, 100), (2, 1_000_000)] {
            let forged = register::forged(register::write(&vec![7; bytes]));
            apply(&mut member.machine, command(1, index, &forged)).await;
        }
        apply(&mut member.machine, command(1, 3, b"noise")).await;
        let (applied, _) = member.machine.applied_state().await.unwrap();
        assert_eq!(applied, Some(log_id(1, 3)));
        assert_eq!((member.version(), member.digest()), (0, before));
        let written = register::write(&vec![7; 1_000_000]);
        apply(&mut member.machine, command(1, 4, &written)).await;
        assert_eq!(member.version(), 1);
        member.close();
    });
}
