//! Runs one member of the ring, from founding or joining to handing over leadership at the end.
//!
//! ```text
//!   first start ── founded or joined (`founding`) ──▶ serving
//!   serving ── shutdown ──▶ leadership handed over ──▶ raft stopped ──▶ listener closed
//! ```
//!
//! The order of shutdown matters: the successor's election needs this member's vote, so its
//! listener closes last. A rolling restart then costs no election timeout.

use std::time::Duration;

use openraft::{async_runtime::WatchReceiver as _, errors::Fatal};
use satrap_identity::mtls::{Limits, Listener, server_builder};
use satrap_proto::v1::ring_server::RingServer;
use satrap_ring_api::backend::{Backend, RingEnd};
use satrap_runtime::Shutdown;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use super::{
    compaction,
    disk::DiskError,
    dispatch,
    error::RingError,
    founding::enter,
    log_store::LogStore,
    node::Leading,
    peers::Peers,
    platform::Platform,
    ring::{Ring, RingParts},
    ring_service::RingService,
    setup::{RingSetup, Timing},
    types::Types,
};
use crate::limits::{CALLS_MAX, RING_FRAME_BYTES_MAX};

/// The maximum age of the services' view of the ring, but for leader, term and members.
const VIEW_INTERVAL: Duration = Duration::from_millis(250);
/// The time without a write after which the log is idle.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Serves peers at `listener` and takes part in the ring until `shutdown`; then hands over
/// leadership and stops.
///
/// # Errors
///
/// [`RingError`]: the process must stop.
pub async fn run<P: Platform>(
    parts: RingParts<P>,
    listener: Listener,
    limits: Limits,
    backend: oneshot::Sender<Backend>,
    shutdown: Shutdown,
) -> Result<(), RingError> {
    let closed = Shutdown::default();
    let service = parts.service(closed.clone());
    let all_stopped = closed.clone();
    let serve = async move {
        let server = server_builder(&limits).add_service(service);
        server.serve_with_incoming_shutdown(listener, all_stopped.requested()).await?;
        Ok(())
    };
    drive(parts, serve, closed, backend, shutdown).await
}

/// As [`run`], while `serve` accepts peers until `closed`.
///
/// # Errors
///
/// [`RingError`]: the process must stop.
pub async fn drive<P: Platform>(
    parts: RingParts<P>,
    serve: impl Future<Output = Result<(), RingError>>,
    closed: Shutdown,
    backend: oneshot::Sender<Backend>,
    shutdown: Shutdown,
) -> Result<(), RingError> {
    let RingParts { ring, log, peers, setup, mut disk_failures, .. } = parts;
    let raft = ring.node.raft.clone();
    let seal = seal_if_idle(log.clone());
    let compact = async {
        let stopped = compaction::run(raft.clone(), log, setup.compaction).await;
        stopped.or_else(|fatal| ignore_stop(fatal, &shutdown))
    };
    let live = async {
        tokio::select! {
            biased;
            entered = enter(&ring, &setup) => entered?,
            () = shutdown.requested() => {}
        }
        watch_fatal(&ring, &shutdown).await
    };
    let live = async {
        tokio::select! {
            biased;
            Some(failed) = disk_failures.recv() => Err(DiskError::Storage(failed).into()),
            lived = live => lived,
        }
    };
    let with_services = async {
        tokio::select! {
            biased;
            () = serve_services(&ring, &setup, backend, &shutdown) => {}
            () = follow_membership(&ring, &peers) => {}
            () = ring.members.record_instances() => {}
            () = seal => {}
            () = shutdown.requested() => {}
        }
        Ok(())
    };
    let stop = async {
        shutdown.requested().await;
        hand_over(&ring, setup.timing).await;
        if let Err(error) = raft.shutdown().await {
            tracing::error!(%error, "Raft did not stop cleanly");
        }
        closed.request();
        Ok(())
    };
    tokio::try_join!(serve, compact, live, with_services, stop).map(|_| ())
}

impl<P: Platform> RingParts<P> {
    /// The service for peers, until `closed`.
    #[must_use]
    pub fn service(&self, closed: Shutdown) -> RingServer<RingService<P>> {
        let Self { ring, peers, files, setup, disk_alarm, .. } = self;
        let (ring, peers, alarm) = (ring.clone(), peers.clone(), disk_alarm.clone());
        let service = RingService::new(ring, peers, files.clone(), setup, alarm, closed);
        RingServer::new(service)
            .max_decoding_message_size(RING_FRAME_BYTES_MAX)
            .max_encoding_message_size(RING_FRAME_BYTES_MAX)
    }
}

/// Seals the log whenever it is idle. Never ends.
async fn seal_if_idle<P: Platform>(log: LogStore<P>) {
    let mut ticks = interval(IDLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        log.seal_if_idle();
    }
}

fn ignore_stop<P: Platform>(fatal: Fatal<Types<P>>, shutdown: &Shutdown) -> Result<(), RingError> {
    match fatal {
        Fatal::Stopped if shutdown.is_requested() => Ok(()),
        fatal => Err(fatal.into()),
    }
}

/// Ends when Raft does, with an error unless a shutdown was requested.
async fn watch_fatal<P: Platform>(ring: &Ring<P>, shutdown: &Shutdown) -> Result<(), RingError> {
    let mut metrics = ring.node.raft.metrics();
    loop {
        let state = metrics.borrow_and_update().running_state.clone();
        if let Err(fatal) = state {
            return ignore_stop(fatal, shutdown);
        }
        if metrics.changed().await.is_err() {
            return ignore_stop::<P>(Fatal::Stopped, shutdown);
        }
    }
}

/// Serves this member's clients, once the member belongs to the ring.
async fn serve_services<P: Platform>(
    ring: &Ring<P>,
    setup: &RingSetup,
    backend: oneshot::Sender<Backend>,
    shutdown: &Shutdown,
) {
    let identity = ring.identity().await;
    let (services, end) = Backend::new(identity, ring.node.shared.state.clone(), CALLS_MAX);
    let RingEnd { calls, answers, publisher } = end;
    ring.proposer.waiters.answer_through(answers);
    publisher.applied(*ring.node.applied.borrow_watched());
    publisher.ring(ring.view(&ring.checkpoints));
    // Held here too: a member that serves no clients runs the ring's maintenance all the same.
    let _held = services.clone();
    if backend.send(services).is_err() {
        tracing::info!("this member serves no clients of the ring");
    }
    let mut applied = ring.node.applied.clone();
    let mut servers = ring.node.raft.server_metrics();
    let show = async {
        let mut ticks = interval(VIEW_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = applied.changed() => match changed {
                    Ok(()) => publisher.applied(*applied.borrow_and_update()),
                    Err(_) => return,
                },
                changed = servers.changed() => match changed {
                    Ok(()) => {
                        // The contact with a quorum shows one heartbeat later.
                        if ring.node.leads() {
                            ring.node.network.contact.elected();
                        }
                        publisher.ring(ring.view(&ring.checkpoints));
                    }
                    Err(_) => return,
                },
                _ = ticks.tick() => publisher.ring(ring.view(&ring.checkpoints)),
            }
        }
    };
    tokio::select! {
        biased;
        () = dispatch::run(ring.clone(), calls, shutdown.clone()) => {}
        () = show => {}
        () = ring.members.maintain(&setup.client_urls) => {}
        () = keep_clock(ring) => {}
        () = ring.health.watch() => {}
    }
}

/// Updates the ring's clock when this member starts and stops leading.
async fn keep_clock<P: Platform>(ring: &Ring<P>) {
    while ring.node.until(Leading::Yes).await {
        ring.proposer.clock().lead(2 * ring.node.timing.election_max);
        if !ring.node.until(Leading::No).await {
            return;
        }
        ring.proposer.clock().follow();
    }
}

/// Updates the links and the member registry after every change of membership.
async fn follow_membership<P: Platform>(ring: &Ring<P>, peers: &Peers) {
    let mut metrics = ring.node.raft.server_metrics();
    let mut led_by = None;
    loop {
        let (membership, agreed, leader) = {
            let now = metrics.borrow_and_update();
            let agreed = now.committed_membership_config.clone();
            (now.membership_config.clone(), agreed, now.current_leader.clone())
        };
        if leader.is_some() && leader != led_by {
            ring.node.shared.meters.leader_changes.add_one();
            led_by = leader;
        }
        peers.follow(&membership, &agreed);
        ring.node.network.heartbeats.follow(&ring.node.name, &membership);
        for (name, node) in membership.nodes().filter(|(name, _)| **name != ring.node.name) {
            if let Err(error) = peers.reach(name, &node.url) {
                tracing::error!(member = %name, %error, "cannot connect to this member");
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Transfers leadership to the member with the most entries, so that stopping costs no election
/// timeout.
async fn hand_over<P: Platform>(ring: &Ring<P>, timing: Timing) {
    if !ring.node.leads() {
        return;
    }
    let Some((successor, _)) = ring.node.status().lag.into_iter().min_by_key(|(_, lag)| *lag)
    else {
        return;
    };
    tracing::info!(%successor, "handing over leadership");
    if let Err(error) = ring.node.raft.trigger().transfer_leader(successor).await {
        tracing::warn!(%error, "could not hand over leadership; the ring will elect a leader");
        return;
    }
    let own = ring.node.name.clone();
    let wait = ring.node.raft.wait(Some(2 * timing.election_max));
    let taken = wait.metrics(
        move |m| m.current_leader.as_ref().is_some_and(|leader| *leader != own),
        "another member leads",
    );
    if let Err(error) = taken.await {
        tracing::warn!(%error, "no member took over leadership; the ring will elect a leader");
    }
}
