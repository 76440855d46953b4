//! The ring's simulation: the production code on simulated disks, clocks, processes and a simulated
//! network, all from one seed.
//!
//! ```text
//!   clients ─▶ Backend ─▶ dispatch, proposals, reads ─▶ openraft ─▶ log_store, state_machine
//!   (histories)                    │                                     │
//!                       net: gRPC without sockets           writers on a SimDisk (power cuts)
//! ```
//!
//! A run has three parts. While clients work, [`nemesis`] injects faults of all kinds, and
//! [`checks`] examines all members every few milliseconds. Then all faults end, and the ring must
//! serve on every member again, all of them in the same state. Last, the power fails everywhere at
//! once, and all acknowledged writes must survive. `satrap-history` judges the operations of the
//! clients.
//!
//! # Deliberately absent
//!
//! TLS, HTTP/2 and the services: `regional/region/server/src/tests/ring.rs` and `histories/` run
//! the real ones. Bit rot and misdirected writes: `satrap-ring-storage` has tests of its own, and a
//! member stops on them.

mod bug;
mod checks;
mod clients;
mod nemesis;
mod net;
mod runtime;
mod tests;
mod trace;
mod watch;
mod words;
mod world;

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{join_all, select},
};
use satrap_history::{Answer, Body, LeaseLimits, Operation, Outcome, Recording, Request};
use satrap_ring_api::backend::AdminRequest;
use satrap_ring_storage::sim::Survival;
use tokio::time::{Instant, sleep};

use self::{bug::Bug, checks::Checks, nemesis::Nemesis, world::World};
use crate::types::MemberName;

/// The length of the part with faults.
const STORM: Duration = Duration::from_secs(12);
/// Time limit for the ring to recover. Leases of the time before must end in it too.
const HEALED: Duration = Duration::from_secs(60);
/// Time between checks of all members.
const LOOK: Duration = Duration::from_millis(20);
const WORKERS: u32 = 4;
/// The fastest clock, in thousandths of the speed of true time.
const RATE_MAX: i64 = 1_200;

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed, which determines the run.
    pub seed: u64,
    /// A hash and a count of all events.
    pub fingerprint: (u64, u64),
    /// The first fault found, if any.
    pub broken: Option<String>,
    /// The end of the trace.
    pub trace: String,
    /// Operations of clients, and the number of them that were answered.
    pub operations: (usize, usize),
    /// Number of injected faults.
    pub faults: u64,
    /// The simulated time.
    pub simulated: Duration,
}

/// A runtime whose time advances only when no task can run.
fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.enable_time().start_paused(true).build().unwrap()
}

/// Runs one seed from start to end.
pub fn run(seed: u64, bug: Option<Bug>) -> Report {
    runtime().block_on(async {
        let founders = if seed.is_multiple_of(5) { 5 } else { 3 };
        let world = World::new(seed, founders, bug);
        let mut nemesis = Nemesis::new(world.clone());
        let broken = live(&world, &mut nemesis).await.err();
        let operations = world.operations();
        let answered = operations.iter().filter(|operation| operation.answer().is_some()).count();
        let (fingerprint, trace) = world.trace().summary();
        Report {
            seed,
            fingerprint,
            broken,
            trace,
            operations: (operations.len(), answered),
            faults: nemesis.injected.values().sum(),
            simulated: Duration::from_nanos(world.now_ns()),
        }
    })
}

async fn live(world: &Arc<World>, nemesis: &mut Nemesis) -> Result<(), String> {
    let mut checks = Checks::default();
    nemesis.boot_founders();
    let workers = (1..=WORKERS).map(|client| clients::work(world.clone(), client).boxed());
    let others = [
        clients::keep_leases(world.clone(), WORKERS + 1).boxed(),
        clients::keep_leases(world.clone(), WORKERS + 2).boxed(),
        clients::compact(world.clone(), WORKERS + 3).boxed(),
    ];
    let all = join_all(workers.chain(others).collect::<Vec<_>>());
    let storm = async {
        let end = Instant::now() + STORM;
        while Instant::now() < end {
            sleep(LOOK).await;
            nemesis.step().await;
            checks.look(world).await?;
        }
        let lost = nemesis.stop().await;
        let quorum_since_ns = heal(world, lost, &mut checks).await?;
        // Let clients see the recovered ring too.
        watch_for(world, Duration::from_secs(3), &mut checks).await?;
        Ok::<_, String>(quorum_since_ns)
    };
    let (storm, all) = (Box::pin(storm), Box::pin(all));
    let (healed, all) = match select(storm, all).await {
        futures::future::Either::Left((healed, all)) => (healed, all),
        futures::future::Either::Right(_) => unreachable!("clients work until they are calmed"),
    };
    let quorum_since_ns = healed?;
    world.calm_down();
    all.await;
    settle(world, &mut checks).await?;
    cut_power(world, nemesis).await;
    settle(world, &mut checks).await?;
    judge(world, quorum_since_ns)
}

async fn watch_for(world: &Arc<World>, span: Duration, checks: &mut Checks) -> Result<(), String> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        sleep(LOOK).await;
        checks.look(world).await?;
    }
    Ok(())
}

/// The members as the leader has them, if there is a leader.
fn members(world: &World) -> Option<Vec<(MemberName, u64)>> {
    let running = world.running();
    let (_, leader) = running.iter().find(|(_, live)| live.ring.node.leads())?;
    Some(leader.ring.node.nodes().into_iter().map(|(name, node)| (name, node.id)).collect())
}

/// Waits until the ring is whole; returns since when. A member that `lost` its disk is replaced.
async fn heal(
    world: &Arc<World>,
    lost: Option<MemberName>,
    checks: &mut Checks,
) -> Result<u64, String> {
    let end = Instant::now() + HEALED;
    let mut lost = lost;
    let mut since = None;
    while Instant::now() < end {
        watch_for(world, Duration::from_millis(250), checks).await?;
        if let Some((name, why)) = world.exited().first() {
            return Err(format!("{name} died in a healthy world: {why}"));
        }
        if let Some(name) = &lost {
            if replace(world, name).await {
                lost = None;
            }
            continue;
        }
        if members(world).is_some() {
            since = since.or(Some(world.stamp()));
        } else {
            since = None;
        }
        if let Some(since) = since
            && is_whole(world)
        {
            return Ok(since);
        }
    }
    Err(format!("after {HEALED:?} without faults: {}", describe(world)))
}

/// Replaces a member that lost its disk, one step at a time; returns whether that is done.
async fn replace(world: &Arc<World>, name: &MemberName) -> bool {
    let Some(members) = members(world) else { return false };
    let Some(leader) = world.running().into_iter().find(|(_, live)| live.ring.node.leads()) else {
        return false;
    };
    let Some(backend) = world.backend(&leader.0) else { return false };
    let known = members.iter().find(|(member, _)| member == name);
    let met = leader.1.ring.node.network.peers.instance_of(name);
    let running = world.running();
    let own = running.iter().find(|(running, _)| running == name);
    let own = own.map(|(_, live)| live.ring.node.network.peers.own());
    if let (Some((_, id)), true) = (known, own.is_none_or(|own| own.instance != met)) {
        world.note(&format!("{name} is removed, because its disk is lost"));
        let _ = backend.admin(AdminRequest::RemoveMember(*id)).await;
        return false;
    }
    if known.is_some() {
        return true;
    }
    if let Some(host) = world.hosts().get_mut(name) {
        host.banned = false;
    }
    let url = world::url(name.as_str());
    world.note(&format!("{name} is invited again"));
    let request = AdminRequest::AddMember { peer_urls: vec![url], is_learner: false };
    // It may be invited already.
    let _ = backend.admin(request).await;
    false
}

/// Whether all members run, vote, agree on leader and members, none is out of space, and none still
/// needs a snapshot: clients of such a member would never learn the outcome of writes inside the
/// snapshot.
fn is_whole(world: &World) -> bool {
    let Some(members) = members(world) else { return false };
    let running = world.running();
    let purged = running.iter().map(|(_, live)| live.ring.node.status().purged_index).max();
    let mut views = Vec::new();
    for (name, _) in &members {
        let Some((_, live)) = running.iter().find(|(running, _)| running == name) else {
            return false;
        };
        let status = live.ring.node.status();
        let needs_snapshot = Some(status.applied_index) < purged;
        let alarmed = live.ring.read(|keyspace| keyspace.alarms().list(None).next().is_some());
        let serves = world.backend(name).is_some() && live.ring.node.voters().contains(name);
        if !serves || needs_snapshot || alarmed {
            return false;
        }
        let is_joint = live.ring.node.membership().membership().get_joint_config().len() > 1;
        views.push((status.leader, live.ring.node.nodes().len(), is_joint));
    }
    views.iter().all(|view| *view == views[0] && view.0.is_some() && !view.2)
}

fn describe(world: &World) -> String {
    let mut all = String::new();
    for (name, live) in world.running() {
        let served = world.backend(&name).is_some();
        let (status, voters) = (live.ring.node.status(), live.ring.node.voters());
        all.push_str(&format!("\n  {name}: serves {served}, voters {voters:?}, {status:?}"));
    }
    all
}

/// Checks that every member serves, and that all reach the same state.
async fn settle(world: &Arc<World>, checks: &mut Checks) -> Result<(), String> {
    heal(world, None, checks).await?;
    let members = members(world).ok_or("no member leads")?;
    let end = Instant::now() + HEALED;
    for (place, (name, _)) in (100..).zip(&members) {
        loop {
            let backend = world.backend(name).ok_or_else(|| format!("{name} does not serve"))?;
            match clients::touch(world, place, &backend).await {
                Outcome::Ok(_) => break,
                // A late alarm of the faulty part; it is cleared automatically.
                refused if refused == clients::no_space() && Instant::now() < end => {
                    heal(world, None, checks).await?;
                }
                other => return Err(format!("{name} does not write: {other:?}")),
            }
        }
    }
    let end = Instant::now() + HEALED;
    while Instant::now() < end {
        watch_for(world, Duration::from_millis(100), checks).await?;
        let names: Vec<_> = members.iter().map(|(name, _)| name).collect();
        let running = world.running();
        let states = running.iter().filter(|(name, _)| names.contains(&name)).map(|(_, live)| {
            let applied = live.ring.node.shared.position().applied;
            (applied, live.ring.read(|keyspace| keyspace.digest()))
        });
        let states: Vec<_> = states.collect();
        if states.len() == names.len() && states.iter().all(|state| *state == states[0]) {
            return Ok(());
        }
    }
    Err(format!("members do not come to the same state: {}", describe(world)))
}

/// CHECKPOINT-1: only synced data survives, on every member.
async fn cut_power(world: &Arc<World>, nemesis: &mut Nemesis) {
    world.note("the power fails everywhere");
    for name in world.names() {
        world.crash(&name, Survival::None).await;
    }
    nemesis.restart_stopped().await;
}

/// A second of the leader's clock is not a second of its clients', so demand only a part of its
/// promise.
fn allow_for_skew(world: &World, operation: &mut Operation) {
    if world.skewed
        && matches!(operation.request, Request::Grant { .. } | Request::Renew(_))
        && let Outcome::Ok(Answer { body: Body::Ttl(left), .. }) = &mut operation.outcome
    {
        *left = *left * 1_000 / RATE_MAX;
    }
}

fn judge(world: &Arc<World>, quorum_since_ns: u64) -> Result<(), String> {
    let late = Duration::from_secs(6);
    let mut operations = world.operations().clone();
    operations.iter_mut().for_each(|operation| allow_for_skew(world, operation));
    let recording = Recording {
        operations,
        logs: vec![world.recorder().log()],
        leases: Some(LeaseLimits { late_ns_max: late.as_nanos() as u64, quorum_since_ns }),
        ..Recording::default()
    };
    let found = satrap_history::check(&recording);
    match found.first() {
        Some(first) => Err(format!("{first} (and {} more)", found.len() - 1)),
        None => Ok(()),
    }
}
