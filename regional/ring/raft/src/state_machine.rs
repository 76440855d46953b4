//! The state machine of openraft: applies committed entries, answers waiting clients, and sends and
//! installs snapshots.
//!
//! [`satrap_ring_core::AppliedState`] decides the effect of an entry; this module connects it to
//! openraft. The snapshot is the checkpoint on disk (see [`super::checkpoint`]), so no snapshot is
//! ever built.
//!
//! # Invariants
//!
//! - **APPLY-1** A snapshot is on disk before openraft learns of it, hence before any log it covers
//!   is purged.
//! - **APPLY-2** A snapshot from a peer becomes state only after all digests of its rows matched
//!   and its content was validated.
//! - **APPLY-3** A command that cannot be decoded or verified changes nothing, on every member
//!   alike.
//! - **APPLY-4** A client is answered only after its entry was applied here.

use std::{
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
use satrap_ring_api::backend::AppliedMark;
use satrap_ring_core::{Command, Entry as StateEntry, Extensions, Outcome, Rejected};
use tokio::sync::{oneshot, watch};

use super::{
    checkpoint::{CheckpointRequest, Checkpoints, Shared},
    clock::RingClock,
    disk::{Position, read_applied},
    inbox::{Arrived, Snapshot, SnapshotContent},
    locks::lock,
    meters::SLOW_APPLY,
    platform::{Platform, Real},
    types::{Entry, LogId, Membership, Reply, SnapshotMeta, Types, state_entry},
    waiters::{Origin, Waiters},
};

/// Commands longer than this are verified on another thread: hashing megabytes on this one would
/// delay heartbeats.
const INLINE_COMMAND_BYTES_MAX: usize = 64 * 1024;

/// The channels on which apply publishes.
pub struct Published<P: Platform> {
    /// The extensions of the state, published after every change.
    pub views: watch::Sender<Arc<Extensions>>,
    /// The newest applied entry and revision; locked only because openraft does not declare that
    /// the sender may be shared.
    pub applied: Mutex<WatchSenderOf<Types<P>, AppliedMark>>,
}

/// The newest applied entry and revision, published after every entry.
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

/// Requests a checkpoint, which is the snapshot.
pub struct SnapshotBuilder<P = Real> {
    checkpoints: Checkpoints,
    requests: mpsc::SyncSender<CheckpointRequest>,
    _platform: PhantomData<P>,
}

impl<P: Platform> StateMachine<P> {
    /// A state machine that continues with `shared`.
    #[must_use]
    pub fn new(
        shared: Shared,
        checkpoints: Checkpoints,
        requests: mpsc::SyncSender<CheckpointRequest>,
        clock: Arc<Mutex<RingClock>>,
        waiters: Waiters,
    ) -> (Self, watch::Receiver<Arc<Extensions>>, Marks<P>) {
        let mark = mark(&shared, shared.position().applied);
        let (views, view) = watch::channel(Arc::new(shared.extensions()));
        let (applied, marks) = Types::<P>::watch_channel(mark);
        let published = Published { views, applied: applied.into() };
        (Self { shared, checkpoints, requests, clock, waiters, published }, view, marks)
    }

    async fn apply_entry(&mut self, entry: &Entry) -> io::Result<Reply> {
        let log_id = entry.log_id;
        let asked = state_entry(&entry.payload);
        let time = match &asked {
            StateEntry::Command(Ok(Command::Batch(batch))) => Some(batch.time),
            _ => None,
        };
        let began = P::monotonic();
        let prepared = self.published.views.borrow().prepare(asked);
        let short = prepared.bytes_to_verify() <= INLINE_COMMAND_BYTES_MAX;
        let verified = match short {
            true => prepared.verify(),
            false => P::off_thread(move || prepared.verify()).await?,
        };
        let (mut state, mut position) = self.shared.lock();
        let outcome = state.commit(verified);
        position.pass(log_id, &entry.payload);
        let revision = state.keyspace().store().revision();
        let extensions = match &outcome {
            Outcome::Batch(_) => {
                self.shared.take_digest(log_id.index, state.keyspace());
                None
            }
            Outcome::Extension(_) => Some(state.extensions().clone()),
            Outcome::Blank | Outcome::Rejected(_) => None,
        };
        drop((state, position));
        let term = log_id.committed_leader_id().term;
        if let Some(time) = time {
            let now = P::monotonic();
            lock(&self.clock).applied(time.0, now);
            if now.saturating_sub(began) > SLOW_APPLY {
                self.shared.meters.slow_applies.add_one();
            }
        }
        let reply = match outcome {
            Outcome::Blank => Reply::Blank,
            Outcome::Batch(replies) => {
                // APPLY-4
                self.waiters.fulfill(origin(entry), term, replies);
                Reply::Batch
            }
            Outcome::Extension(version) => Reply::Extension(version),
            // APPLY-3
            Outcome::Rejected(Rejected { rule, why }) => {
                tracing::error!(rule, why, "refused a command in the log; nothing changed");
                Reply::Refused { rule, why }
            }
        };
        if let Some(extensions) = extensions {
            self.published.views.send_replace(Arc::new(extensions));
        }
        self.tell(AppliedMark { revision, index: log_id.index, term });
        Ok(reply)
    }

    fn tell(&self, mark: AppliedMark) {
        // No receivers is fine.
        let _ = lock(&self.published.applied).send(mark);
    }
}

/// The origin of a batch: the member's run and the waiters that its replies are for.
fn origin(entry: &Entry) -> Origin {
    match &entry.payload {
        EntryPayload::Normal(payload) => payload.open().map(|(origin, _)| origin),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    }
    .unwrap_or_default()
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
        let Position { applied, membership } = self.shared.position();
        Ok((applied, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types<P>>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = self.apply_entry(&entry).await?;
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
            // openraft does that at the start if the snapshot is ahead of the state; here the
            // snapshot is the state.
            return Err(io::Error::other("a snapshot that is to be sent was installed"));
        };
        let Arrived { received, restored, .. } = *arrived;
        let Position { applied, membership } = &restored.position;
        if (*applied, membership) != (meta.last_log_id, &meta.last_membership) {
            let why = "the snapshot's head and content are of different states";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let checkpoints = self.checkpoints.clone();
        P::off_thread(move || checkpoints.install(received, restored))
            .await?
            .map_err(io::Error::other)?;
        self.published.views.send_replace(Arc::new(self.shared.extensions()));
        self.tell(mark(&self.shared, self.shared.position().applied));
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
    let Position { applied: last_log_id, membership: last_membership } =
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
        // APPLY-1
        written.await.map_err(|_| stopped())?;
        stored::<P>(self.checkpoints.clone()).await?.ok_or_else(stopped)
    }
}
