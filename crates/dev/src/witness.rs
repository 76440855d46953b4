//! Watches how far a version has come, through the interfaces that users have.
//!
//! Validators and members are followed over the sync protocol, and what they send is verified like
//! an edge would; edges are read from their status files. No process does extra
//! work for this, so watching changes no figure.

use std::{path::PathBuf, time::Duration};

use satrap_certify::{BundleName, Genesis, Interest, Replica, Timestamp};
use satrap_edge_agent::{
    links::OnDisk,
    status::{ActiveBundle, Status},
};
use satrap_identity::mtls::Credentials;
use satrap_pressure::Freshness;
use satrap_runtime::{clock, files};
use satrap_sync::client::{Source, UpdateStream};
use tokio::{sync::mpsc, time};

/// How often status files are read: short against the times that `dev` shows.
const EDGE_POLL: Duration = Duration::from_millis(5);
/// Pause before the next attempt to reach a server that is not up yet.
const RETRY: Duration = Duration::from_millis(50);
/// A status file of more bytes was not written by an edge.
const STATUS_BYTES_MAX: u64 = 1024 * 1024;
/// Capacity of the channel of sightings.
pub const SIGHTINGS_MAX: usize = 1_024;

/// Which kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Has decided it.
    Validator,
    /// Has adopted it.
    Member,
    /// Runs it.
    Edge,
}

/// A process was seen at a version.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Kind of process.
    pub tier: Tier,
    /// Its name.
    pub name: String,
    /// Version of the watched bundle; 0 for none. Any sighting means that the process is up.
    pub version: u64,
    /// When, on the monotonic clock.
    pub at: Duration,
}

/// A server to follow.
#[derive(Clone, Debug)]
pub struct Server {
    /// Kind of process.
    pub tier: Tier,
    /// Its name here.
    pub name: String,
    /// Where it listens, and the identity it must prove.
    pub source: Source,
}

/// Follows `server` until the receiver of sightings is gone.
pub async fn follow(
    server: Server,
    genesis: Genesis,
    bundle: BundleName,
    credentials: Credentials,
    sightings: mpsc::Sender<Sighting>,
) {
    let interest = Interest::Bundles(vec![bundle.clone()]);
    let mut replica = Replica::genesis(&genesis, interest);
    let patience = genesis.policy.heartbeat.mul_f64(Freshness::LIMIT_HEARTBEATS);
    let witness = Witness { server, bundle, credentials, patience, sightings };
    while !witness.sightings.is_closed() {
        let lost = witness.follow_once(&mut replica).await;
        tracing::debug!(server = witness.server.name, "{}", lost.err().unwrap_or_default());
        time::sleep(RETRY).await;
    }
}

/// One server under observation.
struct Witness {
    server: Server,
    bundle: BundleName,
    credentials: Credentials,
    /// A server that is silent for so long is connected to again.
    patience: Duration,
    sightings: mpsc::Sender<Sighting>,
}

impl Witness {
    async fn follow_once(&self, replica: &mut Replica) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let (source, position) = (&self.server.source, replica.position());
        let opened = UpdateStream::open(source, &self.credentials, &position, self.patience).await;
        let mut updates = opened.map_err(|e| text(&e))?;
        loop {
            if replica.is_complete() {
                self.see(replica).await.map_err(|e| text(&e))?;
            }
            let update = updates.next(self.patience).await.map_err(|e| text(&e))?;
            let now = Timestamp(clock::now());
            let advance = replica.verify(&update, now).map_err(|e| text(&e))?;
            replica.advance(advance);
        }
    }

    async fn see(&self, replica: &Replica) -> Result<(), mpsc::error::SendError<Sighting>> {
        let version = replica.heads().get(&self.bundle).map_or(0, |head| head.version);
        let (tier, name, at) = (self.server.tier, self.server.name.clone(), clock::monotonic());
        self.sightings.send(Sighting { tier, name, version, at }).await
    }
}

/// Reads `status_file` whenever it changes, until the receiver of sightings is gone.
pub async fn watch_edge(
    name: String,
    status_file: PathBuf,
    bundle: BundleName,
    sightings: mpsc::Sender<Sighting>,
) {
    let mut seen = None;
    while !sightings.is_closed() {
        let version = edge_status(&status_file).map(|status| {
            let runs = |active: &&ActiveBundle| {
                active.bundle == bundle.as_str() && active.on_disk == OnDisk::Current
            };
            let active = status.active.iter().find(runs);
            active.map_or(0, |active| active.version)
        });
        if let Some(version) = version.filter(|version| seen != Some(*version)) {
            seen = Some(version);
            let (tier, name, at) = (Tier::Edge, name.clone(), clock::monotonic());
            let _ = sightings.send(Sighting { tier, name, version, at }).await;
        }
        time::sleep(EDGE_POLL).await;
    }
}

/// The status that an edge wrote, or `None` before the first.
#[must_use]
pub fn edge_status(status_file: &std::path::Path) -> Option<Status> {
    serde_json::from_slice(&files::read(status_file, STATUS_BYTES_MAX).ok()?).ok()
}
