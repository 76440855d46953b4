//! `satrap retire`: takes a bundle out of the directory.
//!
//! The change names the version that this process read and verified, so the validators refuse it if the
//! bundle was published meanwhile. The name may be used again; its versions continue above every retired
//! version (V28).

use std::{fmt, path::PathBuf};

use satrap_certify::{Action, BundleName, Change, Retire};
use satrap_operator::{
    Error,
    changes::{self, Changes},
    client::Client,
    content::Difference,
    keys,
    text::{count, one_line},
};
use serde::Serialize;

use crate::{
    output::Output,
    verbs::{block_on, block_on_within, signing::Signing, submit},
};

/// Keys listed for people; `--json` lists all.
const KEYS_SHOWN: usize = 16;

/// Arguments of `retire`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The bundle, such as `config/motd`
    bundle: BundleName,
    /// Fail unless this is the current version
    #[arg(long, value_name = "N")]
    expect_version: Option<u64>,
    #[command(flatten)]
    signing: Signing,
}

/// A bundle to retire, or retired.
#[derive(Serialize)]
struct Retired {
    bundle: String,
    /// Its last version.
    version: u64,
    /// Keys and values of its entries.
    bytes: u64,
    /// The keys of the entries that go with it.
    removed: Vec<String>,
    /// How it was decided; `None` if the change was saved.
    decided: Option<submit::Decision>,
    /// Where the change was saved.
    file: Option<PathBuf>,
}

/// Retires.
///
/// # Errors
///
/// If the bundle does not exist or is not at the expected version, or the validators refuse.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let Signing { operators, out, patience, connection } = &args.signing;
    out.as_deref().map_or(Ok(()), changes::check_absent)?;
    let client = Client::open(connection)?;
    let signers = keys::read_signers(&client.signing_keys(operators))?;
    let read = client.base(&args.bundle, args.expect_version);
    let base = block_on_within(patience.duration(), "read the present version", read)?;
    if base.version == 0 {
        let bundle = &args.bundle;
        return Err(Error::rule(
            "V28",
            format!("`{bundle}` does not exist; `satrap status` lists the bundles"),
        ));
    }
    let retire = Retire { bundle: args.bundle.clone(), expect_version: base.version };
    let change = Change::new(client.genesis.realm(), Action::Retire(retire));
    let mut changes = Changes::from(change);
    block_on(changes.approve(&signers))?;
    let mut retired = Retired {
        bundle: args.bundle.to_string(),
        version: base.version,
        bytes: base.tree.bytes(),
        removed: Difference::between(&base.tree, &Default::default()).removed,
        decided: None,
        file: out.clone(),
    };
    match out {
        Some(file) => changes.create(file)?,
        None => retired.decided = Some(submit::decide(&client, &changes, *patience, output)?),
    }
    output.show(&retired)
}

impl fmt::Display for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bundle, version, bytes, removed, .. } = self;
        let entries = count(removed.len(), "entry", "entries");
        let verb = if self.decided.is_some() { "is retired" } else { "would be retired" };
        writeln!(f, "`{bundle}` version {version} {verb}: {entries}, {bytes} bytes removed")?;
        for key in removed.iter().take(KEYS_SHOWN) {
            writeln!(f, "  - {}", one_line(key))?;
        }
        if removed.len() > KEYS_SHOWN {
            writeln!(f, "  and {} more", removed.len() - KEYS_SHOWN)?;
        }
        if let Some(decision) = &self.decided {
            write!(f, "{decision}")?;
        }
        if let Some(file) = &self.file {
            let file = one_line(&file.display().to_string());
            writeln!(
                f,
                "saved to {file}; next: `satrap approve {file} --operator KEY` by others, then \
                 `satrap submit {file}`"
            )?;
        }
        Ok(())
    }
}
