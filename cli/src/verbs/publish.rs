//! `satrap publish`: makes a directory or a PEM file the next version of a bundle.
//!
//! The change is built against the version and content this process verified itself, and the
//! signature covers the root that results, so a server that lies about the present version can
//! make the change fail, but cannot change its effect.

use std::{fmt, path::PathBuf};

use satrap_certify::BundleName;
use satrap_edge_agent::paths;
use satrap_merkle::BundleTree;
use satrap_operator::{
    Error,
    changes::{
        self, Changes,
        review::{Present, Review},
        split,
    },
    client::{Base, Client},
    content::{self, Difference, Links},
    keys,
    text::short,
};
use serde::Serialize;

use crate::{
    output::Output,
    verbs::{
        block_on, block_on_within,
        signing::{Saved, Signing, check_keys},
        submit,
    },
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
    /// Show what would change and what deserves a second look; sign and submit nothing
    #[arg(long, conflicts_with = "out")]
    dry_run: bool,
    /// Allow up to N entries to be removed; without it, one entry or a quarter of them, and never so
    /// that the bundle is left empty
    #[arg(long, value_name = "N")]
    allow_delete: Option<usize>,
    /// Read a symbolic link to a file as that file, wherever it is; otherwise a link is an error
    #[arg(long)]
    follow_links: bool,
    /// Fail if the change is too large for one block; otherwise it becomes several versions, which
    /// edges run one after the other
    #[arg(long)]
    one_version: bool,
    #[command(flatten)]
    signing: Signing,
}

/// The result of a publish that is decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The bundle.
    pub bundle: String,
    /// The version before.
    pub from_version: u64,
    /// The version now.
    pub version: u64,
    /// How many versions were made, one after the other.
    pub parts: usize,
    /// Its root.
    pub root: String,
    /// The height that decided it; `None` if nothing had to be.
    pub height: Option<u64>,
    /// From submission to decision.
    pub decided_ms: Option<u64>,
    /// The server that answered.
    pub by: Option<String>,
    /// Entries that differ.
    pub difference: Difference,
    /// Points that deserve a second look.
    pub warnings: Vec<String>,
}

/// The result of `--dry-run`.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    change: Review,
}

/// Publishes.
///
/// # Errors
///
/// If the content is wrong, the version is not the expected one, more is removed than allowed, or
/// the validators refuse.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let Signing { operators, out, patience, connection } = &args.signing;
    out.as_deref().map_or(Ok(()), changes::check_absent)?;
    let links = Links::by_flag(args.follow_links);
    let to = content::read(&args.path, links)?;
    let client = Client::open(connection)?;
    check_combined(&client, &args.bundle, &to)?;
    let signers = match args.dry_run {
        true => Vec::new(),
        false => keys::read_signers(&client.signing_keys(operators))?,
    };
    let read = client.base(&args.bundle, args.expect_version);
    let base = block_on_within(patience.duration(), "read the present version", read)?;
    let difference = Difference::between(&base.tree, &to);
    if difference.is_empty() && base.version > 0 {
        return output.show(&Published::nothing(args, base.version, &to));
    }
    if to.is_empty() && base.version == 0 {
        let path = args.path.display();
        return Err(Error::refused(format!(
            "{path} holds no file, so there is nothing to publish"
        )));
    }
    let too_much = match check_deletions(args, &difference, base.tree.len()) {
        Some(refusal) if !args.dry_run => return Err(refusal),
        refusal => refusal,
    };
    let mut changes =
        split::publish(client.genesis.realm(), &args.bundle, base.expected, (&base.tree, &to))?;
    let parts = changes.parts().len();
    if args.one_version && parts > 1 {
        return Err(Error::refused(format!(
            "the change is too large for one block; without --one-version it becomes {parts} \
             versions, one after the other"
        )));
    }
    if !args.dry_run {
        block_on(changes.approve(&signers))?;
        if out.is_none() {
            return decide(args, &client, (&base, &to), &changes, output);
        }
    }
    let governance =
        block_on_within(patience.duration(), "read who may approve", client.governance())?;
    let base = Some((base.version, &base.tree));
    let present = Present { governance: &governance, is_certified: true, base };
    let mut change = Review::of(&changes, &present);
    match out {
        Some(file) => {
            check_keys(&signers, &governance)?;
            changes.create(file)?;
            output.show(&Saved { file: file.clone(), change })
        }
        None => {
            change.warnings.extend(too_much.map(|refusal| refusal.message));
            output.show(&Planned { dry_run: true, change })
        }
    }
}

fn decide(
    args: &Args,
    client: &Client,
    (base, to): (&Base, &BundleTree),
    changes: &Changes,
    output: &Output,
) -> Result<(), Error> {
    let difference = Difference::between(&base.tree, to);
    let put = |key: &satrap_certify::Key| base.tree.get(key) != to.get(key);
    let warnings = content::hazards(to.iter().filter(|(key, _)| put(key)));
    warnings.iter().for_each(|warning| output.warn(warning));
    let parts = changes.parts().len();
    if parts > 1 {
        output.note(&format!(
            "the change is too large for one block; it becomes {parts} versions, and edges run each \
             of them in turn"
        ));
    }
    let decision = submit::decide(client, changes, args.signing.patience, output)?;
    output.show(&Published {
        bundle: args.bundle.to_string(),
        from_version: base.version,
        version: decision.version,
        parts,
        root: hex::encode(to.root()),
        height: Some(decision.height),
        decided_ms: Some(decision.decided_ms),
        by: Some(decision.by),
        difference,
        warnings,
    })
}

/// The refusal to remove more than the operator allows, or than happens by design.
fn check_deletions(args: &Args, difference: &Difference, before: usize) -> Option<Error> {
    let removed = difference.removed.len();
    let refused = match args.allow_delete {
        Some(allowed) => removed > allowed,
        None => difference.is_mass_deletion(before),
    };
    refused.then(|| {
        let (bundle, some) = (&args.bundle, Difference::some(&difference.removed));
        Error::refused(format!(
            "`{bundle}` would lose {removed} of its {before} entries: {some}; look at all of it with \
             --dry-run, and if it is meant, give --allow-delete {removed}"
        ))
    })
}

/// Refuses keys that the edges of the description cannot use beside their combined file.
fn check_combined(client: &Client, bundle: &BundleName, to: &BundleTree) -> Result<(), Error> {
    let edges = client.description.iter().flat_map(|realm| &realm.edges);
    for edge in edges.filter(|edge| edge.bundles.iter().any(|name| name == bundle.as_str())) {
        if let Err(error) = paths::files(to, edge.combined_file.as_deref()) {
            let (region, name) = (edge.region.as_deref().unwrap_or_default(), &edge.name);
            return Err(Error::refused(format!("edge `{region}/{name}` cannot run this: {error}")));
        }
    }
    Ok(())
}

impl Published {
    /// The bundle has this content already.
    fn nothing(args: &Args, version: u64, to: &BundleTree) -> Self {
        Self {
            bundle: args.bundle.to_string(),
            from_version: version,
            version,
            parts: 0,
            root: hex::encode(to.root()),
            height: None,
            decided_ms: None,
            by: None,
            difference: Difference::default(),
            warnings: Vec::new(),
        }
    }
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
        writeln!(f, "`{bundle}` version {from_version} → {version}, root {root}")?;
        writeln!(f, "  entries   {}", difference.sizes())?;
        writeln!(f, "  decided   at height {height} in {ms} ms, says {by}")
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.change)?;
        writeln!(f, "dry run: nothing was signed or submitted")
    }
}
