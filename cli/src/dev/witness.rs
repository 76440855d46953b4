//! Watches how far a version has come, by looking where a user would look.
//!
//! Validators and members are followed over the sync protocol, and what they send is verified like
//! an edge would; edges are read from their status files. Nothing is asked of a process that would
//! make it faster or slower.

use std::{path::PathBuf, time::Duration};

use satrap_certify::{
    BundleName, Genesis, Interest, Replica, Timestamp, Update, limits::EDGE_UPDATE_BYTES_MAX,
};
use satrap_edge_agent::status::Status;
use satrap_host::{
    clock, files,
    follow::{self, Replies},
    mtls::{self, Credentials, PeerRule},
    pki::SpiffeId,
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{FollowRequest, follow_request::Body};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;

/// How often status files are read: well below what a person or the figures notice.
const EDGE_POLL: Duration = Duration::from_millis(5);
/// A server that is not up yet is tried again after this.
const RETRY: Duration = Duration::from_millis(50);
/// A status file of more bytes was not written by an edge.
const STATUS_BYTES_MAX: u64 = 1024 * 1024;
/// Sightings that wait for the console.
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
    /// Where it listens.
    pub url: String,
    /// Whom its certificate must name.
    pub id: SpiffeId,
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
    while !sightings.is_closed() {
        let lost = follow_once(&server, &mut replica, &bundle, &credentials, &sightings).await;
        tracing::debug!(server = server.name, "{}", lost.err().unwrap_or_default());
        time::sleep(RETRY).await;
    }
}

async fn follow_once(
    server: &Server,
    replica: &mut Replica,
    bundle: &BundleName,
    credentials: &Credentials,
    sightings: &mpsc::Sender<Sighting>,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let rule = PeerRule::Exactly(server.id.clone());
    let channel = mtls::connect(&server.url, credentials, rule).await.map_err(|e| text(&e))?;
    let (requests, outgoing) = mpsc::channel(1);
    let body = Some(Body::Position(replica.position().to_canonical().into()));
    requests.send(FollowRequest { body }).await.map_err(|e| text(&e))?;
    let stream = follow::client(channel).follow(ReceiverStream::new(outgoing)).await;
    let stream = stream.map_err(|e| text(&e))?.into_inner();
    let mut replies = Replies::new(stream, EDGE_UPDATE_BYTES_MAX);
    loop {
        if replica.is_complete() {
            let version = replica.heads().get(bundle).map_or(0, |head| head.version);
            let (tier, name, at) = (server.tier, server.name.clone(), clock::monotonic());
            sightings.send(Sighting { tier, name, version, at }).await.map_err(|e| text(&e))?;
        }
        let update = replies.next().await.map_err(|e| text(&e))?.ok_or("stream closed")?;
        let update = Update::from_canonical(&update).map_err(|e| text(&e))?;
        let now = Timestamp(clock::now());
        let advance = replica.verify(&update, now).map_err(|e| text(&e))?;
        replica.advance(advance);
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
            let active = status.active.iter().find(|active| active.bundle == bundle.as_str());
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

/// What an edge says of itself, if it has said anything yet.
#[must_use]
pub fn edge_status(status_file: &std::path::Path) -> Option<Status> {
    serde_json::from_slice(&files::read(status_file, STATUS_BYTES_MAX).ok()?).ok()
}
