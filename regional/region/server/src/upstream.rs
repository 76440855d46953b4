//! Follows a region's sources, on the ring's leader only, and proposes the updates that verify.
//!
//! A source (a validator, or a member of another region) is not trusted. The leader verifies an
//! update before it proposes it, and every member verifies it again when it applies the entry. The
//! leader also leaves a source that sends nothing, because it may be holding back a newer checkpoint.
//!
//! ```text
//!   not leading ◀──▶ connecting ──▶ following ── verified ──▶ proposed ──▶ following
//!                        ▲              │ refused, ended, or no fresh checkpoint in time
//!                        └── backoff ◀──┘ the next source
//! ```
//!
//! The leader follows [`SourceSet::at_once`] sources at a time, the nearest ones first. At least one
//! of so many is honest, so no source can hold a checkpoint back. The first source that sends an
//! update is enough; the copies from the others are dropped before they reach the log.
//!
//! A region that reaches no source keeps serving its certified replica; the status shows its age.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{join_all, select_all};
use satrap_certify::{Position, Rejection, Timestamp, Update};
use satrap_identity::mtls::{self, ConnectError, Credentials};
use satrap_pressure::{Freshness, FullJitter, Seen};
use satrap_region_core::{Adopt, CertifiedReplica};
use satrap_ring_raft::{Leading, ProposeError, Reply, Ring};
use satrap_runtime::{Shutdown, clock, rng};
use satrap_sync::client::{FollowError, UpdateStream};
use tokio::{
    sync::Mutex,
    task,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use crate::{
    refusals::Refusals,
    source::{Source, SourceSet},
};

/// The maximum of the random delay after a first failure.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// A stream that lasted this long resets the backoff.
const STABLE_PERIOD: Duration = Duration::from_secs(10);
/// A source whose handshake takes longer than this counts as unreachable when the nearest are chosen.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason why this member leaves a source for the next one.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The source cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The source ended the stream, or sent bytes that no honest server sends.
    #[error(transparent)]
    Ended(FollowError),
    /// The source sent an update that does not verify.
    #[error("refused by rule {rule}: {0}", rule = .0.rule())]
    Refused(#[from] Rejection),
    /// The source sent no fresh checkpoint for this long.
    #[error("no fresh checkpoint in {0:?}; another source may have one")]
    Stale(Duration),
    /// The ring did not accept the proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The verifying thread ended; the process is stopping.
    #[error("verification was interrupted")]
    Interrupted,
}

/// Follows sources for one member.
pub struct Upstream {
    ring: Ring,
    sources: SourceSet,
    credentials: Credentials,
    heartbeat: Duration,
    refusals: Refusals,
    /// Live streams.
    streams: Arc<AtomicUsize>,
    /// The number of updates applied through this member. It is locked while one update is verified
    /// and proposed, so that the copies of two sources do not both reach the log.
    adoptions: Mutex<u64>,
}

/// The result of an update that verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// The served state is at this height now.
    Adopted(u64),
    /// The replica already had this update.
    NothingNew,
    /// The update does not begin at the replica's position, because another source was faster. The
    /// stream must continue from the present position.
    Overtaken,
}

impl Upstream {
    /// Follows `sources` for `ring`. An idle realm certifies once per `heartbeat`.
    #[must_use]
    pub fn new(
        ring: Ring,
        sources: SourceSet,
        credentials: Credentials,
        heartbeat: Duration,
        refusals: Refusals,
    ) -> Self {
        let (streams, adoptions) = (Arc::default(), Mutex::default());
        Self { ring, sources, credentials, heartbeat, refusals, streams, adoptions }
    }

    /// The number of live streams; shared with the status service.
    #[must_use]
    pub fn streams(&self) -> Arc<AtomicUsize> {
        self.streams.clone()
    }

    /// Follows whenever this member leads, until `shutdown`.
    ///
    /// # Errors
    ///
    /// None; failures lead to the next source.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Infallible> {
        let follow = async {
            while self.ring.until(Leading::Yes).await {
                tokio::select! {
                    never = self.follow_forever() => match never {},
                    _ = self.ring.until(Leading::No) => {}
                }
            }
        };
        tokio::select! {
            () = follow => shutdown.requested().await,
            () = shutdown.requested() => {}
        }
        Ok(())
    }

    async fn follow_forever(&self) -> Infallible {
        let order = self.by_distance().await;
        let streams = self.sources.at_once().min(order.len());
        if streams == 0 {
            return std::future::pending().await;
        }
        let stream = |first| {
            let sources: Vec<_> = order.iter().copied().skip(first).step_by(streams).collect();
            self.follow_in_turn(sources)
        };
        let (never, ..) = select_all((0..streams).map(stream).map(Box::pin)).await;
        never
    }

    /// The sources, nearest first by the time of a handshake; unreachable ones come last.
    async fn by_distance(&self) -> Vec<&Source> {
        let measure = async |source| {
            let started = clock::monotonic();
            let reached = timeout(MEASURE_TIMEOUT, self.channel(source)).await;
            let took = clock::monotonic().saturating_sub(started);
            (!reached.is_ok_and(|channel| channel.is_ok()), took, source)
        };
        let mut measured = join_all(self.sources.sources().iter().map(measure)).await;
        measured.sort_by_key(|(unreachable, took, _)| (*unreachable, *took));
        measured.into_iter().map(|(_, _, source)| source).collect()
    }

    async fn channel(&self, source: &Source) -> Result<Channel, UpstreamError> {
        Ok(mtls::connect(source.url(), &self.credentials, source.rule()).await?)
    }

    async fn follow_in_turn(&self, sources: Vec<&Source>) -> Infallible {
        let mut backoff = FullJitter::new(BACKOFF_BASE, STABLE_PERIOD);
        let mut turn = 0_usize;
        loop {
            let source = sources[turn % sources.len()];
            let started = clock::monotonic();
            let ended = match self.follow(source).await {
                Err(ended) => ended,
                Ok(never) => match never {},
            };
            tracing::warn!(source = %source.id(), "leaving this source for the next one: {ended}");
            backoff.connection_ended(clock::monotonic().saturating_sub(started));
            turn = turn.wrapping_add(1);
            sleep(backoff.next_delay(rng::u64())).await;
        }
    }

    async fn follow(&self, source: &Source) -> Result<Infallible, UpstreamError> {
        let mut freshness = Freshness::new(self.heartbeat, clock::monotonic());
        let channel = self.channel(source).await?;
        let (position, mut seen) = self.position().await;
        let stream = UpdateStream::on(channel, &position, patience(&freshness)).await;
        let mut stream = stream.map_err(|error| self.ended(error, &freshness))?;
        let _open = OpenStream::new(&self.streams);
        tracing::info!(source = %source.id(), "following this source");
        loop {
            let update = stream.next(patience(&freshness)).await;
            let update = update.map_err(|error| self.ended(error, &freshness))?;
            if self.adopt(update, &mut seen).await? == Adoption::Overtaken {
                let (position, adoptions) = self.position().await;
                stream.go_on_from(&position).map_err(|error| self.ended(error, &freshness))?;
                seen = adoptions;
            }
            // The replica counts, also if another source was faster: this one is not far behind.
            freshness.observe(clock::monotonic(), self.seen());
        }
    }

    fn seen(&self) -> Seen {
        let extensions = self.ring.extensions();
        let replica = CertifiedReplica::of(&extensions).replica();
        let age = Timestamp(clock::now()).since(replica.certified_time());
        Seen { age, complete: replica.is_complete() }
    }

    /// The replica's position, and the number of adoptions up to it.
    async fn position(&self) -> (Position, u64) {
        let adoptions = self.adoptions.lock().await;
        let extensions = self.ring.extensions();
        (CertifiedReplica::of(&extensions).replica().position(), *adoptions)
    }

    /// The reason why a source is left. Counts an update that does not decode like one that does not
    /// verify.
    fn ended(&self, error: FollowError, freshness: &Freshness) -> UpstreamError {
        match error {
            FollowError::Connect(error) => error.into(),
            FollowError::Silent(_) => UpstreamError::Stale(freshness.limit()),
            FollowError::NotAnUpdate(error) => {
                let rejection = Rejection::from(error);
                self.refusals.count(&rejection);
                rejection.into()
            }
            error => UpstreamError::Ended(error),
        }
    }

    /// Verifies one update and proposes it. An update that does not verify never reaches the log.
    /// `seen` is the number of adoptions when the source was last given a position: if there were
    /// others since, an update that does not verify is no fault of the source. While content is
    /// missing, such a source is asked again: the one that was faster may hold the content back.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Refused`] blames the sender and is counted; [`UpstreamError::Propose`] is
    /// this ring's.
    pub async fn adopt(&self, update: Update, seen: &mut u64) -> Result<Adoption, UpstreamError> {
        let mut adoptions = self.adoptions.lock().await;
        let now = Timestamp(clock::now());
        let extensions = self.ring.extensions();
        // A large update takes milliseconds, for which this thread would serve no edge.
        let verify = move || {
            CertifiedReplica::of(&extensions).replica().verify(&update, now).map(|_| update)
        };
        let verified = task::spawn_blocking(verify).await;
        let verified = verified.map_err(|_| UpstreamError::Interrupted)?;
        let update = match verified {
            Ok(update) => update,
            Err(rejection) => {
                // The answer to an earlier position of the replica.
                let is_old =
                    matches!(rejection, Rejection::NotNewer { .. } | Rejection::NoProgress(_));
                if *adoptions != *seen && !(is_old && self.seen().complete) {
                    return Ok(Adoption::Overtaken);
                }
                if is_old {
                    return Ok(Adoption::NothingNew);
                }
                self.refusals.count(&rejection);
                return Err(rejection.into());
            }
        };
        match self.ring.propose(&Adopt { now, update }.command()).await? {
            Reply::Extension(height) => {
                *seen += u64::from(*seen == *adoptions);
                *adoptions += 1;
                Ok(Adoption::Adopted(height))
            }
            // An earlier leader's proposal was applied first; apply has logged the reason.
            Reply::Refused { .. } | Reply::Blank | Reply::Batch => Ok(Adoption::NothingNew),
        }
    }
}

fn patience(freshness: &Freshness) -> Duration {
    freshness.patience(clock::monotonic()).unwrap_or_default()
}

/// Counts a stream until it is dropped.
struct OpenStream<'a>(&'a AtomicUsize);

impl<'a> OpenStream<'a> {
    fn new(streams: &'a AtomicUsize) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
