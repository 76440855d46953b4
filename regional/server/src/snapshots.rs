//! Files that hold the state of a ring: how one is made, and a member that makes them by itself.
//!
//! Backups fail in silence: they stop for months, cannot be restored, or the newest good one was
//! thrown away for a bad one. So whoever makes a file, an operator or a schedule, makes it the same
//! way, as a [`Draft`], and a schedule says in log and status when its last attempt failed.
//!
//! Each member whose configuration says so makes its own, into a directory of its own choice: copies
//! lie on as many machines as the operator wants, and no change of leaders or loss of a member
//! stops them. Members have different slots, so that they are not all at it at the same time.
//!
//! # Invariants
//!
//! - **N1** What has the name of a snapshot is durable, and was read back and rebuilt in memory.
//! - **N2** An older snapshot is removed only after a newer one has its name; of other files in the
//!   directory, none.
//! - **N3** A scheduled snapshot holds every write that was acknowledged before it began. A member
//!   that cannot know that, because it is cut off, makes none.
//! - **N4** None is begun that would take the room which a ring on the same disk needs.
//!
//! # Deliberately absent
//!
//! Sending files elsewhere: the directory may be a mount, and every site has its own tool for it.

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

use satrap_certify::{Genesis, Label};
use satrap_host::{Shutdown, clock, files};
use satrap_proto::v1::SnapshotStatus;
use satrap_regional_api::backend::{
    AdminReply, AdminRequest, Failure, ReadMode, SnapshotStream, Unavailable,
};
use satrap_regional_storage::limits::SPACE_LOW_BYTES;
use tokio::{
    sync::{oneshot, watch},
    task,
    time::sleep,
};

pub use self::draft::{Draft, DraftError, Whole};
use self::names::{Names, Stamp, due};
use crate::{config::Config, raft::Ring};

/// Between looks at the wall clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(60);
/// After a failed attempt, unless the interval is shorter.
const RETRY: Duration = Duration::from_secs(60);
/// Under this name the ring shows what is wrong with the schedule.
const COMPLAINT: &str = "snapshots";

/// When, where, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Between two snapshots; whole seconds, at least one.
    pub interval: Duration,
    /// Where they go; must exist, or its parent.
    pub dir: PathBuf,
    /// How many stay.
    pub keep: usize,
}

/// Why a member made no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// N1
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The directory.
    #[error("{}: {error}", path.display())]
    Io {
        /// About this.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// N3
    #[error("this member's state is not the newest, or nobody can tell: {0}")]
    Stale(Unavailable),
    /// The ring could not give its state.
    #[error("the state cannot be read: {0}")]
    Source(Failure),
    /// The state ended early.
    #[error("the state ended after {got} of {expected} bytes")]
    Short {
        /// How many came.
        got: u64,
        /// How many were announced.
        expected: u64,
    },
    /// N4
    #[error(
        "{}: {free} bytes are free, expected at least {needed}: the snapshot, and what a ring on \
         this disk needs", path.display()
    )]
    Room {
        /// The directory.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What must be.
        needed: u64,
    },
}

/// How the schedule is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest snapshot that is whole.
    pub newest: Option<Made>,
    /// Why the last attempt failed, if it did, or what could not be removed after it.
    pub error: Option<String>,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its file.
    pub path: PathBuf,
    /// Everything up to here is in it.
    pub revision: i64,
    /// Seconds since the Unix epoch when it was whole.
    pub time_s: u64,
}

impl Standing {
    /// For the status of this member.
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

/// Where others see how the schedule is doing.
pub type Watched = watch::Receiver<Standing>;

/// Makes the snapshots of one member.
pub struct Scheduler {
    ring: Ring,
    place: Arc<Place>,
    interval_s: u64,
    offset_s: u64,
    standing: watch::Sender<Standing>,
}

impl Scheduler {
    /// For the member of `config`, if it has a schedule.
    #[must_use]
    pub fn new(config: &Config, ring: &Ring) -> Option<(Self, Watched)> {
        let schedule = config.snapshots.clone()?;
        let interval_s = schedule.interval.as_secs().max(1);
        let standing = watch::Sender::default();
        let watched = standing.subscribe();
        let place = Place {
            dir: schedule.dir,
            keep: schedule.keep.max(1),
            names: Names::new(&config.region, &config.name),
            genesis: config.genesis.clone(),
        };
        let offset_s = offset(interval_s, &config.peer_urls, &config.name);
        let place = Arc::new(place);
        Some((Self { ring: ring.clone(), place, interval_s, offset_s, standing }, watched))
    }

    /// Makes snapshots until `shutdown`.
    ///
    /// # Errors
    ///
    /// None: a member that cannot make snapshots still serves.
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
        // Before it belongs to a ring there is nothing to save.
        self.ring.identity().await;
        loop {
            let pause = match self.step(shutdown).await {
                Ok(pause) => pause.min(LOOK),
                Err(error) => {
                    tracing::error!(%error, "no snapshot was made; older ones are kept");
                    self.judge(Some(error.to_string()));
                    retry
                }
            };
            sleep(pause).await;
        }
    }

    /// Makes a snapshot if one is due; returns the time until the next.
    async fn step(&self, shutdown: &Shutdown) -> Result<Duration, ScheduleError> {
        let newest = self.place.list()?.into_iter().next_back();
        let (now_s, newest_s) = (clock::now() / 1_000_000_000, newest.map(|stamp| stamp.time_s));
        let wait = due(now_s, newest_s, self.interval_s, self.offset_s);
        let found = newest.map(|stamp| self.place.made(stamp));
        if self.standing.borrow().newest != found {
            self.standing.send_modify(|standing| standing.newest = found);
        }
        if !wait.is_zero() {
            return Ok(wait);
        }
        self.be_fresh().await?;
        let stream = self.ring.administer(AdminRequest::Snapshot).await;
        let stream = match stream.map_err(ScheduleError::Source)? {
            AdminReply::Snapshot(stream) => stream,
            _ => return Err(ScheduleError::Source(Unavailable::Stopped.into())),
        };
        let (place, shutdown) = (self.place.clone(), shutdown.clone());
        let saved = task::spawn_blocking(move || {
            let made = place.save(stream, &shutdown)?;
            let error = place.prune().err();
            Ok::<_, ScheduleError>((made, error))
        });
        let stopped = |_| ScheduleError::Source(Unavailable::Stopped.into());
        let (made, error) = saved.await.map_err(stopped)??;
        tracing::info!(path = %made.path.display(), revision = made.revision, "snapshot made");
        if let Some(error) = &error {
            tracing::error!(%error, "an old snapshot could not be removed");
        }
        self.standing.send_modify(|standing| standing.newest = Some(made));
        self.judge(error.map(|error| error.to_string()));
        Ok(Duration::ZERO)
    }

    /// N3
    async fn be_fresh(&self) -> Result<(), ScheduleError> {
        let (reader, answer) = oneshot::channel();
        self.ring.clone().freshen(ReadMode::Linearizable, vec![reader]).await;
        let fresh = answer.await.unwrap_or(Err(Unavailable::Stopped));
        fresh.map(drop).map_err(ScheduleError::Stale)
    }

    fn judge(&self, error: Option<String>) {
        self.ring.complain(COMPLAINT, error.as_deref());
        self.standing.send_modify(|standing| standing.error = error);
    }
}

/// Shares the interval out among the members.
fn offset(interval_s: u64, members: &BTreeMap<Label, String>, name: &Label) -> u64 {
    let rank = members.keys().position(|member| member == name).unwrap_or(0) as u64;
    interval_s * rank / (members.len() as u64).max(1)
}

/// The directory and what goes there.
struct Place {
    dir: PathBuf,
    keep: usize,
    names: Names,
    genesis: Arc<Genesis>,
}

impl Place {
    fn about(&self) -> impl Fn(io::Error) -> ScheduleError {
        let path = self.dir.clone();
        move |error| ScheduleError::Io { path: path.clone(), error }
    }

    fn made(&self, stamp: Stamp) -> Made {
        let Stamp { time_s, revision } = stamp;
        Made { path: self.dir.join(self.names.of(stamp)), revision, time_s }
    }

    /// The snapshots that are there, oldest first.
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

    /// N1, N4
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
        let whole = draft.verify(&self.genesis)?;
        let time_s = clock::now() / 1_000_000_000;
        let made = self.made(Stamp { time_s, revision: whole.facts().revision });
        whole.name(&made.path)?;
        Ok(made)
    }

    /// N2: removes what is too many, oldest first.
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
