//! `satrap retire`: takes a bundle out of the directory.
//!
//! The change names the version that this process read and verified itself, so a bundle that was
//! published meanwhile is not retired. The name may be used again; its versions go on above every
//! version that was ever retired (V28).

use std::{fmt, path::PathBuf};

use satrap_certify::{Action, BundleName, Change, Retire, SignedChange};
use satrap_host::clock;
use serde::Serialize;

use crate::{
    client::Client,
    content::Difference,
    error::CliError,
    operator,
    output::{Output, count},
    verbs::{block_on, govern::Signing, publish},
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
    decided: Option<Decision>,
    /// Where the change was saved.
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Decision {
    height: u64,
    decided_ms: u64,
    by: String,
}

/// Retires.
///
/// # Errors
///
/// If the bundle does not exist or is not at the expected version, or the validators refuse.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let client = Client::open(&args.signing.connection)?;
    let keys = client.signing_keys(&args.signing.operators);
    let base = block_on(publish::base(&client, &args.bundle, args.expect_version))?;
    if base.version == 0 {
        let bundle = &args.bundle;
        return Err(CliError::rule(
            "V28",
            format!("`{bundle}` does not exist; `satrap status` lists the bundles there are"),
        ));
    }
    let retire = Retire { bundle: args.bundle.clone(), expect_version: base.version };
    let change = Change::new(client.genesis.realm(), Action::Retire(retire));
    let mut signed = SignedChange::unsigned(change);
    operator::approve(&mut signed, &keys)?;
    let mut retired = Retired {
        bundle: args.bundle.to_string(),
        version: base.version,
        bytes: base.tree.bytes(),
        removed: Difference::between(&base.tree, &Default::default()).removed,
        decided: None,
        file: args.signing.out.clone(),
    };
    match &args.signing.out {
        Some(file) => operator::write_change(file, &signed)?,
        None => {
            let started = clock::monotonic();
            let decided = block_on(client.submit(&signed))?;
            let decided_ms = (clock::monotonic() - started).as_millis();
            retired.decided = Some(Decision {
                height: decided.height,
                decided_ms: u64::try_from(decided_ms).unwrap_or(u64::MAX),
                by: decided.by.label,
            });
        }
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
            writeln!(f, "  - {key}")?;
        }
        if removed.len() > KEYS_SHOWN {
            writeln!(f, "  and {} more", removed.len() - KEYS_SHOWN)?;
        }
        if let Some(Decision { height, decided_ms, by }) = &self.decided {
            writeln!(f, "  decided   at height {height} in {decided_ms} ms, says {by}")?;
        }
        if let Some(file) = &self.file {
            let file = file.display();
            writeln!(
                f,
                "saved to {file}; next: `satrap approve {file} --operator KEY` by others, then \
                 `satrap submit {file}`"
            )?;
        }
        Ok(())
    }
}
