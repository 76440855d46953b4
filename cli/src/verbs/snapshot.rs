//! `satrap snapshot`: saves the state of a ring to a file, checks one, or makes a new ring from one.
//!
//! `save` writes to `FILE.partial`, reads it back, rebuilds the state in memory, and only then renames
//! it to `FILE`, as members do with scheduled snapshots; see [`satrap_ring_raft::snapshots`].
//! `etcdctl snapshot save` writes the same content, and `verify` shows whether it is whole.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use satrap_certify::Genesis;
use satrap_operator::{
    Error,
    client::{etcd::answer, read_genesis},
    text::span,
};
use satrap_proto::etcdserverpb::SnapshotRequest;
use satrap_realm::Description;
use satrap_region_core::state_setup;
use satrap_region_server::Config;
use satrap_ring_core::StateSetup;
use satrap_ring_raft::{
    RingSetup,
    offline::{self, OfflineError, SnapshotFacts},
    snapshots::{Draft, DraftError},
};
use satrap_runtime::clock;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    output::Output,
    verbs::{block_on, etcd},
};

/// The SHA-256 that etcd appends to a snapshot.
const DIGEST_BYTES: usize = 32;

/// The subcommand.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Save the state of a running ring to a file
    Save(Save),
    /// Say what is in a file
    Status(Check),
    /// Compare every digest in a file and rebuild its state, as a restore would
    Verify(Check),
    /// Make members of a new ring from a file; run it for every member, with the same epoch
    Restore(Restore),
}

/// Arguments of `save`.
#[derive(clap::Args, Debug)]
pub struct Save {
    /// Where to save it; must not exist
    file: PathBuf,
    #[command(flatten)]
    region: etcd::Args,
}

/// Arguments of `status` and `verify`.
#[derive(clap::Args, Debug)]
pub struct Check {
    /// The snapshot
    file: PathBuf,
    /// The realm's genesis file; without it, that of the realm in `--realm`
    #[arg(long, value_name = "FILE")]
    genesis: Option<PathBuf>,
    /// The realm's directory
    #[arg(long, value_name = "DIR", default_value = ".satrap")]
    realm: PathBuf,
}

/// Arguments of `restore`.
#[derive(clap::Args, Debug)]
pub struct Restore {
    /// The snapshot
    file: PathBuf,
    /// Configuration of a member to make (repeatable); its data directory must be empty
    #[arg(long = "config", value_name = "FILE", required = true)]
    configs: Vec<PathBuf>,
    /// The epoch that the first `restore` printed, when members are made on several machines
    #[arg(long, value_name = "NUMBER")]
    epoch: Option<u32>,
}

/// Runs the command.
///
/// # Errors
///
/// If the file cannot be used or written, or no member serves one.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    match verb {
        Verb::Save(args) => save(args, output),
        Verb::Status(args) | Verb::Verify(args) => {
            let genesis = match &args.genesis {
                Some(path) => read_genesis(path)?,
                None => described_genesis(&args.realm)?,
            };
            output.show(&View::of(&args.file, &read(&args.file, &state_setup(&genesis))?)?)
        }
        Verb::Restore(args) => restore(args, output),
    }
}

fn described_genesis(realm: &Path) -> Result<Genesis, Error> {
    let description = Description::load(realm).map_err(|error| {
        let path = Description::path(realm);
        Error::usage(format!("{}: {error}; name the genesis with --genesis", path.display()))
    })?;
    read_genesis(&description.genesis)
}

/// The error, with the party at fault, of an offline command that changed nothing.
pub(super) fn blame(error: &OfflineError) -> Error {
    use satrap_ring_raft::rebuild::RebuildError;
    match error {
        OfflineError::Clock => Error::internal(error),
        OfflineError::Rebuild(RebuildError::Io { source, .. })
            if source.kind() == io::ErrorKind::ResourceBusy =>
        {
            Error::unavailable(format!("{error}; stop that process first"))
        }
        OfflineError::Rebuild(RebuildError::NotEmpty { .. } | RebuildError::Io { .. }) => {
            Error::usage(error)
        }
        OfflineError::Rebuild(_) | OfflineError::Unsigned { .. } => Error::refused(error),
    }
}

fn read(path: &Path, state: &StateSetup) -> Result<SnapshotFacts, Error> {
    let file = File::open(path).map_err(|e| Error::file("snapshot", path, &e))?;
    offline::read_snapshot(&mut BufReader::new(file), state).map_err(|e| {
        let path = path.display();
        Error::refused(format!(
            "{path}: {e}; `satrap snapshot save` and `etcdctl snapshot save` write what can be used"
        ))
    })
}

fn save(args: &Save, output: &Output) -> Result<(), Error> {
    let path = &args.file;
    if path.exists() {
        let path = path.display();
        return Err(Error::usage(format!(
            "{path} exists; a snapshot is never overwritten: choose another name, or remove it first"
        )));
    }
    let (client, genesis) = (args.region.client()?, args.region.genesis()?);
    let mut partial = path.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let draft = block_on(async {
        let mut draft = Draft::create(partial).map_err(refuse)?;
        let mut maintenance = client.maintenance().await?;
        let stream = maintenance.snapshot(SnapshotRequest {}).await;
        let mut stream = stream.map_err(|status| answer(&status))?.into_inner();
        // The last 32 bytes are the digest of all others.
        let (mut digest, mut held) = (Sha256::new(), Vec::new());
        while let Some(message) = stream.message().await.map_err(|status| answer(&status))? {
            draft.write(&message.blob).map_err(refuse)?;
            held.extend_from_slice(&message.blob);
            let done = held.len().saturating_sub(DIGEST_BYTES);
            digest.update(&held[..done]);
            held.drain(..done);
        }
        if held[..] != digest.finalize()[..] {
            let why = "the received snapshot does not match its digest: the member or the network \
                       cut it short";
            return Err(Error::unavailable(why));
        }
        Ok(draft)
    })?;
    let whole = draft.verify(&state_setup(&genesis)).map_err(refuse)?;
    let facts = whole.name(path).map_err(refuse)?;
    output.show(&View::of(path, &facts)?)
}

fn refuse(error: DraftError) -> Error {
    match error {
        DraftError::Io { path, error } => Error::file("snapshot", &path, &error),
        DraftError::Exists(_) => Error::usage(error),
        DraftError::Unusable { .. } => Error::refused(format!("snapshot {error}")),
    }
}

fn restore(args: &Restore, output: &Output) -> Result<(), Error> {
    let load =
        |path: &PathBuf| Config::load(path).map(|config| config.ring_setup()).map_err(Error::usage);
    let setups = args.configs.iter().map(load).collect::<Result<Vec<RingSetup>, _>>()?;
    let first = &setups[0];
    for setup in &setups {
        if setup.ring != first.ring || setup.members != first.members {
            return Err(Error::usage(format!(
                "the configurations of `{}` and `{}` do not list the same ring",
                first.name, setup.name
            )));
        }
        offline::check_empty(setup).map_err(|e| blame(&e))?;
    }
    let facts = read(&args.file, &first.state)?;
    if facts.ring != first.ring {
        let path = args.file.display();
        return Err(Error::refused(format!(
            "snapshot {path} is of another ring than region `{}` of this genesis",
            first.region
        )));
    }
    let epoch = match args.epoch {
        Some(epoch) => epoch,
        None => offline::epoch_now().map_err(|e| blame(&e))?.max(facts.epoch + 1),
    };
    let mut members = Vec::new();
    for setup in &setups {
        let rebuilt = offline::restore(&args.file, &facts, setup, epoch);
        let rebuilt = rebuilt.map_err(|e| blame(&e))?;
        members.push(Member {
            name: setup.name.to_string(),
            data_dir: setup.data_dir.clone(),
            state_digest: rebuilt.digest,
            revision: rebuilt.revision,
        });
    }
    let named: Vec<_> = setups.iter().map(|setup| &setup.name).collect();
    let missing = first.members.keys().filter(|name| !named.contains(name));
    let missing = missing.map(ToString::to_string).collect();
    output.show(&Restored { epoch, kept: facts.revision, members, missing })
}

/// The content of a file, for people and scripts.
#[derive(Serialize)]
struct View {
    file: PathBuf,
    bytes: u64,
    age_ms: Option<u64>,
    digest: String,
    ring: String,
    state_digest: String,
    revision: i64,
    compacted: i64,
    keys: i64,
    leases: usize,
    index: u64,
    epoch: u32,
    voters: Vec<String>,
}

impl View {
    fn of(path: &Path, facts: &SnapshotFacts) -> Result<Self, Error> {
        let about = fs::metadata(path).map_err(|e| Error::file("snapshot", path, &e))?;
        let written = about.modified().ok();
        let written = written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let age = written.map(|at| u128::from(clock::now()).saturating_sub(at.as_nanos()));
        Ok(Self {
            file: path.to_owned(),
            bytes: about.len(),
            age_ms: age.and_then(|age| u64::try_from(age / 1_000_000).ok()),
            digest: hex::encode(facts.digest),
            ring: hex::encode(facts.ring),
            state_digest: facts.state_digest.clone(),
            revision: facts.revision,
            compacted: facts.compacted,
            keys: facts.keys,
            leases: facts.leases,
            index: facts.index,
            epoch: facts.epoch,
            voters: facts.voters.clone(),
        })
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: whole, {} bytes", self.file.display(), self.bytes)?;
        writeln!(f, "  revision   {}, compacted up to {}", self.revision, self.compacted)?;
        writeln!(f, "  holds      {} keys, {} leases", self.keys, self.leases)?;
        writeln!(f, "  log index  {}, epoch {}", self.index, self.epoch)?;
        writeln!(f, "  voters     {}", self.voters.join(", "))?;
        writeln!(f, "  ring       {}", self.ring)?;
        writeln!(f, "  digest     {}", self.digest)?;
        writeln!(f, "  state      {}", self.state_digest)?;
        self.age_ms.map_or(Ok(()), |age| writeln!(f, "  written    {} ago", span(age)))
    }
}

#[derive(Serialize)]
struct Member {
    name: String,
    data_dir: PathBuf,
    state_digest: String,
    revision: i64,
}

#[derive(Serialize)]
struct Restored {
    epoch: u32,
    kept: i64,
    members: Vec<Member>,
    missing: Vec<String>,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, kept, members, missing } = self;
        for Member { name, data_dir, state_digest, revision } in members {
            writeln!(f, "member `{name}` made in {}", data_dir.display())?;
            writeln!(f, "  revision {revision}, state {state_digest}")?;
        }
        writeln!(f, "epoch {epoch}: every write after revision {kept} is gone")?;
        if !missing.is_empty() {
            let missing = missing.join(", ");
            writeln!(f, "still to be made, with --epoch {epoch} and the same file: {missing}")?;
        }
        writeln!(f, "start a member only once all are made")
    }
}
