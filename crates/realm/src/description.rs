//! `realm.json`, which names the addresses and files of a realm for scripts and commands: its types, read and written.

use std::{
    io,
    path::{Path, PathBuf},
};

use satrap_runtime::files;
use serde::{Deserialize, Serialize};

/// Longer than the description of any realm.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// `realm.json`: where the processes of a realm are, for scripts and the other verbs. `satrap` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Name of the realm.
    pub chain_id: String,
    /// Path of the genesis file.
    pub genesis: PathBuf,
    /// The global quorum.
    pub validators: Vec<Validator>,
    /// The regional rings.
    pub regions: Vec<Region>,
    /// The edges.
    pub edges: Vec<Edge>,
    /// mTLS credentials of an operator. `satrap init` and `satrap dev` write absolute paths to files of the
    /// first operator, here and in `regions.etcd`; see `docs/daemons.md` for the others.
    pub client: Client,
}

/// One validator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    /// Name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Process id, if it was started here.
    pub pid: Option<u32>,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Name.
    pub name: String,
    /// Its ring.
    pub members: Vec<Member>,
    /// Credentials for etcd clients, if the region serves them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<Client>,
}

/// One member of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name.
    pub name: String,
    /// Where edges and operators connect.
    pub client_url: String,
    /// Where the other members connect.
    pub peer_url: String,
    /// Where etcd clients connect, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_url: Option<String>,
    /// Process id, if it was started here.
    pub pid: Option<u32>,
}

/// One edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Its region.
    pub region: Option<String>,
    /// Name.
    pub name: String,
    /// Process id, if it was started here.
    pub pid: Option<u32>,
    /// Holds one symlink per bundle.
    pub active_dir: PathBuf,
    /// The bundles it runs.
    #[serde(default)]
    pub bundles: Vec<String>,
    /// The file beside a bundle's entries that holds all of them, if it writes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combined_file: Option<String>,
}

/// Paths of mTLS credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The CAs to trust.
    pub ca: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Description {
    /// The file in a realm's directory.
    #[must_use]
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("realm.json")
    }

    /// Reads it. Relative paths in it are relative to `dir`.
    ///
    /// # Errors
    ///
    /// If the file is missing or is no description of a realm.
    pub fn load(dir: &Path) -> io::Result<Self> {
        let bytes = files::read(&Self::path(dir), BYTES_MAX)?;
        let mut found: Self = serde_json::from_slice(&bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let edges = found.edges.iter_mut().map(|e| &mut e.active_dir);
        let clients = found.regions.iter_mut().filter_map(|region| region.etcd.as_mut());
        let clients = clients.chain([&mut found.client]);
        let credentials = clients.flat_map(|c| [&mut c.ca, &mut c.cert, &mut c.key]);
        for path in [&mut found.genesis].into_iter().chain(credentials).chain(edges) {
            *path = dir.join(&*path);
        }
        Ok(found)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    ///
    /// From the file system.
    pub fn store(&self, dir: &Path) -> io::Result<()> {
        files::write(&Self::path(dir), self.to_json().as_bytes())
    }

    /// The file's text.
    pub(super) fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("strings and numbers are JSON");
        json.push('\n');
        json
    }
}
