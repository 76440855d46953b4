//! `satrap init`: creates a realm from its description.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use satrap_operator::{Error, text::count};
use satrap_realm::{CreateError, RealmPlan, create_described, layout::ProcessFiles, text};
use satrap_runtime::files;
use serde::Serialize;

use crate::output::Output;

/// Longer than any description that a person writes.
const DESCRIPTION_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Arguments of `init`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Describes the realm; `--example` prints one
    #[arg(required_unless_present = "example")]
    description: Option<PathBuf>,
    /// Where to create it; must not hold anything
    #[arg(long, value_name = "DIR", default_value = ".satrap")]
    out: PathBuf,
    /// Print a description to start from, and do nothing else
    #[arg(long)]
    example: bool,
}

#[derive(Serialize)]
struct Created {
    dir: PathBuf,
    chain_id: String,
    genesis_hash: String,
    validators: usize,
    members: usize,
    edges: usize,
    operators: Vec<String>,
    #[serde(skip)]
    examples: Vec<String>,
    #[serde(skip)]
    commands: Vec<String>,
}

/// Creates the realm.
///
/// # Errors
///
/// If the description is wrong, or the directory holds something.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let path = match &args.description {
        Some(path) if !args.example => path,
        _ => return output.bytes(text::EXAMPLE.as_bytes()),
    };
    let text = files::read(path, DESCRIPTION_BYTES_MAX)
        .map_err(|e| Error::file("description", path, &e))?;
    let wrong = |why: &dyn fmt::Display| Error::usage(format!("{}: {why}", path.display()));
    let text = String::from_utf8(text).map_err(|e| wrong(&e))?;
    let plan = RealmPlan::from_toml(&text).map_err(|e| wrong(&e))?;
    let files = create_described(&plan, &args.out).map_err(|e| match &e {
        CreateError::Plan(_) | CreateError::Genesis(_) | CreateError::Pki(_) => wrong(&e),
        CreateError::Taken(_) => Error::usage(e),
        CreateError::Disk { .. } => Error::internal(e),
    })?;
    let genesis = satrap_operator::client::read_genesis(&files.genesis)?;
    let relative =
        |path: &Path| path.strip_prefix(&files.dir).unwrap_or(path).display().to_string();
    let kinds =
        [("validator", &files.validators), ("region", &files.members), ("edge", &files.edges)];
    let first = |(verb, processes): (&'static str, &Vec<ProcessFiles>)| {
        processes.first().map(|process| (verb, process.clone()))
    };
    let kinds: Vec<_> = kinds.into_iter().filter_map(first).collect();
    output.show(&Created {
        dir: files.dir.clone(),
        chain_id: plan.chain_id.to_string(),
        genesis_hash: hex::encode(genesis.realm().genesis_hash()),
        validators: files.validators.len(),
        members: files.members.len(),
        edges: files.edges.len(),
        operators: plan.operators.iter().map(ToString::to_string).collect(),
        examples: kinds.iter().map(|(_, at)| relative(&at.dir)).collect(),
        commands: kinds
            .iter()
            .map(|(verb, at)| format!("satrap {verb} run --config {}", relative(&at.config)))
            .collect(),
    })
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, chain_id, genesis_hash, .. } = self;
        writeln!(
            f,
            "realm `{chain_id}` created in {}: {}, {}, {}",
            dir.display(),
            count(self.validators, "validator", "validators"),
            count(self.members, "region member", "region members"),
            count(self.edges, "edge", "edges"),
        )?;
        writeln!(f, "genesis hash {genesis_hash}")?;
        writeln!(f)?;
        writeln!(f, "next:")?;
        writeln!(
            f,
            "  1. on each machine, make a directory for the realm, and copy into it genesis.json and \
             the directories of what runs there, such as {}, at the same paths",
            self.examples.join(", ")
        )?;
        let operators = self.operators.join(", ");
        writeln!(
            f,
            "  2. hand genesis.json, realm.json and operators/<name>/ to {operators} in person"
        )?;
        writeln!(
            f,
            "     realm.json names the files of {} in this directory: the others, and those on other \
             machines, correct its paths first (docs/daemons.md)",
            self.operators.first().map_or("one operator", String::as_str),
        )?;
        writeln!(
            f,
            "  3. take ca/*.key offline: each holder of one can make identities; no command of satrap \
             does so after this one, so names that the description does not have cannot be added yet"
        )?;
        writeln!(f, "  4. start them in the directory of the realm, one command for each:")?;
        self.commands.iter().try_for_each(|command| writeln!(f, "       {command}"))
    }
}
