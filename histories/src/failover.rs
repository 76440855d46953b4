//! Measures for how long writes stop when the leader dies.
//!
//! A put is sent every few milliseconds, to each member in turn, whether or not the ones before it
//! had an answer; so the measure is the ring's and not that of a client's patience.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use satrap_history::{Nanos, Outcome, Put, Request};
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::Channel;

use crate::{
    RunError,
    clients::Client,
    cluster::Store,
    run::start,
    session::{Dialer, call},
    shared::{Peer, Shared, now_ns},
};

const PROBE_EVERY: Duration = Duration::from_millis(5);
const PROBES_MAX: usize = 400;
const LOAD_CLIENTS: u32 = 8;
/// How long without a write until the measurement is given up.
const PATIENCE_NS: Nanos = 30_000_000_000;

/// Puts that had an answer: when they were called and when they returned.
type Acknowledged = Mutex<Vec<(Nanos, Nanos)>>;

/// Kills the leader `kills` times under load, and returns the times from each kill to the first
/// acknowledged write that was called after it, in order of their length.
///
/// # Errors
///
/// If the ring cannot be made, or does not take writes again.
pub fn measure(store: Box<dyn Store>, kills: usize) -> Result<Vec<Duration>, RunError> {
    thread::scope(|scope| {
        let run = scope.spawn(|| on_this_thread(store, kills));
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The time that `percent` of the sorted times do not exceed.
#[must_use]
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

fn on_this_thread(store: Box<dyn Store>, kills: usize) -> Result<Vec<Duration>, RunError> {
    let shared = Arc::new(Shared::new(Dialer::new(store.credentials())?));
    let mut nemesis = start(store, &shared, 1)?;
    let acknowledged = Arc::new(Acknowledged::default());
    let load = {
        let (shared, acknowledged) = (Arc::clone(&shared), Arc::clone(&acknowledged));
        thread::spawn(move || load(&shared, &acknowledged))
    };
    let mut measured = || {
        let mut times = Vec::new();
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(400));
            nemesis.kill_leader()?;
            // Only now is the leader surely gone: a write called earlier may be one that it took.
            times.push(first_after(&acknowledged, now_ns())?);
            nemesis.heal()?;
        }
        times.sort_unstable();
        Ok(times)
    };
    let times = measured();
    shared.stop();
    load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    times
}

/// Waits for the first write called after `killed`, and returns how long after that it was known.
fn first_after(acknowledged: &Acknowledged, killed: Nanos) -> Result<Duration, RunError> {
    loop {
        let first = {
            let mut known = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|(call, _)| *call >= killed);
            known.iter().map(|(_, end)| *end).min()
        };
        if let Some(end) = first {
            return Ok(Duration::from_nanos(end - killed));
        }
        if now_ns() > killed + PATIENCE_NS {
            return Err(RunError::Ring("take a write after its leader died".into()));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn load(shared: &Arc<Shared>, acknowledged: &Arc<Acknowledged>) -> Result<(), RunError> {
    let runtime = satrap_runtime::runtime::current_thread().map_err(RunError::io("a runtime"))?;
    let clients =
        (0..LOAD_CLIENTS).map(|number| Client::new(Arc::clone(shared), number, 1).share());
    runtime.block_on(async {
        tokio::join!(futures::future::join_all(clients), probe(shared, acknowledged));
    });
    Ok(())
}

/// A connection to each member, for as long as it works.
#[derive(Default)]
struct Channels(Mutex<BTreeMap<usize, Channel>>);

impl Channels {
    async fn to(&self, dialer: &Dialer, peer: &Peer) -> Option<Channel> {
        if let Some(channel) = self.known().get(&peer.slot) {
            return Some(channel.clone());
        }
        let channel = dialer.connect(&peer.url).await?;
        self.known().insert(peer.slot, channel.clone());
        Some(channel)
    }

    fn forget(&self, slot: usize) {
        self.known().remove(&slot);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<usize, Channel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends puts in a fixed rhythm.
async fn probe(shared: &Arc<Shared>, acknowledged: &Arc<Acknowledged>) {
    let channels: Arc<Channels> = Arc::default();
    let mut probes = JoinSet::new();
    for number in 0_usize.. {
        if shared.should_stop() {
            return;
        }
        while probes.try_join_next().is_some() {}
        let peers = shared.peers();
        if !peers.is_empty() && probes.len() < PROBES_MAX {
            let peer = peers[number % peers.len()].clone();
            let (channels, acknowledged) = (Arc::clone(&channels), Arc::clone(acknowledged));
            let dialer = shared.dialer.clone();
            probes.spawn(async move {
                let put = Put { key: "probe".into(), value: format!("p:{number}"), lease: 0 };
                let call_ns = now_ns();
                let Some(channel) = channels.to(&dialer, &peer).await else { return };
                match call(channel, &Request::Put(put)).await {
                    Outcome::Ok(_) => acknowledged
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((call_ns, now_ns())),
                    Outcome::Fail(_) | Outcome::Unknown => channels.forget(peer.slot),
                }
            });
        }
        sleep(PROBE_EVERY).await;
    }
}
