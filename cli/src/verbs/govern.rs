//! `satrap govern`: changes the operators, region keys and validators of a realm.
//!
//! A governance change names the version it applies to, which is read and verified here against
//! the governance root of a certified checkpoint.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use satrap_certify::{
    Action, Change, Class, ClassKind, Governance, GovernanceAct, Label, Operator, PublicKey, Quota,
    ValidatorInfo,
};
use satrap_identity::mtls;
use satrap_operator::{
    Error,
    changes::{
        self, Changes,
        review::{Present, Review},
    },
    client::{Client, Connection},
    keys::{self, parse_public_key},
};
use satrap_runtime::files;
use serde::{Deserialize, Serialize};

use crate::{
    output::{Output, table},
    verbs::{
        block_on, block_on_within,
        signing::{Saved, Signing, check_keys},
        submit,
    },
};

/// Longer than a list with as many validators as a set may have.
const LIST_BYTES_MAX: u64 = 256 * 1024;

/// The subcommand.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Show operators, classes, region keys and validators, verified
    Show(Show),
    /// Make an operator key; prints the public half to be authorized
    NewKey(NewKey),
    /// Let a key sign changes in the name of a principal
    AuthorizeOperator(AuthorizeOperator),
    /// Take that right from a key
    RevokeOperator(RevokeOperator),
    /// Let a key speak for a region
    AuthorizeRegionKey(AuthorizeRegionKey),
    /// Take that right from a key
    RevokeRegionKey(RegionKey),
    /// Replace the validators by those in a TOML file (`show --validators` prints the present ones)
    SetValidators(SetValidators),
}

/// Arguments of `show`.
#[derive(clap::Args, Debug)]
pub struct Show {
    /// Print only the validators, as TOML for `set-validators`
    #[arg(long)]
    validators: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `new-key`.
#[derive(clap::Args, Debug)]
pub struct NewKey {
    /// Where to write it; must not exist
    file: PathBuf,
}

/// Arguments of `authorize-operator`.
#[derive(clap::Args, Debug)]
pub struct AuthorizeOperator {
    /// The holder of the key; several keys of one principal count once
    principal: Label,
    /// The public key, hex
    #[arg(value_parser = parse_public_key)]
    key: PublicKey,
    #[command(flatten)]
    signing: Signing,
}

/// Arguments of `revoke-operator`.
#[derive(clap::Args, Debug)]
pub struct RevokeOperator {
    /// The public key, hex
    #[arg(value_parser = parse_public_key)]
    key: PublicKey,
    #[command(flatten)]
    signing: Signing,
}

/// Arguments of `authorize-region-key`.
#[derive(clap::Args, Debug)]
pub struct AuthorizeRegionKey {
    #[command(flatten)]
    of: RegionKey,
    /// The region is new: neither the realm's description nor another key names it yet
    #[arg(long)]
    new_region: bool,
}

/// Arguments of `revoke-region-key`.
#[derive(clap::Args, Debug)]
pub struct RegionKey {
    /// The region
    region: Label,
    /// The public key, hex
    #[arg(value_parser = parse_public_key)]
    key: PublicKey,
    #[command(flatten)]
    signing: Signing,
}

/// Arguments of `set-validators`.
#[derive(clap::Args, Debug)]
pub struct SetValidators {
    /// TOML with one `[[validators]]` per validator
    file: PathBuf,
    #[command(flatten)]
    signing: Signing,
}

/// Runs the command.
///
/// # Errors
///
/// If the governance state cannot be read, or the validators refuse the change.
pub fn run(verb: &Verb, output: &Output) -> Result<(), Error> {
    let (act, signing) = match verb {
        Verb::Show(args) => return show(args, output),
        Verb::NewKey(NewKey { file }) => {
            let public_key = keys::new_key(file)?.to_string();
            return output.show(&NewKeyMade { file: file.clone(), public_key });
        }
        Verb::AuthorizeOperator(AuthorizeOperator { principal, key, signing }) => {
            let operator = Operator { public: *key, principal: principal.clone() };
            (GovernanceAct::AuthorizeOperator(operator), signing)
        }
        Verb::RevokeOperator(args) => (GovernanceAct::RevokeOperator(args.key), &args.signing),
        Verb::AuthorizeRegionKey(AuthorizeRegionKey { of: args, .. }) => {
            (GovernanceAct::AuthorizeRegionKey(args.region.clone(), args.key), &args.signing)
        }
        Verb::RevokeRegionKey(args) => {
            (GovernanceAct::RevokeRegionKey(args.region.clone(), args.key), &args.signing)
        }
        Verb::SetValidators(args) => {
            (GovernanceAct::SetValidators(read_validators(&args.file)?), &args.signing)
        }
    };
    let Signing { operators, out, patience, connection } = signing;
    out.as_deref().map_or(Ok(()), changes::check_absent)?;
    let client = Client::open(connection)?;
    let signers = keys::read_signers(&client.signing_keys(operators))?;
    let read = client.governance();
    let governance = block_on_within(patience.duration(), "read the governance state", read)?;
    check_keys(&signers, &governance)?;
    if let Verb::AuthorizeRegionKey(args) = verb {
        check_region(args, &client, &governance)?;
    }
    let action = Action::Govern(governance.version, act);
    let mut changes = Changes::from(Change::new(client.genesis.realm(), action));
    block_on(changes.approve(&signers))?;
    let Some(file) = out else {
        return submit::show(&client, &changes, *patience, output);
    };
    changes.create(file)?;
    let present = Present { governance: &governance, is_certified: true, base: None };
    output.show(&Saved { file: file.clone(), change: Review::of(&changes, &present) })
}

/// Refuses a region that nothing names, because its name is probably mistyped.
fn check_region(
    args: &AuthorizeRegionKey,
    client: &Client,
    governance: &Governance,
) -> Result<(), Error> {
    let described = client.description.iter().flat_map(|realm| &realm.regions);
    let mut known: Vec<_> = described.map(|region| region.name.clone()).collect();
    known.extend(governance.region_keys.keys().map(ToString::to_string));
    known.sort();
    known.dedup();
    let region = &args.of.region;
    if args.new_region || known.iter().any(|name| name == region.as_str()) {
        return Ok(());
    }
    let known = match known.as_slice() {
        [] => "none is known here".to_owned(),
        names => format!("known are {}", names.join(", ")),
    };
    Err(Error::refused(format!(
        "there is no region `{region}`: {known}; check the name, or give --new-region"
    )))
}

fn show(args: &Show, output: &Output) -> Result<(), Error> {
    let client = Client::open(&args.connection)?;
    let view = View::of(&block_on(client.governance())?);
    if args.validators {
        let list = RawList { validators: view.validators };
        let text = toml::to_string_pretty(&list).expect("strings and small numbers are TOML");
        return output.bytes(text.as_bytes());
    }
    output.show(&view)
}

#[derive(Serialize)]
struct NewKeyMade {
    file: PathBuf,
    public_key: String,
}

impl fmt::Display for NewKeyMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, public_key } = self;
        writeln!(f, "{public_key}")?;
        writeln!(
            f,
            "written to {}; next, an operator: satrap govern authorize-operator NAME {public_key}",
            file.display()
        )
    }
}

/// `validators.toml`: a validator set, for `satrap govern set-validators`. `satrap govern show
/// --validators` prints one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawList {
    /// The whole set.
    validators: Vec<RawValidator>,
}

/// A validator of the set.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawValidator {
    /// Its name.
    name: String,
    /// Ed25519 public key that signs its votes, 64 hex digits.
    public_key: String,
    /// Voting power.
    power: u64,
    /// The legal area it operates in.
    jurisdiction: String,
    /// `https://HOST:PORT` where the other validators reach it.
    url: String,
}

fn read_validators(path: &Path) -> Result<Vec<ValidatorInfo>, Error> {
    let refuse = |why: String| {
        let path = path.display();
        let example = "`satrap govern show --validators` prints a list";
        Error::usage(format!("{path} is not a list of validators: {why}; {example}"))
    };
    let text =
        files::read(path, LIST_BYTES_MAX).map_err(|e| Error::file("validators", path, &e))?;
    let text = String::from_utf8(text).map_err(|e| refuse(e.to_string()))?;
    let list: RawList = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    let info = |raw: RawValidator| {
        Ok(ValidatorInfo {
            name: Label::new(&raw.name).map_err(|e| e.to_string())?,
            public: parse_public_key(&raw.public_key)
                .map_err(|e| format!("public_key of `{}`: {e}", raw.name))?,
            power: raw.power,
            jurisdiction: Label::new(&raw.jurisdiction).map_err(|e| e.to_string())?,
            url: mtls::check_url(&raw.url)
                .map(|()| raw.url)
                .map_err(|e| format!("url of `{}`: {e}", raw.name))?,
        })
    };
    list.validators.into_iter().map(info).collect::<Result<_, String>>().map_err(refuse)
}

/// The governance state for people and scripts.
#[derive(Serialize)]
struct View {
    version: u64,
    approvals: u32,
    operators: Vec<(String, String)>,
    classes: Vec<ClassView>,
    region_keys: Vec<(String, String)>,
    validators: Vec<RawValidator>,
}

/// A class and its quota.
#[derive(Serialize)]
struct ClassView {
    prefix: String,
    approvals: u32,
    kind: &'static str,
    bundles_max: u32,
    bytes_max: u64,
    publishes_per_hour: u32,
}

impl ClassView {
    fn of(class: &Class) -> Self {
        let kind = match class.kind {
            ClassKind::Opaque => "opaque",
            ClassKind::X509Trust => "x509-trust",
        };
        let Quota { bundles_max, bytes_max, publishes_per_hour } = class.quota;
        let (prefix, approvals) = (class.prefix.clone(), class.approvals);
        Self { prefix, approvals, kind, bundles_max, bytes_max, publishes_per_hour }
    }

    fn row(&self) -> Vec<String> {
        vec![
            format!("{}*", self.prefix),
            self.approvals.to_string(),
            self.kind.to_owned(),
            self.bundles_max.to_string(),
            self.bytes_max.to_string(),
            self.publishes_per_hour.to_string(),
        ]
    }
}

impl View {
    fn of(g: &Governance) -> Self {
        let operators = g.operators.values();
        let keys = g.region_keys.iter().flat_map(|(r, keys)| keys.iter().map(move |k| (r, k)));
        Self {
            version: g.version,
            approvals: g.approvals,
            operators: operators.map(|o| (o.principal.to_string(), o.public.to_string())).collect(),
            classes: g.classes.values().map(ClassView::of).collect(),
            region_keys: keys.map(|(r, k)| (r.to_string(), k.to_string())).collect(),
            validators: g
                .validators
                .iter()
                .map(|v| RawValidator {
                    name: v.name.to_string(),
                    public_key: v.public.to_string(),
                    power: v.power,
                    jurisdiction: v.jurisdiction.to_string(),
                    url: v.url.clone(),
                })
                .collect(),
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, approvals, .. } = self;
        writeln!(
            f,
            "governance version {version}, verified; a change needs {approvals} approvals"
        )?;
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut rows = vec![row(&["OPERATOR", "KEY"])];
        rows.extend(self.operators.iter().map(|(name, key)| row(&[name, key])));
        write!(f, "{}", table(&rows))?;
        let columns =
            ["CLASS", "APPROVALS", "CHECKED AS", "BUNDLES MAX", "BYTES MAX", "PUBLISHES PER HOUR"];
        let mut rows = vec![row(&columns)];
        rows.extend(self.classes.iter().map(ClassView::row));
        write!(f, "\n{}", table(&rows))?;
        if !self.region_keys.is_empty() {
            let mut rows = vec![row(&["REGION", "KEY"])];
            rows.extend(self.region_keys.iter().map(|(region, key)| row(&[region, key])));
            write!(f, "\n{}", table(&rows))?;
        }
        let mut rows = vec![row(&["VALIDATOR", "POWER", "JURISDICTION", "URL", "KEY"])];
        rows.extend(self.validators.iter().map(|v| {
            row(&[&v.name, &v.power.to_string(), &v.jurisdiction, &v.url, &v.public_key])
        }));
        write!(f, "\n{}", table(&rows))
    }
}
