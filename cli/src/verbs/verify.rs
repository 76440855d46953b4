//! `satrap verify`: checks a saved certificate against a genesis file, without any network.
//!
//! For an auditor, or a machine that must decide at boot: given a genesis file from a trusted source,
//! was this content certified by the realm's validators?
//!
//! The result does not depend on the clock, because a certificate remains proof of a past decision. Its
//! age is printed for the reader to judge.

use std::{fmt, path::PathBuf};

use satrap_certify::{
    BundleName, Genesis, Interest, Rejection, Replica, Snapshot, Step, Timestamp, Update,
    ValidatorSet, limits::SNAPSHOT_BYTES_MAX, update::HistoryUpdate,
};
use satrap_merkle::{Key, codec::Canonical as _};
use satrap_operator::{
    Error,
    client::read_genesis,
    content::{self, Difference, Links},
    text::{short, span},
};
use satrap_runtime::{clock, files};
use serde::Serialize;

use crate::output::{Output, table};

/// Arguments of `verify`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The realm's genesis file: the root of trust
    #[arg(long, value_name = "FILE")]
    genesis: PathBuf,
    /// The certificate, as `satrap get --certificate` saved it
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// The bundle it must certify
    #[arg(long, value_name = "NAME")]
    bundle: Option<BundleName>,
    /// Content to compare: a directory, or a PEM file
    #[arg(long, value_name = "PATH", requires = "bundle")]
    dir: Option<PathBuf>,
    /// A file in that directory which is not an entry, such as an edge's combined file (repeatable)
    #[arg(long, value_name = "KEY", requires = "dir")]
    ignore: Vec<String>,
    /// Read symbolic links in that directory as the files that they lead to
    #[arg(long, requires = "dir")]
    follow_links: bool,
}

#[derive(Serialize)]
struct Verified {
    chain_id: String,
    genesis_hash: String,
    height: u64,
    block_hash: String,
    certified_time: String,
    certified_ms_ago: u64,
    trusting_period_over: bool,
    signed_power: u64,
    total_power: u64,
    signers: Vec<Signer>,
    heads: Vec<HeadRow>,
    content_matches: Option<PathBuf>,
}

/// A validator that signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signer {
    /// Its name, if the genesis or a change names it.
    pub name: Option<String>,
    /// Its address.
    pub address: String,
    /// Its power.
    pub power: u64,
}

#[derive(Serialize)]
struct HeadRow {
    bundle: String,
    version: u64,
    root: String,
    entries: u64,
    bytes: u64,
    height: u64,
}

/// Verifies.
///
/// # Errors
///
/// The rule that refuses the certificate, or how the content differs.
pub fn run(args: &Args, output: &Output) -> Result<(), Error> {
    let genesis = read_genesis(&args.genesis)?;
    let bytes = files::read(&args.certificate, SNAPSHOT_BYTES_MAX as u64)
        .map_err(|e| Error::file("certificate", &args.certificate, &e))?;
    let snapshot = Snapshot::from_canonical(&bytes).map_err(|_| {
        let path = args.certificate.display();
        Error::rule(
            "E1",
            format!(
                "{path} is not a certificate, or it is damaged or truncated; `satrap get BUNDLE \
                 --certificate FILE` saves one"
            ),
        )
    })?;
    let Snapshot(update) = &snapshot;
    let interest = interest(update, args.bundle.as_ref());
    let replica = Replica::restore(&genesis, interest, &snapshot).map_err(|e| refuse(args, e))?;
    if let Some(bundle) = &args.bundle {
        check_content(args, &replica, bundle)?;
    }
    output.show(&describe(&genesis, update, &replica, args.dir.clone()))
}

/// The error for a refused file. Unlike the texts of [`Rejection`], it does not blame a server.
fn refuse(args: &Args, rejection: Rejection) -> Error {
    let Rejection::Realm { offered, expected } = &rejection else { return rejection.into() };
    let (certificate, genesis) = (args.certificate.display(), args.genesis.display());
    Error::rule(
        rejection.rule(),
        format!(
            "certificate {certificate} is of the realm with genesis {}, and {genesis} is genesis {}; \
             give both of one realm",
            hex::encode(offered),
            hex::encode(expected)
        ),
    )
}

/// The bundles that a certificate covers. One with less content certifies less; `--bundle` names the
/// bundle that it must cover.
fn interest(update: &Update, wanted: Option<&BundleName>) -> Interest {
    if let Some(HistoryUpdate::Leaves(_)) = update.history {
        return Interest::Everything;
    }
    let names = update.contents.iter().map(|delta| &delta.bundle).chain(wanted);
    let mut names: Vec<_> = names.cloned().collect();
    names.sort();
    names.dedup();
    Interest::Bundles(names)
}

fn check_content(args: &Args, replica: &Replica, bundle: &BundleName) -> Result<(), Error> {
    let Some(head) = replica.heads().get(bundle) else {
        let height = replica.height();
        let why =
            format!("the certificate proves that `{bundle}` did not exist at height {height}");
        return Err(Error::refused(why));
    };
    let Some(path) = &args.dir else { return Ok(()) };
    let links = Links::by_flag(args.follow_links);
    let mut found = content::read(path, links)?;
    for key in &args.ignore {
        let key = Key::new(key.as_bytes()).map_err(|e| Error::usage(format!("--ignore: {e}")))?;
        found.remove(&key);
    }
    if found.root() == head.root {
        return Ok(());
    }
    let certified = replica.content(bundle).cloned().unwrap_or_default();
    let Difference { added, changed, removed } = Difference::between(&certified, &found);
    let list = |what: &str, keys: &[String]| match keys.len() {
        0 => String::new(),
        n => format!("; {n} {what}: {}", Difference::some(keys)),
    };
    // An edge may add a file that holds all entries.
    let hint = match added.is_empty() || !path.is_dir() {
        true => "",
        false => {
            "; give --ignore KEY for a file that is no entry, such as the combined file of an edge"
        }
    };
    Err(Error::rule(
        "B4",
        format!(
            "{} has root {}, certified for `{bundle}` version {} is {}{}{}{}{hint}",
            path.display(),
            short(&found.root()),
            head.version,
            short(&head.root),
            list("not certified", &added),
            list("altered", &changed),
            list("missing", &removed),
        ),
    ))
}

fn describe(
    genesis: &Genesis,
    update: &Update,
    replica: &Replica,
    content_matches: Option<PathBuf>,
) -> Verified {
    let step = replica.newest().expect("a restored replica has a checkpoint");
    let set = signing_set(genesis, update, step);
    let age = Timestamp(clock::now()).since(replica.certified_time());
    let signers = signers(genesis, step, set);
    Verified {
        chain_id: genesis.realm().chain_id().to_owned(),
        genesis_hash: hex::encode(genesis.realm().genesis_hash()),
        height: replica.height(),
        block_hash: hex::encode(step.checkpoint.id(genesis.realm()).hash),
        certified_time: replica.certified_time().to_string(),
        certified_ms_ago: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        trusting_period_over: age > genesis.policy.trusting_period,
        signed_power: signers.iter().map(|s| s.power).sum(),
        total_power: set.total_power(),
        signers,
        heads: replica
            .heads()
            .values()
            .map(|head| HeadRow {
                bundle: head.name.to_string(),
                version: head.version,
                root: hex::encode(head.root),
                entries: head.entries,
                bytes: head.bytes,
                height: head.height,
            })
            .collect(),
        content_matches,
    }
}

/// The set that signed `step`, which verification found among these.
fn signing_set<'a>(genesis: &'a Genesis, update: &'a Update, step: &Step) -> &'a ValidatorSet {
    let known = update.steps.iter().flat_map(|s| &s.sets).chain([genesis.validators()]);
    let mut matching = known.filter(|set| set.hash() == step.checkpoint.validators_hash);
    matching.next().expect("rule C4 refuses a checkpoint whose set was not supplied")
}

fn signers(genesis: &Genesis, step: &Step, set: &ValidatorSet) -> Vec<Signer> {
    let places = set.validators().iter().zip(&step.commit.signatures);
    let signed = places.filter(|(_, signature)| signature.is_some());
    signed
        .map(|(v, _)| Signer {
            name: genesis.governance.validator(&v.public).map(|info| info.name.to_string()),
            address: v.address().to_string(),
            power: v.power,
        })
        .collect()
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain_id, genesis_hash, height, block_hash, certified_time, .. } = self;
        writeln!(f, "verified: certified by the validators of realm `{chain_id}`")?;
        writeln!(f, "  genesis    {genesis_hash}")?;
        writeln!(f, "  block      height {height}, {block_hash}")?;
        let age = span(self.certified_ms_ago);
        writeln!(f, "  time       {certified_time}, {age} ago")?;
        if self.trusting_period_over {
            writeln!(f, "  old        beyond the trusting period: true then, maybe not now")?;
        }
        let name = |s: &Signer| s.name.clone().unwrap_or_else(|| s.address.clone());
        let names: Vec<_> = self.signers.iter().map(name).collect();
        let (signed, total) = (self.signed_power, self.total_power);
        writeln!(f, "  signed by  {} (power {signed} of {total})", names.join(", "))?;
        if let Some(path) = &self.content_matches {
            writeln!(f, "  content    {} is exactly the certified content", path.display())?;
        }
        let heading = ["BUNDLE", "VERSION", "ENTRIES", "BYTES", "ROOT"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.heads.iter().map(|h| {
            let numbers = [h.version, h.entries, h.bytes].map(|n| n.to_string());
            let root = h.root[..16].to_owned();
            [h.bundle.clone()].into_iter().chain(numbers).chain([root]).collect()
        }));
        write!(f, "{}", table(&rows))
    }
}
