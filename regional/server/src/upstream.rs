//! Follows the validators, on the ring's leader only, and proposes what verifies.
//!
//! A validator alone is trusted no more than any server: what it sends is verified here, before it
//! costs the ring a log entry, and again by every member in apply. One that sends nothing is left
//! as well, since silence may hide a newer checkpoint.
//!
//! ```text
//!   not leading ◀──▶ connecting ──▶ following ── verified ──▶ proposed ──▶ following
//!                        ▲              │ refused, ended, or no fresh checkpoint in time
//!                        └── backoff ◀──┘ the next validator
//! ```
//!
//! One validator more than may be faulty is followed at a time, the nearest ones first: at least one
//! of them is honest, so none can hold a checkpoint back, and the first that has it is enough. What
//! the others send of the same height is dropped before it costs the ring anything.
//!
//! A region that reaches no validator keeps serving what it has; its age is in the status.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{join_all, select_all};
use satrap_certify::{Rejection, Timestamp, Update, limits::UPDATE_BYTES_MAX};
use satrap_host::{
    Shutdown, clock,
    follow::{self, Replies, ReplyError},
    mtls::{self, ConnectError, Credentials, PeerRule},
    pki::{PkiError, Role, SpiffeId},
    rng,
};
use satrap_merkle::codec::Canonical as _;
use satrap_pressure::{Freshness, FullJitter, Seen};
use satrap_proto::v1::{FollowRequest, follow_request::Body};
use satrap_regional_core::Command;
use tokio::{
    sync::{Mutex, mpsc},
    task,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use crate::{
    config::Endpoint,
    raft::{Leading, ProposeError, Reply, Ring},
    refusals::Refusals,
};

/// The longest first delay after a failure.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// A stream that lived this long was a good one.
const STABLE_PERIOD: Duration = Duration::from_secs(10);
/// A validator farther away than this counts as away when the nearest are chosen.
const MEASURE_WITHIN: Duration = Duration::from_secs(2);
/// Updates longer than this are verified on another thread.
const INLINE_UPDATE_BYTES_MAX: usize = 64 * 1024;
/// Requests that wait for the validator; positions only.
const OUTBOUND_MAX: usize = 4;

/// Why a validator is left for the next one.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Its name is not one.
    #[error(transparent)]
    Name(#[from] PkiError),
    /// It ended the stream, or sent what no honest server sends.
    #[error("stream ended: {0}")]
    Ended(#[from] ReplyError),
    /// It sent something that does not verify.
    #[error("refused by rule {rule}: {0}", rule = .0.rule())]
    Refused(#[from] Rejection),
    /// It sent no fresh checkpoint for this long.
    #[error("no fresh checkpoint in {0:?}; another validator may have one")]
    Stale(Duration),
    /// This ring did not take the proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The verifying thread ended; the process is stopping.
    #[error("verification was interrupted")]
    Interrupted,
}

/// Follows validators for one member.
pub struct Upstream {
    ring: Ring,
    validators: Vec<Endpoint>,
    credentials: Credentials,
    chain: String,
    heartbeat: Duration,
    refusals: Refusals,
    /// Live streams.
    streams: Arc<AtomicUsize>,
    /// One update at a time, so that two validators' copies of one do not both reach the log. How
    /// often the ring moved.
    moves: Mutex<u64>,
}

/// What a good update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// The ring moved to this height.
    Adopted(u64),
    /// The ring was there already.
    NothingNew,
    /// It does not fit, and the ring has moved since this validator was last asked: it must be asked
    /// from here.
    Overtaken,
}

/// Checks that whoever answers at `endpoint` is that validator.
///
/// # Errors
///
/// If its name is not one.
pub fn validator_rule(chain: &str, endpoint: &Endpoint) -> Result<PeerRule, PkiError> {
    let role = Role::Validator { name: endpoint.name.to_string() };
    Ok(PeerRule::Exactly(SpiffeId::new(chain, role)?))
}

impl Upstream {
    /// Follows `validators` in the realm of `ring`. An idle realm certifies once per `heartbeat`.
    #[must_use]
    pub fn new(
        ring: Ring,
        validators: Vec<Endpoint>,
        credentials: Credentials,
        heartbeat: Duration,
        refusals: Refusals,
    ) -> Self {
        let chain = ring.region().replica().realm().chain_id().to_owned();
        let (streams, moves) = (Arc::default(), Mutex::default());
        Self { ring, validators, credentials, chain, heartbeat, refusals, streams, moves }
    }

    /// How many streams are live; shared with whoever reports status.
    #[must_use]
    pub fn streams(&self) -> Arc<AtomicUsize> {
        self.streams.clone()
    }

    /// Follows whenever this member leads, until `shutdown`.
    ///
    /// # Errors
    ///
    /// None; failures lead to the next validator.
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
        // f + 1 of 3f + 1.
        let lanes = (order.len() - 1) / 3 + 1;
        let lane = |first| {
            let validators: Vec<_> = order.iter().copied().skip(first).step_by(lanes).collect();
            self.follow_in_turn(validators)
        };
        let (never, ..) = select_all((0..lanes).map(lane).map(Box::pin)).await;
        never
    }

    /// The validators, nearest first, by the time a handshake takes; those away come last.
    async fn by_distance(&self) -> Vec<&Endpoint> {
        let measure = async |validator| {
            let started = clock::monotonic();
            let reached = timeout(MEASURE_WITHIN, self.channel(validator)).await;
            let took = clock::monotonic().saturating_sub(started);
            (!reached.is_ok_and(|channel| channel.is_ok()), took, validator)
        };
        let mut measured = join_all(self.validators.iter().map(measure)).await;
        measured.sort_by_key(|(away, took, _)| (*away, *took));
        measured.into_iter().map(|(_, _, validator)| validator).collect()
    }

    async fn channel(&self, validator: &Endpoint) -> Result<Channel, UpstreamError> {
        let rule = validator_rule(&self.chain, validator)?;
        Ok(mtls::connect(&validator.url, &self.credentials, rule).await?)
    }

    async fn follow_in_turn(&self, validators: Vec<&Endpoint>) -> Infallible {
        let mut backoff = FullJitter::new(BACKOFF_BASE, STABLE_PERIOD);
        let mut turn = 0_usize;
        loop {
            let validator = validators[turn % validators.len()];
            let started = clock::monotonic();
            let ended = match self.follow(validator).await {
                Err(ended) => ended,
                Ok(never) => match never {},
            };
            tracing::warn!(validator = %validator.name, "left a validator: {ended}");
            backoff.connection_ended(clock::monotonic().saturating_sub(started));
            turn = turn.wrapping_add(1);
            sleep(backoff.next_delay(rng::u64())).await;
        }
    }

    async fn follow(&self, validator: &Endpoint) -> Result<Infallible, UpstreamError> {
        let mut freshness = Freshness::new(self.heartbeat, clock::monotonic());
        let mut client = follow::client(self.channel(validator).await?);
        let (positions, outbound) = mpsc::channel(OUTBOUND_MAX);
        let mut seen = self.say_position(&positions).await?;
        let replies = within(&freshness, client.follow(ReceiverStream::new(outbound))).await?;
        let replies = replies.map_err(ReplyError::from)?;
        let mut replies = Replies::new(replies.into_inner(), UPDATE_BYTES_MAX);
        let _live = Live::new(&self.streams);
        tracing::info!(validator = %validator.name, "following");
        loop {
            let reply = within(&freshness, replies.next()).await??;
            let Some(update) = reply else {
                return Err(ReplyError::from(Status::ok("by the validator")).into());
            };
            if self.adopt(update, &mut seen).await? == Adoption::Overtaken {
                seen = self.say_position(&positions).await?;
            }
            // Whichever validator was first, this one is not far behind it.
            freshness.observe(clock::monotonic(), self.seen());
        }
    }

    fn seen(&self) -> Seen {
        let region = self.ring.region();
        let replica = region.replica();
        let age = Timestamp(clock::now()).since(replica.certified_time());
        Seen { age, complete: replica.is_complete() }
    }

    /// Asks from where the ring is, and returns how often it had moved by then.
    async fn say_position(
        &self,
        positions: &mpsc::Sender<FollowRequest>,
    ) -> Result<u64, UpstreamError> {
        let moves = self.moves.lock().await;
        let position = self.ring.region().replica().position().to_canonical();
        let request = FollowRequest { body: Some(Body::Position(position.into())) };
        let stuck = |_| ReplyError::from(Status::resource_exhausted("it takes no requests"));
        positions.try_send(request).map_err(stuck)?;
        Ok(*moves)
    }

    /// Verifies one update and proposes it. An update that does not verify never reaches the log.
    /// `seen` is how often the ring had moved when the sender was asked; what does not fit is no
    /// lie if others moved the ring since.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Refused`] blames the sender and is counted; [`UpstreamError::Propose`] is
    /// this ring's.
    pub async fn adopt(&self, update: Bytes, seen: &mut u64) -> Result<Adoption, UpstreamError> {
        let mut moves = self.moves.lock().await;
        let now = Timestamp(clock::now());
        let region = self.ring.region();
        let inline = update.len() <= INLINE_UPDATE_BYTES_MAX;
        let verify = move || {
            let update = Update::from_canonical(&update)?;
            region.replica().verify(&update, now).map(|_| update)
        };
        let verified = if inline {
            verify()
        } else {
            task::spawn_blocking(verify).await.map_err(|_| UpstreamError::Interrupted)?
        };
        let update = match verified {
            Ok(update) => Box::new(update),
            // The answer to a position that we have left meanwhile.
            Err(Rejection::NotNewer { .. } | Rejection::NoProgress(_)) => {
                return Ok(Adoption::NothingNew);
            }
            Err(_) if *moves != *seen => return Ok(Adoption::Overtaken),
            Err(rejection) => {
                self.refusals.count(&rejection);
                return Err(rejection.into());
            }
        };
        match self.ring.propose(&Command::Adopt { update, now }).await? {
            Reply::Adopted(height) => {
                *seen += u64::from(*seen == *moves);
                *moves += 1;
                Ok(Adoption::Adopted(height))
            }
            // Overtaken by an earlier leader's proposal; apply has logged the reason.
            Reply::Refused { .. } | Reply::Blank | Reply::Batch => Ok(Adoption::NothingNew),
        }
    }
}

/// Waits for a validator as long as `freshness` bears with it.
async fn within<T>(
    freshness: &Freshness,
    answer: impl Future<Output = T>,
) -> Result<T, UpstreamError> {
    let stale = || UpstreamError::Stale(freshness.limit());
    // Asked first: a timeout of zero would still take a message that is there already.
    let patience = freshness.patience(clock::monotonic()).ok_or_else(stale)?;
    timeout(patience, answer).await.map_err(|_| stale())
}

/// Counts a stream while it lives.
struct Live<'a>(&'a AtomicUsize);

impl<'a> Live<'a> {
    fn new(streams: &'a AtomicUsize) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
