//! Scheduled snapshots: a member writes the state of its ring to files, and removes old files.
//!
//! Backups fail silently: they stop for months, cannot be restored, or a bad one replaces the last
//! good one. So every snapshot file, of an operator or of a schedule, is written as a [`Draft`], and
//! the log and the status of a member report that its last scheduled snapshot failed.
//!
//! Each member with a schedule writes files of its own, into its own directory. So there are copies
//! on as many machines as the operator configures, and neither a new leader nor the loss of a member
//! stops them. The members' start times are spread over the interval.
//!
//! # Invariants
//!
//! - **SNAPSHOT-1** A file with the name of a snapshot is durable, and its content was read back and
//!   restored in memory.
//! - **SNAPSHOT-2** An older snapshot is removed only after a newer one has its name; other files
//!   in the directory are never removed.
//! - **SNAPSHOT-3** A scheduled snapshot holds every write that was acknowledged before it began.
//!   An isolated member, which cannot know them, writes none.
//! - **SNAPSHOT-4** A snapshot does not begin if it would take the disk space that a ring on the same
//!   disk needs.
//!
//! # Deliberately absent
//!
//! Sending files elsewhere: the directory may be a mount, and every site has its own tool.

mod draft;
mod names;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use satrap_proto::v1::SnapshotStatus;
use satrap_ring_api::backend::{
    AdminReply, AdminRequest, Failure, ReadMode, SnapshotStream, Unavailable,
};
use satrap_ring_core::StateSetup;
use satrap_ring_storage::limits::SPACE_LOW_BYTES;
use satrap_runtime::{Shutdown, clock, files};
use tokio::{
    sync::{oneshot, watch},
    task,
    time::sleep,
};

pub use self::draft::{Draft, DraftError, Whole};
use self::names::{Names, Stamp, due};
use crate::{ring::Ring, setup::RingSetup, types::MemberName};

/// Time between reads of the wall clock, which an administrator may set meanwhile.
const LOOK: Duration = Duration::from_secs(60);
/// Time between a failed attempt and the next one, unless the interval is shorter.
const RETRY: Duration = Duration::from_secs(60);
/// The subject under which the member reports a fault of the schedule.
const FAULT_SUBJECT: &str = "snapshots";

/// The schedule of snapshots: interval, directory, and number to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two snapshots; whole seconds, at least one.
    pub interval: Duration,
    /// The directory; it or its parent must exist.
    pub dir: PathBuf,
    /// The number of snapshots to keep.
    pub keep: usize,
}

/// A failed scheduled snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The file could not be written and read back in full (SNAPSHOT-1).
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The directory of the snapshots cannot be created or read.
    #[error("{}: {error}; create it or correct `snapshots.dir`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
    /// The file system failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The error of the file system.
        error: io::Error,
    },
    /// No majority confirmed that this member has every acknowledged write (SNAPSHOT-3).
    #[error("this member cannot show that its state is the newest: {0}")]
    Stale(Unavailable),
    /// The ring could not provide its state.
    #[error("the state cannot be read: {0}")]
    Source(Failure),
    /// The stream of the state ended early.
    #[error("the ring sent {got} of {expected} bytes of its state and then ended the stream")]
    Short {
        /// The bytes that arrived.
        got: u64,
        /// The bytes that were announced.
        expected: u64,
    },
    /// The snapshot would take the disk space that the ring needs (SNAPSHOT-4).
    #[error(
        "{}: not enough disk space: {free} bytes are free, {needed} are needed for the snapshot and \
         the ring's own files; free some space", path.display()
    )]
    Room {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Bytes that must be free.
        needed: u64,
    },
}

/// The state of a schedule of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduleState {
    /// The newest complete snapshot.
    pub newest: Option<Made>,
    /// The error of the last attempt, or of the removal of old snapshots after it.
    pub error: Option<String>,
}

/// A snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The path of the file.
    pub path: PathBuf,
    /// The newest revision in it.
    pub revision: i64,
    /// Its completion time in seconds since the Unix epoch.
    pub time_s: u64,
}

impl ScheduleState {
    /// The schedule's part in the status of this member.
    #[must_use]
    pub fn to_wire(&self) -> SnapshotStatus {
        let made = self.newest.as_ref();
        SnapshotStatus {
            file: made.map(|made| made.path.display().to_string()).unwrap_or_default(),
            revision: made.map_or(0, |made| made.revision),
            time_unix_ns: made.map_or(0, |made| made.time_s.saturating_mul(1_000_000_000)),
            error: self.error.clone().unwrap_or_default(),
        }
    }
}

/// The state of a schedule, published after every change.
pub type Watched = watch::Receiver<ScheduleState>;

/// Runs the schedule of one member.
pub struct Scheduler {
    ring: Ring,
    target: Arc<SnapshotDir>,
    interval_s: u64,
    offset_s: u64,
    progress: watch::Sender<ScheduleState>,
}

impl Scheduler {
    /// A scheduler for the member of `setup`.
    #[must_use]
    pub fn new(schedule: Schedule, setup: &RingSetup, ring: &Ring) -> (Self, Watched) {
        let interval_s = schedule.interval.as_secs().max(1);
        let progress = watch::Sender::default();
        let watched = progress.subscribe();
        let target = SnapshotDir {
            dir: schedule.dir,
            keep: schedule.keep.max(1),
            names: Names::new(&setup.region, setup.name.as_str()),
            state: setup.state.clone(),
        };
        let offset_s = offset(interval_s, &setup.members, &setup.name);
        let target = Arc::new(target);
        (Self { ring: ring.clone(), target, interval_s, offset_s, progress }, watched)
    }

    /// Writes snapshots until `shutdown`.
    ///
    /// # Errors
    ///
    /// None: a member that cannot write snapshots still serves.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Infallible> {
        tokio::select! {
            biased;
            () = shutdown.requested() => {}
            () = self.forever(&shutdown) => {}
        }
        Ok(())
    }

    async fn forever(&self, shutdown: &Shutdown) {
        let retry = RETRY.min(Duration::from_secs(self.interval_s));
        // There is nothing to save before the member belongs to a ring.
        self.ring.identity().await;
        loop {
            let pause = match self.step(shutdown).await {
                Ok(pause) => pause.min(LOOK),
                Err(error) => {
                    tracing::error!(%error, "scheduled snapshot failed; older ones are kept");
                    self.record_result(Some(error.to_string()));
                    retry
                }
            };
            sleep(pause).await;
        }
    }

    /// Makes a snapshot if one is due; returns the time until the next.
    async fn step(&self, shutdown: &Shutdown) -> Result<Duration, ScheduleError> {
        let newest = self.target.list()?.into_iter().next_back();
        let (now_s, newest_s) = (clock::now() / 1_000_000_000, newest.map(|stamp| stamp.time_s));
        let wait = due(now_s, newest_s, self.interval_s, self.offset_s);
        let found = newest.map(|stamp| self.target.made(stamp));
        if self.progress.borrow().newest != found {
            self.progress.send_modify(|state| state.newest = found);
        }
        if !wait.is_zero() {
            return Ok(wait);
        }
        self.confirm_freshness().await?;
        let stream = self.ring.administer(AdminRequest::Snapshot).await;
        let stream = match stream.map_err(ScheduleError::Source)? {
            AdminReply::Snapshot(stream) => stream,
            _ => return Err(ScheduleError::Source(Unavailable::Stopped.into())),
        };
        let (target, shutdown) = (self.target.clone(), shutdown.clone());
        let saved = task::spawn_blocking(move || {
            let made = target.save(stream, &shutdown)?;
            let error = target.prune().err();
            Ok::<_, ScheduleError>((made, error))
        });
        let stopped = |_| ScheduleError::Source(Unavailable::Stopped.into());
        let (made, error) = saved.await.map_err(stopped)??;
        tracing::info!(path = %made.path.display(), revision = made.revision, "snapshot made");
        if let Some(error) = &error {
            tracing::error!(%error, "cannot remove an old snapshot");
        }
        self.progress.send_modify(|state| state.newest = Some(made));
        self.record_result(error.map(|error| error.to_string()));
        Ok(Duration::ZERO)
    }

    /// SNAPSHOT-3
    async fn confirm_freshness(&self) -> Result<(), ScheduleError> {
        let (reader, answer) = oneshot::channel();
        self.ring.reads.clone().serve(ReadMode::Linearizable, vec![reader]).await;
        let fresh = answer.await.unwrap_or(Err(Unavailable::Stopped));
        fresh.map(drop).map_err(ScheduleError::Stale)
    }

    fn record_result(&self, error: Option<String>) {
        self.ring.report_fault(FAULT_SUBJECT, error.as_deref());
        self.progress.send_modify(|state| state.error = error);
    }
}

/// The member's offset in the interval, so that the start times of the members are spread evenly.
fn offset(interval_s: u64, members: &BTreeMap<MemberName, String>, name: &MemberName) -> u64 {
    let rank = members.keys().position(|member| member == name).unwrap_or(0) as u64;
    interval_s * rank / (members.len() as u64).max(1)
}

/// The directory of a member's snapshots, and how its files are named.
struct SnapshotDir {
    dir: PathBuf,
    keep: usize,
    names: Names,
    state: StateSetup,
}

impl SnapshotDir {
    fn about(&self) -> impl Fn(io::Error) -> ScheduleError {
        let path = self.dir.clone();
        move |error| ScheduleError::Directory { path: path.clone(), error }
    }

    fn made(&self, stamp: Stamp) -> Made {
        let Stamp { time_s, revision } = stamp;
        Made { path: self.dir.join(self.names.of(stamp)), revision, time_s }
    }

    /// The snapshots in the directory, oldest first.
    fn list(&self) -> Result<Vec<Stamp>, ScheduleError> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.about()(error));
            }
            _ => {}
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(self.about())? {
            let name = entry.map_err(self.about())?.file_name();
            found.extend(name.to_str().and_then(|name| self.names.read(name)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// SNAPSHOT-1, SNAPSHOT-4
    fn save(&self, stream: SnapshotStream, shutdown: &Shutdown) -> Result<Made, ScheduleError> {
        let SnapshotStream { total_bytes: expected, mut chunks } = stream;
        let (free, needed) = (free_bytes(&self.dir).map_err(self.about())?, expected);
        let needed = needed.saturating_add(SPACE_LOW_BYTES);
        if free < needed {
            return Err(ScheduleError::Room { path: self.dir.clone(), free, needed });
        }
        let mut draft = Draft::create(self.dir.join(self.names.partial()))?;
        let mut got = 0;
        while let Some(chunk) = chunks.blocking_recv() {
            if shutdown.is_requested() {
                return Err(ScheduleError::Source(Unavailable::Stopped.into()));
            }
            let chunk = chunk.map_err(|error| ScheduleError::Source(error.into()))?;
            draft.write(&chunk)?;
            got += chunk.len() as u64;
        }
        if got != expected {
            return Err(ScheduleError::Short { got, expected });
        }
        let whole = draft.verify(&self.state)?;
        let time_s = clock::now() / 1_000_000_000;
        let made = self.made(Stamp { time_s, revision: whole.facts().revision });
        whole.name(&made.path)?;
        Ok(made)
    }

    /// SNAPSHOT-2: removes surplus snapshots, oldest first.
    fn prune(&self) -> Result<(), ScheduleError> {
        let mut old = self.list()?;
        old.truncate(old.len().saturating_sub(self.keep));
        for stamp in &old {
            let path = self.made(*stamp).path;
            fs::remove_file(&path).map_err(|error| ScheduleError::Io { path, error })?;
        }
        files::sync_directory(&self.dir).map_err(self.about())
    }
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests;
