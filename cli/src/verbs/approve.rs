//! `satrap approve`: adds an operator's signature to a saved change.
//!
//! The approver sees what the signed bytes do to the certified content of now, and with `--matches`
//! checks that the resulting content is the one they reviewed, without trusting the author of the
//! file. Without a server in reach it shows the change file alone, and says so.

use std::{path::PathBuf, time::Duration};

use satrap_certify::{Action, Genesis, Governance};
use satrap_operator::{
    Error,
    changes::{
        Changes,
        review::{Present, Review, void},
    },
    client::{Client, Connection, version_of},
    content::{self, Links, key_text},
    keys,
    text::one_line,
};
use tokio::time::timeout;

use crate::{
    output::Output,
    verbs::{
        block_on,
        signing::{Saved, check_keys},
    },
};

/// Bound on reading the state that the change applies to.
const READ_WITHIN: Duration = Duration::from_secs(15);

/// Arguments of `approve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The change, as `--out` saved it
    change: PathBuf,
    /// Sign with this key (repeatable); without it, only show what the change does
    #[arg(long = "operator", value_name = "FILE")]
    operators: Vec<PathBuf>,
    /// Sign only if the bundle will hold exactly this directory or PEM file
    #[arg(long, value_name = "PATH")]
    matches: Option<PathBuf>,
    /// In that directory, read a symbolic link to a file as that file
    #[arg(long, requires = "matches")]
    follow_links: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Certified state, or the genesis state and why no server could be read.
struct Known {
    governance: Governance,
    base: Option<(u64, satrap_merkle::BundleTree)>,
    missing: Option<String>,
}

impl Known {
    fn present(&self) -> Present<'_> {
        Present {
            governance: &self.governance,
            is_certified: self.missing.is_none(),
            base: self.base.as_ref().map(|(version, tree)| (*version, tree)),
        }
    }
}

/// Approves.
///
/// # Errors
///
/// If the change is for another realm, does not result in what the approver reviewed, or the key is
/// of no operator.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let mut changes = Changes::read(&args.change)?;
    let genesis = args.connection.genesis()?;
    check_realm(&changes, &genesis)?;
    check_outcome(args, &changes)?;
    let signers = keys::read_signers(&args.operators)?;
    let known = known(args, &genesis, &changes);
    if let Some(why) = &known.missing {
        output.note(&format!(
            "no server could be read, so this shows the change file alone, with the \
             operators of the genesis: {why}"
        ));
    }
    let present = known.present();
    let review = Review::of(&changes, &present);
    if signers.is_empty() {
        return output.show(&review);
    }
    if let Some(part) = review.wrong_part {
        return Err(Error::rule(
            "V7",
            format!(
                "the content after part {part} of the change does not have the root that it names, \
                 so the validators would refuse it, but not those before it; do not sign it"
            ),
        ));
    }
    if present.is_certified {
        check_keys(&signers, present.governance)?;
    }
    // The validators refuse a change with such an approval, even if enough others approved.
    let dropped = void(&changes, &present);
    changes.drop_approvals(&dropped);
    for key in &dropped {
        output.warn(&format!(
            "the approval of key {key} was dropped: its signature does not verify, or no operator \
             holds it"
        ));
    }
    block_on(changes.approve(&signers))?;
    changes.replace(&args.change)?;
    output.show(&Saved { file: args.change.clone(), change: Review::of(&changes, &present) })
}

/// V1, before any server has to say it.
pub(super) fn check_realm(changes: &Changes, genesis: &Genesis) -> Result<(), Error> {
    let (ours, theirs) = (genesis.realm().genesis_hash(), changes.genesis_hash());
    if ours == theirs {
        return Ok(());
    }
    Err(Error::rule(
        "V1",
        format!(
            "the change is for the realm with genesis {}, this one has {}; do not sign it",
            hex::encode(theirs),
            hex::encode(ours)
        ),
    ))
}

/// V7, against the content that the approver reviewed. Every part has to lead there, since it is a
/// valid change without those after it.
fn check_outcome(args: &Args, changes: &Changes) -> Result<(), Error> {
    let Some(path) = &args.matches else { return Ok(()) };
    let links = Links::by_flag(args.follow_links);
    let Action::Publish(publish) = &changes.last().change.action else {
        return Err(Error::usage(
            "--matches is for changes that publish; this one leaves no content to compare",
        ));
    };
    let tree = content::read(path, links)?;
    let (reviewed, path) = (tree.root(), path.display());
    if publish.root != reviewed {
        return Err(Error::rule(
            "V7",
            format!(
                "the change results in root {}, {path} has {}; do not sign it",
                hex::encode(publish.root),
                hex::encode(reviewed)
            ),
        ));
    }
    for (n, part) in changes.publishes().enumerate() {
        let put = part.puts.iter().find(|(key, value)| tree.get(key) != Some(value));
        let deleted = part.deletes.iter().find(|key| tree.get(key).is_some());
        let Some(key) = put.map(|(key, _)| key).or(deleted) else { continue };
        return Err(Error::rule(
            "V7",
            format!(
                "part {} of the change gives the key {} another value than {path} does; do not \
                 sign it",
                n + 1,
                one_line(&key_text(key))
            ),
        ));
    }
    Ok(())
}

fn known(args: &Args, genesis: &Genesis, changes: &Changes) -> Known {
    let read = async {
        let client = Client::open(&args.connection)?;
        let governance = client.governance().await?;
        let base = match changes.first().change.action.bundle() {
            None => None,
            Some(bundle) => {
                let interest = satrap_certify::Interest::Bundles(vec![bundle.clone()]);
                let replica = client.read(&interest).await?.replica;
                let tree = replica.content(bundle).cloned().unwrap_or_default();
                Some((version_of(&replica, bundle), tree))
            }
        };
        Ok(Known { governance, base, missing: None })
    };
    let bounded = async {
        let late = || Error::unavailable(format!("no answer within {READ_WITHIN:?}"));
        timeout(READ_WITHIN, read).await.map_err(|_| late())?
    };
    block_on(bounded).unwrap_or_else(|error| Known {
        governance: genesis.governance.clone(),
        base: None,
        missing: Some(error.message),
    })
}

/// The effect of `changes`, in words, from its bytes alone.
pub(super) fn in_words(client: &Client, changes: &Changes) -> String {
    let governance = &client.genesis.governance;
    Review::of(changes, &Present { governance, is_certified: false, base: None }).action
}
