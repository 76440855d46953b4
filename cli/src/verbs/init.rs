//! `satrap init`: creates a realm from its description.

use std::{fmt, path::PathBuf};

use satrap_host::files;
use serde::Serialize;

use crate::{
    error::CliError,
    output::{Output, count},
    realm::{self, CreateError, RealmPlan, text},
};

/// A description of more bytes was not written by a person.
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
}

/// Creates the realm.
///
/// # Errors
///
/// If the description is wrong, or the directory holds something.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let path = match &args.description {
        Some(path) if !args.example => path,
        _ => return output.bytes(text::EXAMPLE.as_bytes()),
    };
    let text = files::read(path, DESCRIPTION_BYTES_MAX)
        .map_err(|e| CliError::file("description", path, &e))?;
    let text = String::from_utf8(text)
        .map_err(|e| CliError::refused(format!("{}: {e}", path.display())))?;
    let plan = RealmPlan::from_toml(&text)
        .map_err(|e| CliError::refused(format!("{}: {e}", path.display())))?;
    let files = realm::create_described(&plan, &args.out).map_err(|e| match &e {
        CreateError::Plan(_) | CreateError::Genesis(_) | CreateError::Pki(_) => {
            CliError::refused(format!("{}: {e}", path.display()))
        }
        CreateError::Taken(_) => CliError::usage(e),
        CreateError::Disk { .. } => CliError::internal(e),
    })?;
    let genesis = crate::client::read_genesis(&files.genesis)?;
    output.show(&Created {
        dir: files.dir.clone(),
        chain_id: plan.chain_id.to_string(),
        genesis_hash: hex::encode(genesis.realm().genesis_hash()),
        validators: files.validators.len(),
        members: files.members.len(),
        edges: files.edges.len(),
        operators: plan.operators.iter().map(ToString::to_string).collect(),
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
        writeln!(f, "  1. copy genesis.json and each process's directory to its machine")?;
        writeln!(f, "  2. hand operators/<name>/ to {} in person", self.operators.join(", "))?;
        writeln!(f, "  3. take ca/*.key offline: whoever holds them makes identities")?;
        writeln!(f, "  4. there: satrap validator|region|edge run --config FILE")
    }
}
