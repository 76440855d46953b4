//! Drives one member's part in the ring, from founding it to handing over.
//!
//! ```text
//!   first start ── founded or joined (`founding`) ──▶ serving
//!   serving ── shutdown ──▶ leadership handed over ──▶ raft stopped ──▶ listener closed
//! ```
//!
//! The order of stopping matters: the successor's election needs this member's vote, so its
//! listener closes last. A rolling restart then costs no election timeout.

use std::time::Duration;

use openraft::{async_runtime::WatchReceiver as _, errors::Fatal};
use satrap_host::{
    Shutdown,
    mtls::{Limits, Listener, server_builder},
};
use satrap_proto::v1::ring_server::RingServer;
use satrap_regional_api::backend::{Backend, RingEnd};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use super::{
    Leading, Ring, RingError, RingParts, RingSetup, Timing, compaction, disk::DiskError, dispatch,
    founding::enter, log_store::LogStore, peers::Peers, platform::Platform,
    ring_service::RingService, types::Types,
};
use crate::limits::{CALLS_MAX, RING_FRAME_BYTES_MAX};

/// How old what services see of the ring may be, beside leader, term and members.
const VIEW_INTERVAL: Duration = Duration::from_millis(250);
/// A log to which nothing was written for so long is idle.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// Serves peers at `listener` and takes part in the ring until `shutdown`, then hands over and
/// stops.
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
    let (service, closed) = (parts.service(), Shutdown::default());
    let all_stopped = closed.clone();
    let serve = async move {
        let server = server_builder(&limits).add_service(service);
        server.serve_with_incoming_shutdown(listener, all_stopped.requested()).await?;
        Ok(())
    };
    drive(parts, serve, closed, backend, shutdown).await
}

/// As [`run`], while `serve` lets peers in until `closed`.
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
    let raft = ring.raft.clone();
    let tidy = tidy(log.clone());
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
            () = ring.keep_identified() => {}
            () = tidy => {}
            () = shutdown.requested() => {}
        }
        Ok(())
    };
    let stop = async {
        shutdown.requested().await;
        hand_over(&ring, setup.timing).await;
        if let Err(error) = raft.shutdown().await {
            tracing::error!(%error, "raft did not stop cleanly");
        }
        closed.request();
        Ok(())
    };
    tokio::try_join!(serve, compact, live, with_services, stop).map(|_| ())
}

impl<P: Platform> RingParts<P> {
    /// What peers ask of this member.
    #[must_use]
    pub fn service(&self) -> RingServer<RingService<P>> {
        let Self { ring, peers, files, setup, disk_alarm, .. } = self;
        let (ring, peers, alarm) = (ring.clone(), peers.clone(), disk_alarm.clone());
        let service = RingService::new(ring, peers, files.clone(), setup, alarm);
        RingServer::new(service)
            .max_decoding_message_size(RING_FRAME_BYTES_MAX)
            .max_encoding_message_size(RING_FRAME_BYTES_MAX)
    }
}

/// Never ends.
async fn tidy<P: Platform>(log: LogStore<P>) {
    let mut ticks = interval(TIDY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        log.tidy();
    }
}

fn ignore_stop<P: Platform>(fatal: Fatal<Types<P>>, shutdown: &Shutdown) -> Result<(), RingError> {
    match fatal {
        Fatal::Stopped if shutdown.is_requested() => Ok(()),
        fatal => Err(fatal.into()),
    }
}

/// Ends when raft does; well only if that was asked for.
async fn watch_fatal<P: Platform>(ring: &Ring<P>, shutdown: &Shutdown) -> Result<(), RingError> {
    let mut metrics = ring.raft.metrics();
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

/// Serves what this member's clients ask, once it belongs to the ring.
async fn serve_services<P: Platform>(
    ring: &Ring<P>,
    setup: &RingSetup,
    backend: oneshot::Sender<Backend>,
    shutdown: &Shutdown,
) {
    let identity = ring.identity().await;
    let (services, end) = Backend::new(identity, ring.shared.keyspace.clone(), CALLS_MAX);
    let RingEnd { calls, deliveries, publisher } = end;
    ring.waiters.deliver_through(deliveries);
    publisher.applied(*ring.applied.borrow_watched());
    publisher.ring(ring.view(&ring.checkpoints));
    // Held here too: a member that serves no clients tends the ring all the same.
    let _held = services.clone();
    if backend.send(services).is_err() {
        tracing::info!("this member serves no clients of the ring");
    }
    let mut applied = ring.applied.clone();
    let mut servers = ring.raft.server_metrics();
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
                        // That it hears of a quorum shows a heartbeat later.
                        if ring.leads() {
                            ring.network.touch.elected();
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
        () = ring.tend(&setup.client_urls) => {}
        () = take_time(ring) => {}
        () = ring.watch_health() => {}
    }
}

/// A member that begins to lead takes a grace off the ring's clock.
async fn take_time<P: Platform>(ring: &Ring<P>) {
    while ring.until(Leading::Yes).await {
        ring.clock().lead(2 * ring.timing.election_max);
        if !ring.until(Leading::No).await {
            return;
        }
        ring.clock().follow();
    }
}

/// Keeps the links to all members and who is meant by each name, and forgets those that left.
async fn follow_membership<P: Platform>(ring: &Ring<P>, peers: &Peers) {
    let mut metrics = ring.raft.server_metrics();
    let mut led_by = None;
    loop {
        let (membership, agreed, leader) = {
            let now = metrics.borrow_and_update();
            let agreed = now.committed_membership_config.clone();
            (now.membership_config.clone(), agreed, now.current_leader.clone())
        };
        if leader.is_some() && leader != led_by {
            ring.shared.meters.leader_changes.add_one();
            led_by = leader;
        }
        peers.follow(&membership, &agreed);
        for (name, node) in membership.nodes().filter(|(name, _)| **name != ring.name) {
            if let Err(error) = peers.reach(name, &node.url) {
                tracing::error!(member = %name, %error, "cannot be reached");
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Gives leadership to the member that is furthest, so that stopping costs no election timeout.
async fn hand_over<P: Platform>(ring: &Ring<P>, timing: Timing) {
    if !ring.leads() {
        return;
    }
    let Some((heir, _)) = ring.status().lag.into_iter().min_by_key(|(_, lag)| *lag) else {
        return;
    };
    tracing::info!(%heir, "handing over leadership");
    if let Err(error) = ring.raft.trigger().transfer_leader(heir).await {
        tracing::warn!(%error, "could not hand over leadership");
        return;
    }
    let own = ring.name.clone();
    let wait = ring.raft.wait(Some(2 * timing.election_max));
    let taken = wait.metrics(
        move |m| m.current_leader.as_ref().is_some_and(|leader| *leader != own),
        "another member leads",
    );
    if let Err(error) = taken.await {
        tracing::warn!(%error, "nobody took over; the ring will elect a leader");
    }
}
