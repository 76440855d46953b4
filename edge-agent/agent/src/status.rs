//! What an edge tells its operator: a file that is replaced whenever something changes.
//!
//! An edge listens on nothing, so this file is where a person or a probe looks. It is written for
//! people and scripts and read by no part of Satrap as truth.

use std::path::{Path, PathBuf};

use satrap_certify::Timestamp;
use satrap_edge_core::{Acceptor, Refusals};
use satrap_host::files;
use serde::{Deserialize, Serialize};

/// Content of `status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This edge's region.
    pub region: String,
    /// This edge's name.
    pub edge: String,
    /// The highest verified checkpoint, and its certified time (RFC 3339).
    pub height: u64,
    /// See `height`.
    pub certified_time: String,
    /// Whom it follows at the moment.
    pub server: Option<String>,
    /// What the workload runs.
    pub active: Vec<ActiveBundle>,
    /// Versions that failed here.
    pub quarantine: Vec<ActiveBundle>,
    /// The newest refused offers, oldest first.
    pub refusals: Vec<Refused>,
    /// How many offers were refused since start.
    pub refusals_total: u64,
}

/// A version of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveBundle {
    /// Which bundle.
    pub bundle: String,
    /// Which version.
    pub version: u64,
    /// Its root, in hex.
    pub root: String,
}

/// A refused offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, by this edge's clock (Unix nanoseconds).
    pub time_unix_ns: u64,
    /// Who made the offer: `region/member`.
    pub peer: String,
    /// Rule of the specification.
    pub rule: String,
    /// What was wrong.
    pub detail: String,
}

/// Writes the status file.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    region: String,
    edge: String,
}

impl StatusFile {
    /// `status.json` in `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path, region: &str, edge: &str) -> Self {
        let path = data_dir.join("status.json");
        Self { path, region: region.to_owned(), edge: edge.to_owned() }
    }

    /// Replaces the file. A failure is logged, not fatal: the workload matters more.
    pub fn write(&self, acceptor: &Acceptor, refusals: &Refusals, server: Option<&str>) {
        let bundle = |name: &satrap_certify::BundleName, v: &satrap_edge_core::Active| {
            ActiveBundle { bundle: name.to_string(), version: v.version, root: hex::encode(v.root) }
        };
        let status = Status {
            region: self.region.clone(),
            edge: self.edge.clone(),
            height: acceptor.replica().height(),
            certified_time: acceptor.replica().certified_time().to_string(),
            server: server.map(str::to_owned),
            active: acceptor.active().iter().map(|(name, v)| bundle(name, v)).collect(),
            quarantine: acceptor.quarantine().iter().map(|(name, v)| bundle(name, v)).collect(),
            refusals: refusals.recent().map(Refused::of).collect(),
            refusals_total: refusals.counts().values().sum(),
        };
        let json = serde_json::to_vec_pretty(&status).expect("strings and numbers are JSON");
        if let Err(e) = files::write(&self.path, &json) {
            tracing::warn!(path = %self.path.display(), "cannot write the status file: {e}");
        }
    }
}

impl Refused {
    fn of(refusal: &satrap_edge_core::refusals::Refusal) -> Self {
        let Timestamp(time_unix_ns) = refusal.time;
        Self {
            time_unix_ns,
            peer: refusal.peer.clone(),
            rule: refusal.rule.to_owned(),
            detail: refusal.detail.clone(),
        }
    }
}
