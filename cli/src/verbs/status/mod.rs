//! `satrap status`: the whole realm on one screen.
//!
//! The state of a server is that server's word; a contradiction between two of them is a reason to look
//! closer. The state of an edge is more: its reports are signed, and each one is verified here against
//! the CAs this operator trusts, by whichever server it came.

mod attention;
mod gather;
mod screen;
mod view;

use std::{io::IsTerminal as _, time::Duration};

use crate::{
    client::{Client, Connection},
    error::CliError,
    output::{Output, one_line},
    verbs::block_on,
};

pub use gather::gather;
pub use view::{
    AlarmView, BundleView, EdgeView, EvidenceView, MemberView, Realm, RecoveryView, RegionView,
    RunningView, SavedView, SnapshotView, ValidatorView,
};

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears what was below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Look again every second until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the realm.
///
/// # Errors
///
/// If no server of the realm answers.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let client = Client::open(&args.connection)?;
    if !args.watch {
        let realm = block_on(async { Ok(gather(&client).await) })?;
        output.show(&realm)?;
        return reached(&realm);
    }
    let clear = std::io::stdout().is_terminal() && !output.json;
    block_on(async {
        loop {
            let realm = gather(&client).await;
            if clear {
                output.bytes(CLEAR.as_bytes())?;
            }
            output.show(&realm)?;
            tokio::time::sleep(WATCH_EVERY).await;
        }
    })
}

fn reached(realm: &Realm) -> Result<(), CliError> {
    let members = realm.regions.iter().flat_map(|r| &r.members).map(|m| m.error.is_none());
    if realm.validators.iter().map(|v| v.error.is_none()).chain(members).any(|reached| reached) {
        return Ok(());
    }
    let first = realm.validators.iter().filter_map(|v| v.error.as_deref()).next();
    let first = first.map_or_else(String::new, |why| format!(" ({})", one_line(why)));
    Err(CliError::unavailable(format!(
        "no server of the realm answers{first}; start its processes, or check --endpoint"
    )))
}
