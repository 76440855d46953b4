//! `satrap status`: the whole realm on one screen, or as JSON.

mod screen;

use std::{io::IsTerminal as _, time::Duration};

use satrap_operator::{
    Error,
    client::{Client, Connection},
    text::one_line,
};
use satrap_status::{RealmView, gather};

use crate::{output::Output, verbs::block_on};

pub(super) use screen::Recovery;
use screen::Screen;

/// Pause between two reads of `--watch`.
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
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let client = Client::open(&args.connection)?;
    if !args.watch {
        let realm = block_on(async { Ok(gather(&client).await) })?;
        output.show(&Screen(&realm))?;
        return reached(&realm);
    }
    let clear = std::io::stdout().is_terminal() && !output.json;
    block_on(async {
        loop {
            let realm = gather(&client).await;
            if clear {
                output.bytes(CLEAR.as_bytes())?;
            }
            output.show(&Screen(&realm))?;
            tokio::time::sleep(WATCH_EVERY).await;
        }
    })
}

fn reached(realm: &RealmView) -> Result<(), Error> {
    let members = realm.regions.iter().flat_map(|r| &r.members).map(|m| m.error.is_none());
    if realm.validators.iter().map(|v| v.error.is_none()).chain(members).any(|reached| reached) {
        return Ok(());
    }
    let first = realm.validators.iter().filter_map(|v| v.error.as_deref()).next();
    let first = first.map_or_else(String::new, |why| format!(" ({})", one_line(why)));
    Err(Error::unavailable(format!(
        "no server of the realm answers{first}; start its processes, or check --endpoint"
    )))
}
