//! `satrap publish`: makes a directory or a PEM file the next version of a bundle.
//!
//! The change is built against the version and content this process verified itself, and the
//! signature covers the root that results, so a server that lies about the present can make the
//! change fail but not make it do something else.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use satrap_certify::{
    Action, BundleName, Change, Interest, Publish, Realm, SignedChange, Timestamp,
};
use satrap_host::clock;
use satrap_merkle::BundleTree;
use serde::Serialize;

use crate::{
    client::{Client, version_of},
    content::{self, Difference},
    error::CliError,
    operator::{self, Summary},
    output::{Output, short, span},
    verbs::{block_on, govern::Signing},
};

/// Arguments of `publish`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The bundle, such as `pki/edge-trust`
    bundle: BundleName,
    /// A directory, or a PEM file with certificates
    path: PathBuf,
    /// Fail unless this is the current version; 0 if the bundle does not exist yet
    #[arg(long, value_name = "N")]
    expect_version: Option<u64>,
    #[command(flatten)]
    signing: Signing,
}

/// What `publish` and `submit` print when a change is decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// What was published.
    pub bundle: String,
    /// The version before.
    pub from_version: u64,
    /// The version now.
    pub version: u64,
    /// Its root.
    pub root: String,
    /// The height that decided it; `None` if nothing had to be.
    pub height: Option<u64>,
    /// From submission to decision.
    pub decided_ms: Option<u64>,
    /// Who answered.
    pub by: Option<String>,
    /// Entries that differ.
    pub difference: Difference,
}

/// What `--out` prints.
#[derive(Serialize)]
pub struct Saved {
    /// Where the change is.
    pub file: PathBuf,
    /// What it does.
    pub change: Summary,
}

/// Publishes.
///
/// # Errors
///
/// If the content is wrong, the version is not the expected one, or the validators refuse.
pub fn run(args: &Args, output: &Output) -> Result<(), CliError> {
    let to = content::read(&args.path)?;
    let client = Client::open(&args.signing.connection)?;
    let keys = client.signing_keys(&args.signing.operators);
    let base = block_on(base(&client, &args.bundle, args.expect_version))?;
    let difference = Difference::between(&base.tree, &to);
    if difference.is_empty() && base.version > 0 {
        return output.show(&Published {
            bundle: args.bundle.to_string(),
            from_version: base.version,
            version: base.version,
            root: hex::encode(to.root()),
            height: None,
            decided_ms: None,
            by: None,
            difference,
        });
    }
    let change = build(client.genesis.realm(), &args.bundle, &base, &to);
    let mut signed = SignedChange::unsigned(change);
    operator::approve(&mut signed, &keys)?;
    if let Some(file) = &args.signing.out {
        return save(file, &signed, output);
    }
    let started = clock::monotonic();
    let decided = block_on(client.submit(&signed))?;
    let decided_ms = (clock::monotonic() - started).as_millis();
    output.show(&Published {
        bundle: args.bundle.to_string(),
        from_version: base.version,
        version: decided.version,
        root: hex::encode(to.root()),
        height: Some(decided.height),
        decided_ms: u64::try_from(decided_ms).ok(),
        by: Some(decided.by.label),
        difference,
    })
}

/// Saves a change for others to approve.
pub(super) fn save(file: &Path, signed: &SignedChange, output: &Output) -> Result<(), CliError> {
    operator::write_change(file, signed)?;
    output.show(&Saved { file: file.to_owned(), change: Summary::of(signed) })
}

/// The verified version and content that a change applies to.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// 0 if the bundle does not exist.
    pub version: u64,
    /// The version that a change names: for a bundle that does not exist, the highest one that was
    /// ever retired (V28).
    pub expected: u64,
    /// Its content.
    pub tree: BundleTree,
}

/// Reads what a change of `bundle` applies to.
///
/// # Errors
///
/// If nobody can serve it, or it is not at the version `expect`ed (V4).
pub async fn base(
    client: &Client,
    bundle: &BundleName,
    expect: Option<u64>,
) -> Result<Base, CliError> {
    let read = client.read(&Interest::Bundles(vec![bundle.clone()])).await?;
    let version = version_of(&read.replica, bundle);
    if let Some(expected) = expect.filter(|expected| *expected != version) {
        let (height, from) = (read.replica.height(), read.from.label);
        let age = Timestamp(clock::now()).since(read.replica.certified_time());
        return Err(CliError::rule(
            "V4",
            format!(
                "`{bundle}` is at version {version} (height {height}, certified {} ago, from \
                 {from}), you expect {expected}; look at what changed with `satrap get {bundle}`, \
                 then publish again",
                span(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
            ),
        ));
    }
    let tree = read.replica.content(bundle).cloned().unwrap_or_default();
    let expected = match version {
        0 => client.governance().await?.retired_version,
        present => present,
    };
    Ok(Base { version, expected, tree })
}

/// The change that turns `base` into `to`.
#[must_use]
pub fn build(realm: &Realm, bundle: &BundleName, base: &Base, to: &BundleTree) -> Change {
    let publish = Publish::between(bundle.clone(), base.expected, &base.tree, to);
    Change::new(realm, Action::Publish(publish))
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bundle, from_version, version, root, difference, .. } = self;
        let root = short(&hex::decode(root).unwrap_or_default());
        let (Some(height), Some(ms), Some(by)) = (self.height, self.decided_ms, &self.by) else {
            return writeln!(
                f,
                "`{bundle}` has this content already: version {version}, root {root}"
            );
        };
        let (added, changed) = (difference.added.len(), difference.changed.len());
        let removed = difference.removed.len();
        writeln!(f, "`{bundle}` version {from_version} → {version}, root {root}")?;
        writeln!(f, "  entries   {added} added, {changed} changed, {removed} removed")?;
        writeln!(f, "  decided   at height {height} in {ms} ms, says {by}")
    }
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(f, "{}", self.change)?;
        writeln!(
            f,
            "saved to {file}; next: `satrap approve {file} --operator KEY` by others, then \
                     `satrap submit {file}`"
        )
    }
}
