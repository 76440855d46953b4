//! Writes the state of an edge for its operator: a file that is replaced with every change.
//!
//! An edge listens on nothing, so this file is where a person or a probe looks. It is written for
//! people and scripts and read by no part of Satrap as truth.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use satrap_certify::{BundleName, Timestamp};
use satrap_edge_core::{Acceptor, Active, Refusals};
use satrap_runtime::files;
use serde::{Deserialize, Serialize};

use crate::{links::OnDisk, sink::Sink};

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
    /// How old that time was when this was written, in milliseconds.
    pub age_ms: u64,
    /// Whether everything that is certified there, and wanted, is held.
    pub complete: bool,
    /// The server that it follows at the moment.
    pub server: Option<String>,
    /// The versions that the workload runs.
    pub active: Vec<ActiveBundle>,
    /// The version that the workload is being given, as long as that takes. A hook that hangs shows
    /// here.
    #[serde(default)]
    pub activating: Option<BundleVersion>,
    /// Bundles of the configuration that are proven not to exist at this height: not published yet,
    /// mistyped, or retired.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Versions that failed here.
    pub quarantine: Vec<BundleVersion>,
    /// The newest refused offers, oldest first.
    pub refusals: Vec<Refused>,
    /// How many offers were refused since start.
    pub refusals_total: u64,
}

/// A version that the workload was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveBundle {
    /// Which bundle.
    pub bundle: String,
    /// Which version.
    pub version: u64,
    /// Its root, in hex.
    pub root: String,
    /// Where the workload finds it.
    pub link: PathBuf,
    /// Whether that link led to this version when this was written.
    pub on_disk: OnDisk,
    /// Whether this bundle is still expected to change.
    pub standing: Standing,
}

/// The standing of an active bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It follows what is certified.
    Followed,
    /// It was retired by certified decision; its last known good keeps running.
    Retired,
    /// It is not in this edge's configuration any more; its last known good keeps running.
    Unconfigured,
}

/// A version of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleVersion {
    /// Which bundle.
    pub bundle: String,
    /// Which version.
    pub version: u64,
    /// Its root, in hex.
    pub root: String,
}

/// The parts of a status.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The edge's state.
    pub acceptor: &'a Acceptor,
    /// Looks at what the workload reads.
    pub sink: &'a dyn Sink,
    /// Refused offers.
    pub refusals: &'a Refusals,
    /// The bundles of the configuration.
    pub bundles: &'a [BundleName],
    /// The server it follows.
    pub server: Option<&'a str>,
}

/// A refused offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// When, by this edge's clock (Unix nanoseconds).
    pub time_unix_ns: u64,
    /// The maker of the offer: `region/member`.
    pub peer: String,
    /// Rule of the specification.
    pub rule: String,
    /// The fault.
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
    pub fn write(&self, view: View<'_>, now: Timestamp) {
        let View { acceptor, refusals, .. } = view;
        let replica = acceptor.replica();
        let failed = |(bundle, version): &(BundleName, Active)| BundleVersion::of(bundle, *version);
        let activating = acceptor.activating();
        let age_ms = now.since(replica.certified_time()).as_millis();
        let status = Status {
            region: self.region.clone(),
            edge: self.edge.clone(),
            height: replica.height(),
            certified_time: replica.certified_time().to_string(),
            age_ms: u64::try_from(age_ms).unwrap_or(u64::MAX),
            complete: replica.is_complete(),
            server: view.server.map(str::to_owned),
            active: acceptor.active().iter().map(|(name, v)| view.active(name, *v)).collect(),
            activating: activating.map(|(bundle, version)| BundleVersion::of(bundle, version)),
            absent: absent(acceptor, view.bundles).iter().map(ToString::to_string).collect(),
            quarantine: acceptor.quarantine().iter().map(failed).collect(),
            refusals: refusals.recent().map(Refused::of).collect(),
            refusals_total: refusals.counts().values().sum(),
        };
        let json = serde_json::to_vec_pretty(&status).expect("strings and numbers are JSON");
        if let Err(e) = files::write(&self.path, &json) {
            tracing::warn!(path = %self.path.display(), "cannot write the status file: {e}");
        }
    }
}

/// Those of `bundles` that certified state proves not to exist.
#[must_use]
pub fn absent(acceptor: &Acceptor, bundles: &[BundleName]) -> BTreeSet<BundleName> {
    let replica = acceptor.replica();
    // Before the first checkpoint nothing is proven.
    let proven = replica.trusted().certified.is_some() && replica.is_complete();
    let unknown = bundles.iter().filter(|name| proven && !replica.heads().contains_key(name));
    unknown.cloned().collect()
}

impl View<'_> {
    fn active(&self, bundle: &BundleName, version: Active) -> ActiveBundle {
        ActiveBundle {
            bundle: bundle.to_string(),
            version: version.version,
            root: hex::encode(version.root),
            link: self.sink.link(bundle),
            on_disk: self.sink.on_disk(bundle, version),
            standing: self.standing(bundle),
        }
    }

    fn standing(&self, bundle: &BundleName) -> Standing {
        if self.bundles.binary_search(bundle).is_err() {
            Standing::Unconfigured
        } else if absent(self.acceptor, self.bundles).contains(bundle) {
            Standing::Retired
        } else {
            Standing::Followed
        }
    }
}

impl BundleVersion {
    fn of(bundle: &BundleName, version: Active) -> Self {
        let root = hex::encode(version.root);
        Self { bundle: bundle.to_string(), version: version.version, root }
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
