//! `satrap get`: reads a bundle from any server and verifies it as an edge does.

use std::{fmt, path::PathBuf};

use satrap_certify::{BundleName, Interest, Key, Timestamp};
use satrap_merkle::codec::Canonical as _;
use satrap_operator::{
    Error,
    client::{Client, Connection},
    content,
    text::span,
};
use satrap_runtime::{clock, files};
use serde::Serialize;

use crate::{
    output::{Output, table},
    verbs::block_on,
};

/// State older than this many heartbeats is stale: the realm is silent, or the server withholds blocks.
const SILENT_HEARTBEATS: u32 = 3;

/// Arguments of `get`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The bundle
    bundle: BundleName,
    /// Print the value of this key alone, as it is
    key: Option<String>,
    /// Write every entry as a file into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "key")]
    out: Option<PathBuf>,
    /// Save the certificate with the content, for `satrap verify` without a network
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Got {
    bundle: String,
    version: u64,
    root: String,
    height: u64,
    certified_time: String,
    certified_ms_ago: u64,
    stale: bool,
    from: String,
    entries: Vec<Entry>,
    written_to: Option<PathBuf>,
    certificate: Option<PathBuf>,
}

#[derive(Serialize)]
struct Entry {
    key: String,
    bytes: usize,
}

/// Reads.
///
/// # Errors
///
/// If no server can serve the bundle, or it does not exist.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let client = Client::open(&args.connection)?;
    let interest = Interest::Bundles(vec![args.bundle.clone()]);
    let read = block_on(client.read(&interest))?;
    let replica = &read.replica;
    let bundle = &args.bundle;
    let (Some(head), Some(tree)) = (replica.heads().get(bundle), replica.content(bundle)) else {
        let height = replica.height();
        return Err(Error::refused(format!(
            "the realm has no bundle `{bundle}`, proven at height {height}; `satrap status` lists \
             the bundles"
        )));
    };
    if let Some(path) = &args.certificate {
        let snapshot = replica.snapshot().expect("a replica with a head has a checkpoint");
        files::write(path, &snapshot.to_canonical())
            .map_err(|e| Error::file("certificate", path, &e))?;
    }
    if let Some(key) = &args.key {
        let found = Key::new(key.as_bytes()).ok();
        return match found.and_then(|key| tree.get(&key)) {
            Some(value) => output.bytes(value),
            None => Err(Error::refused(format!(
                "`{bundle}` has no key `{key}`; `satrap get {bundle}` lists its keys"
            ))),
        };
    }
    if let Some(dir) = &args.out {
        content::write(tree, dir)?;
    }
    let age = Timestamp(clock::now()).since(replica.certified_time());
    let entry = |(key, value): (&Key, &std::sync::Arc<[u8]>)| Entry {
        key: content::key_text(key),
        bytes: value.len(),
    };
    output.show(&Got {
        bundle: bundle.to_string(),
        version: head.version,
        root: hex::encode(head.root),
        height: replica.height(),
        certified_time: replica.certified_time().to_string(),
        certified_ms_ago: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        stale: age > client.genesis.policy.heartbeat * SILENT_HEARTBEATS,
        from: read.from.label,
        entries: tree.iter().map(entry).collect(),
        written_to: args.out.clone(),
        certificate: args.certificate.clone(),
    })
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bundle, version, root, height, certified_time, from, .. } = self;
        writeln!(f, "`{bundle}` version {version}, verified; served by {from}")?;
        writeln!(f, "  root       {root}")?;
        let age = span(self.certified_ms_ago);
        writeln!(f, "  certified  height {height} at {certified_time}, {age} ago")?;
        if self.stale {
            writeln!(f, "  stale      no newer checkpoint was served; ask another --endpoint")?;
        }
        for (what, path) in [("written to", &self.written_to), ("saved as", &self.certificate)] {
            if let Some(path) = path {
                writeln!(f, "  {what:<9}  {}", path.display())?;
            }
        }
        let mut rows = vec![vec!["KEY".to_owned(), "BYTES".to_owned()]];
        rows.extend(self.entries.iter().map(|e| vec![e.key.clone(), e.bytes.to_string()]));
        write!(f, "{}", table(&rows))
    }
}
