//! The realm that a command talks to: one with a `realm.json`, or one given by flags.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use satrap_certify::Genesis;
use satrap_realm::Description;
use satrap_runtime::files;

use super::{DECIDE_WITHIN, Endpoint};
use crate::error::Error;

/// Longer than any genesis that `satrap init` writes.
const GENESIS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The realm to talk to, and the identity to use.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Directory with `realm.json`, as `satrap dev` and `satrap init` write it
    #[arg(long, value_name = "DIR", default_value = ".satrap")]
    pub realm: PathBuf,
    /// Ask this server (repeatable); without it, those in `realm.json`
    #[arg(long = "endpoint", value_name = "URL")]
    pub endpoints: Vec<String>,
    /// The realm's genesis file
    #[arg(long, value_name = "FILE")]
    pub genesis: Option<PathBuf>,
    /// Client certificate
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its key
    #[arg(id = "tls_key", long = "key", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// CAs to trust
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
}

/// How long a verb that submits a change may take.
#[derive(Args, Clone, Copy, Debug)]
pub struct Patience {
    /// Wait so many seconds for the decision; a change that was submitted may be decided later
    #[arg(long, value_name = "SECONDS", default_value_t = DECIDE_WITHIN.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

impl Patience {
    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

impl Connection {
    /// The realm's description, unless everything is on the command line.
    ///
    /// # Errors
    ///
    /// If `realm.json` is missing or not a description of a realm.
    pub fn description(&self) -> Result<Option<Description>, Error> {
        let files = [&self.genesis, &self.cert, &self.key, &self.trust];
        if !self.endpoints.is_empty() && files.iter().all(|file| file.is_some()) {
            return Ok(None);
        }
        Description::load(&self.realm).map(Some).map_err(|e| {
            let path = Description::path(&self.realm);
            Error::usage(format!(
                "{}: {e}; start a realm with `satrap dev`, name one with --realm DIR, or give \
                 --endpoint, --genesis, --cert, --key and --trust",
                path.display()
            ))
        })
    }

    /// The genesis alone, for verbs that need no network.
    ///
    /// # Errors
    ///
    /// If the genesis file is missing or invalid.
    pub fn genesis(&self) -> Result<Genesis, Error> {
        match &self.genesis {
            Some(path) => read_genesis(path),
            None => {
                let found = self.description()?.expect("without --genesis there is one");
                read_genesis(&found.genesis)
            }
        }
    }
}

/// Reads a genesis file.
///
/// # Errors
///
/// If the file is missing or invalid.
pub fn read_genesis(path: &Path) -> Result<Genesis, Error> {
    let json =
        files::read(path, GENESIS_BYTES_MAX).map_err(|e| Error::file("genesis", path, &e))?;
    Genesis::from_json(&json).map_err(|e| Error::refused(format!("{}: {e}", path.display())))
}

/// Validators first: a member may be a moment behind, and validators refuse a change that
/// expects a stale version.
pub(super) fn described_endpoints(description: &Description) -> Vec<Endpoint> {
    let members = description.regions.iter().flat_map(|r| {
        r.members.iter().map(move |m| Endpoint {
            label: format!("region {}/{}", r.name, m.name),
            url: m.client_url.clone(),
        })
    });
    let validators = description
        .validators
        .iter()
        .map(|v| Endpoint { label: format!("validator {}", v.name), url: v.url.clone() });
    validators.chain(members).collect()
}
