//! Applies committed entries, answers whoever waits for them, and gives and takes snapshots.
//!
//! Two states are held in memory: the certified replica, which only verified updates move, and the
//! keyspace, which clients move. Decisions are theirs: this module moves bytes and counts indices.
//! The snapshot is the checkpoint on disk (see [`super::checkpoint`]), so none is ever built.
//!
//! # Invariants
//!
//! - **M1** A snapshot is on disk before openraft hears of it, hence before any log it covers is
//!   purged.
//! - **M2** A snapshot from a peer becomes state only after all of its rows had their digests and its
//!   replica was verified again.
//! - **M3** A command that does not decode or does not verify changes nothing, on every member alike.
//! - **M4** A client is answered after its entry was applied here, never before.
//! - **M5** A member that is removed takes its want of space along.

use std::{
    collections::BTreeSet,
    io,
    marker::PhantomData,
    sync::{Arc, Mutex, mpsc},
};

use futures::{Stream, StreamExt as _};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    async_runtime::WatchSender as _,
    storage::{EntryResponder, RaftStateMachine},
    type_config::{
        TypeConfigExt as _,
        alias::{WatchReceiverOf, WatchSenderOf},
    },
};
use satrap_certify::{Rejection, Timestamp, Update};
use satrap_merkle::codec::DecodeError;
use satrap_regional_api::backend::AppliedMark;
use satrap_regional_core::{Batch, Command, Outcome, Region};
use satrap_regional_storage::snapshot::Reader;
use tokio::sync::{oneshot, watch};

use super::{
    checkpoint::{CheckpointRequest, Checkpoints, Shared},
    clock::RingClock,
    disk::read_applied,
    inbox::Arrived,
    lock,
    meters::SLOW_APPLY,
    platform::{Platform, Real},
    types::{LogId, Membership, Payload, Reply, Snapshot, SnapshotMeta, Types},
    waiters::{Origin, Waiters},
};

/// Updates longer than this are verified on another thread: hashing megabytes on this one would
/// delay heartbeats.
const INLINE_COMMAND_BYTES_MAX: usize = 64 * 1024;

/// A snapshot in transit.
pub enum SnapshotContent {
    /// The checkpoint on this member's disk, ready to be sent.
    Stored(Arc<Mutex<Reader>>),
    /// What a peer sent, verified (M2).
    Arrived(Box<Arrived>),
}

/// What apply publishes.
pub struct Published<P: Platform> {
    /// The certified replica, again after every change.
    pub views: watch::Sender<Arc<Region>>,
    /// How far the keyspace is; locked only because openraft does not say that it may be shared.
    pub applied: Mutex<WatchSenderOf<Types<P>, AppliedMark>>,
}

/// How far the keyspace is.
pub type Marks<P> = WatchReceiverOf<Types<P>, AppliedMark>;

/// The state machine of one member.
pub struct StateMachine<P: Platform = Real> {
    shared: Shared,
    checkpoints: Checkpoints,
    requests: mpsc::SyncSender<CheckpointRequest>,
    clock: Arc<Mutex<RingClock>>,
    waiters: Waiters,
    published: Published<P>,
}

/// Asks for a checkpoint, which is the snapshot.
pub struct SnapshotBuilder<P = Real> {
    checkpoints: Checkpoints,
    requests: mpsc::SyncSender<CheckpointRequest>,
    _platform: PhantomData<P>,
}

fn refused(rejection: &Rejection) -> Reply {
    let (rule, why) = (rejection.rule().to_owned(), rejection.to_string());
    tracing::error!(rule, why, "the log holds a command that does not verify");
    Reply::Refused { rule, why }
}

impl<P: Platform> StateMachine<P> {
    /// A machine that goes on with `shared`.
    #[must_use]
    pub fn new(
        shared: Shared,
        checkpoints: Checkpoints,
        requests: mpsc::SyncSender<CheckpointRequest>,
        clock: Arc<Mutex<RingClock>>,
        waiters: Waiters,
    ) -> (Self, watch::Receiver<Arc<Region>>, Marks<P>) {
        let standing = shared.standing();
        let mark = mark(&shared, standing.applied);
        let (views, view) = watch::channel(standing.region);
        let (applied, marks) = Types::<P>::watch_channel(mark);
        let published = Published { views, applied: applied.into() };
        (Self { shared, checkpoints, requests, clock, waiters, published }, view, marks)
    }

    async fn apply_payload(&mut self, log_id: LogId, payload: &Payload) -> io::Result<Reply> {
        let command = payload
            .open()
            .ok_or(DecodeError::Truncated)
            .and_then(|(origin, bytes)| Ok((origin, bytes.len(), Command::from_shared(&bytes)?)));
        match command {
            Ok((origin, _, Command::Batch(batch))) => {
                self.apply_batch(log_id, origin, &batch);
                Ok(Reply::Batch)
            }
            Ok((_, bytes, Command::Adopt { update, now })) => {
                self.adopt(log_id, bytes, *update, now).await
            }
            // M3
            Err(error) => {
                self.stand(log_id, None);
                Ok(refused(&error.into()))
            }
        }
    }

    fn apply_batch(&mut self, log_id: LogId, origin: Origin, batch: &Batch) {
        let began = P::monotonic();
        let (mut keyspace, mut standing) = self.shared.lock();
        let replies = keyspace.apply(batch);
        self.shared.take_digest(log_id.index, &keyspace);
        let revision = keyspace.store().revision();
        standing.applied = Some(log_id);
        drop((keyspace, standing));
        let term = log_id.committed_leader_id().term;
        let now = P::monotonic();
        lock(&self.clock).applied(batch.time.0, now);
        if now.saturating_sub(began) > SLOW_APPLY {
            self.shared.meters.slow_applies.add_one();
        }
        // M4
        self.waiters.fulfill(origin, term, replies);
        self.tell(AppliedMark { revision, index: log_id.index, term });
    }

    async fn adopt(
        &mut self,
        log_id: LogId,
        bytes: usize,
        update: Update,
        now: Timestamp,
    ) -> io::Result<Reply> {
        let region = self.shared.standing().region;
        let work = move || {
            let mut next = Arc::unwrap_or_clone(region);
            let outcome = next.adopt(&update, now);
            (next, outcome)
        };
        let short = bytes <= INLINE_COMMAND_BYTES_MAX;
        let (next, outcome) = if short { work() } else { P::off_thread(work).await? };
        match outcome {
            Outcome::Adopted(height) => {
                let next = Arc::new(next);
                self.stand(log_id, Some(next.clone()));
                self.published.views.send_replace(next);
                Ok(Reply::Adopted(height))
            }
            Outcome::Refused(rejection) => {
                self.stand(log_id, None);
                Ok(refused(&rejection))
            }
        }
    }

    /// M5
    fn change_members(&self, next: Membership) {
        let (mut keyspace, mut standing) = self.shared.lock();
        let ids = |membership: &Membership| -> BTreeSet<u64> {
            membership.nodes().map(|(_, node)| node.id).collect()
        };
        let stay = ids(&next);
        ids(&standing.membership).difference(&stay).for_each(|gone| keyspace.part_with(*gone));
        standing.membership = next;
    }

    fn tell(&self, mark: AppliedMark) {
        // Nobody may be listening, which is no news.
        let _ = lock(&self.published.applied).send(mark);
    }

    /// The entry was applied and did not concern the keyspace.
    fn stand(&self, log_id: LogId, region: Option<Arc<Region>>) {
        let (keyspace, mut standing) = self.shared.lock();
        let revision = keyspace.store().revision();
        standing.applied = Some(log_id);
        if let Some(region) = region {
            (standing.region, standing.region_changed) = (region, true);
        }
        drop((keyspace, standing));
        let term = log_id.committed_leader_id().term;
        self.tell(AppliedMark { revision, index: log_id.index, term });
    }
}

fn mark(shared: &Shared, applied: Option<LogId>) -> AppliedMark {
    let revision = shared.read(|keyspace| keyspace.store().revision());
    let index = applied.map_or(0, |id| id.index);
    AppliedMark { revision, index, term: applied.map_or(0, |id| id.committed_leader_id().term) }
}

impl<P: Platform> RaftStateMachine<Types<P>> for StateMachine<P> {
    type SnapshotData = SnapshotContent;
    type SnapshotBuilder = SnapshotBuilder<P>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let standing = self.shared.standing();
        Ok((standing.applied, standing.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<P>>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = match &entry.payload {
                EntryPayload::Blank => {
                    self.stand(entry.log_id, None);
                    Reply::Blank
                }
                EntryPayload::Normal(payload) => self.apply_payload(entry.log_id, payload).await?,
                EntryPayload::Membership(membership) => {
                    let next = Membership::new(Some(entry.log_id), membership.clone());
                    self.change_members(next);
                    self.stand(entry.log_id, None);
                    Reply::Blank
                }
            };
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<P> {
        let (checkpoints, requests) = (self.checkpoints.clone(), self.requests.clone());
        SnapshotBuilder { checkpoints, requests, _platform: PhantomData }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotContent,
    ) -> io::Result<()> {
        let SnapshotContent::Arrived(arrived) = snapshot else {
            // openraft does that at start if the snapshot is ahead of the state; ours is the state.
            return Err(io::Error::other("a snapshot that is to be sent was installed"));
        };
        let Arrived { received, restored, .. } = *arrived;
        if (restored.applied, &restored.membership) != (meta.last_log_id, &meta.last_membership) {
            let why = "the snapshot's head and content are of different states";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let checkpoints = self.checkpoints.clone();
        P::off_thread(move || checkpoints.install(received, restored))
            .await?
            .map_err(io::Error::other)?;
        let standing = self.shared.standing();
        self.published.views.send_replace(standing.region);
        self.tell(mark(&self.shared, standing.applied));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        stored::<P>(self.checkpoints.clone()).await
    }
}

/// The newest checkpoint on disk.
async fn stored<P: Platform>(checkpoints: Checkpoints) -> io::Result<Option<Snapshot>> {
    let reader =
        P::off_thread(move || checkpoints.state().reader()).await?.map_err(io::Error::other)?;
    let Some(reader) = reader else { return Ok(None) };
    let (last_log_id, last_membership) =
        read_applied(&reader.header().applied).map_err(io::Error::other)?;
    let meta = SnapshotMeta { last_log_id, last_membership };
    Ok(Some(Snapshot { meta, snapshot: SnapshotContent::Stored(Arc::new(Mutex::new(reader))) }))
}

impl<P: Platform> RaftSnapshotBuilder<Types<P>> for SnapshotBuilder<P> {
    type SnapshotData = SnapshotContent;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let stopped = || io::Error::other("the checkpoint thread has stopped");
        let (done, written) = oneshot::channel();
        let requests = self.requests.clone();
        P::off_thread(move || requests.send(done)).await?.map_err(|_| stopped())?;
        // M1
        written.await.map_err(|_| stopped())?;
        stored::<P>(self.checkpoints.clone()).await?.ok_or_else(stopped)
    }
}
