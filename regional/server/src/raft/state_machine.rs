//! Applies committed entries to the [`Region`], and turns it into snapshots and back.
//!
//! The region lives in memory; what survives a restart is the newest snapshot plus the log after
//! it. Decisions are [`Region`]'s: this module moves bytes and counts indices.
//!
//! # Invariants
//!
//! - **M1** A snapshot is on disk before openraft hears of it, hence before any log it covers is
//!   purged.
//! - **M2** A snapshot becomes state only by [`Region::restore`], which verifies all of it, whether
//!   it came from a peer or from the own disk.
//! - **M3** A command that does not decode or does not verify changes nothing, on every member alike.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use satrap_certify::{Genesis, Rejection};
use satrap_merkle::codec::Canonical as _;
use satrap_regional_core::{Command, Outcome, Region};
use tokio::{
    sync::{Mutex, watch},
    task,
};

use super::{
    disk::{Disk, Record},
    types::{LogId, Membership, Payload, Reply, Snapshot, SnapshotMeta, Types},
    writer::WriteHandle,
};

/// Commands longer than this are verified on another thread: hashing megabytes on this one would
/// delay heartbeats.
const INLINE_COMMAND_BYTES_MAX: usize = 64 * 1024;

/// A snapshot in transit.
#[derive(Clone, Debug)]
pub struct SnapshotContent {
    /// [`Region::snapshot`].
    pub bytes: Bytes,
    /// The state in `bytes`, if whoever made this has verified it already.
    pub verified: Option<Arc<Region>>,
}

/// Where snapshots are kept.
#[derive(Clone)]
pub struct SnapshotStore {
    disk: Arc<Disk>,
    writer: WriteHandle,
    /// What the newest one covers. Held while writing, so that a build that took long cannot
    /// replace a newer snapshot that was installed meanwhile, whose log is already purged.
    newest: Arc<Mutex<Option<LogId>>>,
}

/// The state machine of one member.
pub struct StateMachine {
    genesis: Arc<Genesis>,
    region: Arc<Region>,
    applied: Option<LogId>,
    membership: Membership,
    snapshots: SnapshotStore,
    published: watch::Sender<Arc<Region>>,
}

/// A consistent view of the state, to be written as a snapshot.
pub struct SnapshotBuilder {
    region: Arc<Region>,
    meta: SnapshotMeta,
    snapshots: SnapshotStore,
}

fn invalid(rejection: &Rejection) -> io::Error {
    let why = format!("snapshot refused by rule {}: {rejection}", rejection.rule());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    task::spawn_blocking(work).await.map_err(io::Error::other)
}

impl SnapshotStore {
    /// Snapshots on `disk`, written through `writer`.
    #[must_use]
    pub fn new(disk: Arc<Disk>, writer: WriteHandle) -> Self {
        Self { disk, writer, newest: Arc::default() }
    }

    async fn load(&self) -> io::Result<Option<(SnapshotMeta, Bytes)>> {
        let disk = self.disk.clone();
        let held = off_thread(move || disk.snapshot()).await??;
        if let Some((meta, _)) = &held {
            let mut newest = self.newest.lock().await;
            *newest = (*newest).max(meta.last_log_id);
        }
        Ok(held)
    }

    async fn save(&self, meta: SnapshotMeta, bytes: Bytes) -> io::Result<()> {
        let mut newest = self.newest.lock().await;
        if meta.last_log_id >= *newest {
            let covers = meta.last_log_id;
            self.writer.write(Record::Snapshot(meta, bytes)).await?;
            *newest = covers;
        }
        Ok(())
    }
}

impl StateMachine {
    /// The state before any entry; openraft brings it up to date from snapshot and log.
    #[must_use]
    pub fn new(
        genesis: Arc<Genesis>,
        snapshots: SnapshotStore,
    ) -> (Self, watch::Receiver<Arc<Region>>) {
        let region = Arc::new(Region::genesis(&genesis));
        let (published, views) = watch::channel(region.clone());
        let (applied, membership) = (None, Membership::default());
        (Self { genesis, region, applied, membership, snapshots, published }, views)
    }

    async fn apply_payload(&mut self, payload: Payload) -> io::Result<Reply> {
        let region = self.region.clone();
        let short = payload.0.len() <= INLINE_COMMAND_BYTES_MAX;
        let work = move || apply_to(region, &payload.0);
        let (region, reply) = if short { work() } else { off_thread(work).await? };
        if let Some(region) = region {
            self.region = region.clone();
            self.published.send_replace(region);
        }
        Ok(reply)
    }
}

/// M3
fn apply_to(region: Arc<Region>, command: &[u8]) -> (Option<Arc<Region>>, Reply) {
    let refused = |rejection: &Rejection| {
        let (rule, why) = (rejection.rule().to_owned(), rejection.to_string());
        tracing::error!(rule, why, "the log holds a command that does not verify");
        (None, Reply::Refused { rule, why })
    };
    let command = match Command::from_canonical(command) {
        Ok(command) => command,
        Err(error) => return refused(&error.into()),
    };
    let mut next = Arc::unwrap_or_clone(region);
    match next.apply(&command) {
        Outcome::Adopted(height) => (Some(Arc::new(next)), Reply::Adopted(height)),
        Outcome::Refused(rejection) => refused(&rejection),
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotContent;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = match entry.payload {
                EntryPayload::Blank => Reply::Blank,
                EntryPayload::Normal(payload) => self.apply_payload(payload).await?,
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    Reply::Blank
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        SnapshotBuilder { region: self.region.clone(), meta, snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotContent,
    ) -> io::Result<()> {
        let SnapshotContent { bytes, verified } = snapshot;
        let region = match verified {
            Some(region) => region,
            None => restore(self.genesis.clone(), bytes.clone()).await?.map_err(|r| invalid(&r))?,
        };
        let held = self.snapshots.load().await?;
        if held.is_none_or(|(held, content)| held != *meta || content != bytes) {
            self.snapshots.save(meta.clone(), bytes).await?;
        }
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.region = region.clone();
        self.published.send_replace(region);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let held = self.snapshots.load().await?;
        Ok(held.map(|(meta, bytes)| Snapshot {
            meta,
            snapshot: SnapshotContent { bytes, verified: None },
        }))
    }
}

/// Verifies a snapshot on another thread (M2).
///
/// # Errors
///
/// The outer error if the thread failed, the inner one if the snapshot does not verify.
pub async fn restore(
    genesis: Arc<Genesis>,
    bytes: Bytes,
) -> io::Result<Result<Arc<Region>, Rejection>> {
    off_thread(move || Region::restore(&genesis, &bytes).map(Arc::new)).await
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotContent;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let region = self.region.clone();
        let bytes: Bytes = off_thread(move || region.snapshot()).await?.into();
        // M1
        self.snapshots.save(self.meta.clone(), bytes.clone()).await?;
        let snapshot = SnapshotContent { bytes, verified: Some(self.region.clone()) };
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}
