//! Drives one member's part in the ring, from founding it to handing over.
//!
//! ```text
//!   first start ── all members present, none founded ──▶ founded ──▶ serving
//!   serving ── shutdown ──▶ leadership handed over ──▶ raft stopped ──▶ listener closed
//! ```
//!
//! The order of stopping matters: the successor's election needs this member's vote, so its
//! listener closes last. A rolling restart then costs no election timeout.

use std::{collections::BTreeMap, time::Duration};

use openraft::{async_runtime::WatchReceiver as _, errors::Fatal};
use satrap_host::{
    Shutdown,
    mtls::{Limits, Listener, server_builder},
};
use satrap_proto::v1::ring_server::RingServer;
use tokio::time::sleep;

use super::{
    Ring, RingError, RingParts, Timing, compaction,
    network::Network,
    ring_service::RingService,
    types::{MemberName, MemberNode},
};
use crate::limits::RING_FRAME_BYTES_MAX;

/// Between attempts to meet all members before the first election.
const FOUND_RETRY: Duration = Duration::from_millis(250);
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves peers and keeps the log short until `shutdown`, then hands over and stops.
///
/// # Errors
///
/// [`RingError`]: the process must stop.
pub async fn run(
    parts: RingParts,
    listener: Listener,
    limits: Limits,
    shutdown: Shutdown,
) -> Result<(), RingError> {
    let RingParts { ring, log, peers, setup } = parts;
    let raft = ring.raft.clone();
    let region = setup.region.to_string();
    let service =
        RingService::new(raft.clone(), peers.clone(), region, setup.genesis.clone(), ring.views());
    let service = RingServer::new(service)
        .max_decoding_message_size(RING_FRAME_BYTES_MAX)
        .max_encoding_message_size(RING_FRAME_BYTES_MAX);
    let closed = Shutdown::default();
    let serve = async {
        let server = server_builder(&limits).add_service(service);
        server.serve_with_incoming_shutdown(listener, closed.requested()).await?;
        Ok::<_, RingError>(())
    };
    let compact = async {
        let stopped = compaction::run(raft.clone(), log, setup.compaction).await;
        stopped.or_else(|fatal| ignore_stop(fatal, &shutdown))
    };
    let (network, members) = (Network(peers), setup.members_as_nodes());
    let live = async {
        tokio::select! {
            founded = found(&ring, &network, &members) => founded?,
            () = shutdown.requested() => {}
        }
        watch_fatal(&ring, &shutdown).await
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
    tokio::try_join!(serve, compact, live, stop).map(|_| ())
}

fn ignore_stop(fatal: Fatal<super::types::Types>, shutdown: &Shutdown) -> Result<(), RingError> {
    match fatal {
        Fatal::Stopped if shutdown.is_requested() => Ok(()),
        fatal => Err(fatal.into()),
    }
}

/// Ends when raft does; well only if that was asked for.
async fn watch_fatal(ring: &Ring, shutdown: &Shutdown) -> Result<(), RingError> {
    let mut metrics = ring.raft.metrics();
    loop {
        let state = metrics.borrow_and_update().running_state.clone();
        if let Err(fatal) = state {
            return ignore_stop(fatal, shutdown);
        }
        if metrics.changed().await.is_err() {
            return ignore_stop(Fatal::Stopped, shutdown);
        }
    }
}

/// Founds the ring, if this member is the one to do it and nobody has.
///
/// The member whose name sorts first founds, and only once every other member has answered that it
/// knows of no ring. Were a majority enough, a founder that lost its disk could found a second ring
/// together with a member that had not yet been reached by the first one.
async fn found(
    ring: &Ring,
    network: &Network,
    members: &BTreeMap<MemberName, MemberNode>,
) -> Result<(), RingError> {
    let founder = members.keys().next() == Some(&ring.name);
    if !founder || ring.raft.is_initialized().await? {
        return Ok(());
    }
    for attempt in 0_u64.. {
        match survey(network).await {
            Ok(Survey::NobodyFounded) => {
                tracing::info!(members = members.len(), "founding the ring");
                if let Err(error) = ring.raft.initialize(members.clone()).await {
                    tracing::warn!(%error, "this ring was founded by another start");
                }
                return Ok(());
            }
            Ok(Survey::Founded(by)) => {
                tracing::error!(
                    "`{by}` is part of a founded ring, but this member has no data: its disk was \
                     lost; replace it by a member with a new name"
                );
                return Ok(());
            }
            Err(why) if attempt % 40 == 0 => {
                tracing::info!("waiting for all members before founding the ring: {why}");
            }
            Err(_) => {}
        }
        sleep(FOUND_RETRY).await;
    }
    Ok(())
}

enum Survey {
    NobodyFounded,
    Founded(MemberName),
}

/// Asks every other member; an error is the first that cannot be asked.
async fn survey(network: &Network) -> Result<Survey, String> {
    let ask = |name: &MemberName| {
        let (name, sender) = (name.clone(), network.sender(name.clone()));
        async move {
            let welcome = sender.hello(HELLO_TIMEOUT).await;
            welcome.map(|w| (name.clone(), w)).map_err(|e| format!("`{name}`: {}", e.message()))
        }
    };
    let welcomes = futures::future::join_all(network.0.names().map(ask)).await;
    // Whoever knows of a ring ends the matter, also if others are away.
    if let Some((name, _)) = welcomes.iter().flatten().find(|(_, welcome)| welcome.founded) {
        return Ok(Survey::Founded(name.clone()));
    }
    welcomes.into_iter().collect::<Result<Vec<_>, _>>().map(|_| Survey::NobodyFounded)
}

/// Gives leadership to the member that is furthest, so that stopping costs no election timeout.
async fn hand_over(ring: &Ring, timing: Timing) {
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

impl super::RingSetup {
    fn members_as_nodes(&self) -> BTreeMap<MemberName, MemberNode> {
        let node = |(name, url): (&satrap_certify::Label, &String)| {
            (MemberName::from(name), MemberNode { url: url.clone() })
        };
        self.members.iter().map(node).collect()
    }
}
