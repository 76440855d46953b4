//! Makes everything a planned realm needs, or nothing.
//!
//! The realm is built in a directory beside the target and renamed into place, so that a reader of
//! the target sees all of it, and a second `init` can never mix two sets of keys.
//!
//! # Invariants
//!
//! - **CREATE-1** A target that holds anything is left alone.
//! - **CREATE-2** Keys have mode 0600 from the moment they exist, and no key is in two directories.
//! - **CREATE-3** A process trusts only the CAs of those it talks to: an edge never that of operators or
//!   validators, so no stolen operator certificate can pass for a region.
//!
//! # Deliberately absent
//!
//! Renewal of leaves and rotation of CAs: that is done with the keys in `ca/`, where they are kept.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Genesis, Governance, Label, Operator, PublicKey, Timestamp, ValidatorInfo,
    genesis::GenesisError,
};
use satrap_identity::pki::{Authority, PkiError, Role, Scope, SpiffeId, WebAuthority};
use satrap_runtime::{clock, files, rng};
use zeroize::Zeroizing;

use super::{
    configs,
    layout::{OperatorFiles, ProcessFiles, RealmFiles},
    plan::{MemberPlan, PlanError, RealmPlan, RegionPlan},
};

/// For the directory of the realm and those that hold keys.
const MODE_PRIVATE: u32 = 0o700;

const NS_PER_S: u64 = 1_000_000_000;

/// Why a realm was not created. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The plan contradicts itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan is no valid genesis.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// A name in the plan cannot be certified.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The target holds something, and is left alone (CREATE-1).
    #[error(
        "{0} is not empty; a realm is never overwritten, because its keys are the realm: choose \
         another directory, or remove this one if nothing uses it any more"
    )]
    Taken(PathBuf),
    /// The disk refused.
    #[error("cannot create {path}: {source}")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Creates the realm in `dir`, without `realm.json`: for `dev`, which writes it when the realm
/// serves.
///
/// # Errors
///
/// [`CreateError`].
pub fn create(plan: &RealmPlan, dir: &Path) -> Result<RealmFiles, CreateError> {
    let dir = std::path::absolute(dir).map_err(disk(dir))?;
    build(plan, &dir, |_| Ok(()))
}

/// Creates the realm in `dir`, described as its plan says.
///
/// # Errors
///
/// [`CreateError`].
pub fn create_described(plan: &RealmPlan, dir: &Path) -> Result<RealmFiles, CreateError> {
    let dir = std::path::absolute(dir).map_err(disk(dir))?;
    let description = RealmFiles::of(plan, &dir);
    build(plan, &dir, |staged| {
        // `realm.json` names paths in the target, not in the staging directory.
        let json = description.description(plan).to_json();
        write(&super::Description::path(staged), json.as_bytes())
    })
}

fn build(
    plan: &RealmPlan,
    dir: &Path,
    describe: impl FnOnce(&Path) -> Result<(), CreateError>,
) -> Result<RealmFiles, CreateError> {
    plan.check()?;
    let taken = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if taken || (dir.exists() && !dir.is_dir()) {
        return Err(CreateError::Taken(dir.to_owned()));
    }
    // Only `/` has no name, and it is not empty.
    let name = dir.file_name().ok_or_else(|| CreateError::Taken(dir.to_owned()))?;
    let parent = files::parent(dir);
    fs::create_dir_all(parent).map_err(disk(parent))?;
    let mut staged = std::ffi::OsString::from(".");
    staged.push(name);
    staged.push(format!(".{:016x}.tmp", rng::u64()));
    let staged = dir.with_file_name(staged);
    let built = fill(plan, &staged).and_then(|()| describe(&staged)).and_then(|()| {
        sync_all(&staged)?;
        // Fails with ENOTEMPTY if another process created something there meanwhile.
        fs::rename(&staged, dir).map_err(disk(dir))?;
        files::sync_directory(parent).map_err(disk(parent))
    });
    if let Err(error) = built {
        // Best effort: the first failure is the error to report.
        let _ = fs::remove_dir_all(&staged);
        return Err(error);
    }
    Ok(RealmFiles::of(plan, dir))
}

fn fill(plan: &RealmPlan, dir: &Path) -> Result<(), CreateError> {
    let files = RealmFiles::of(plan, dir);
    let signers = Signers::draw(plan);
    let genesis = signers.genesis(plan)?;
    let issuer = Issuer::create(plan)?;
    directory(dir, MODE_PRIVATE)?;
    write(&files.genesis, genesis.to_json().as_bytes())?;
    write(&files.plan, plan.to_toml().as_bytes())?;
    issuer.store(&dir.join("ca"))?;
    for ((v, at), key) in plan.validators.iter().zip(&files.validators).zip(&signers.validators) {
        let name = v.name.to_string();
        issuer.process(at, Role::Validator { name }, &issuer.everyone())?;
        secret(&at.dir.join("signing.key"), &seed_text(key))?;
        write(&at.config, configs::validator(v).as_bytes())?;
    }
    let members = plan.regions.iter().flat_map(|r| r.members.iter().map(move |m| (r, m)));
    let etcd = EtcdIssuer::create(plan, issuer.now_ns)?;
    etcd.store(&dir.join("ca"))?;
    for ((region, m), at) in members.zip(&files.members) {
        let role = Role::Member { region: region.name.to_string(), name: m.name.to_string() };
        issuer.process(at, role, &issuer.everyone())?;
        write(&at.config, configs::member(plan, region, m).as_bytes())?;
        etcd.server(region, m, &at.dir)?;
    }
    for (e, at) in plan.edges.iter().zip(&files.edges) {
        let role = Role::Edge { region: e.region.to_string(), name: e.name.to_string() };
        let asked = [&e.region].into_iter().chain(&e.fallback_regions);
        issuer.process(at, role, &issuer.regions(asked))?;
        directory(&at.active_dir(), 0o755)?;
        write(&at.config, configs::edge(plan, e).as_bytes())?;
    }
    for (operator, key) in files.operators.iter().zip(&signers.operators) {
        let role = Role::Operator { name: operator.principal.to_string() };
        let dir = files::parent(&operator.cert);
        issuer.credentials(dir, role, &issuer.everyone())?;
        secret(&operator.operator_key, &seed_text(key))?;
        etcd.clients(operator)?;
    }
    Ok(())
}

/// The CAs of etcd's listeners and clients, one for each region that has them.
struct EtcdIssuer<'a> {
    plan: &'a RealmPlan,
    now_ns: u64,
    regions: Vec<(&'a Label, WebAuthority)>,
}

impl<'a> EtcdIssuer<'a> {
    fn create(plan: &'a RealmPlan, now_ns: u64) -> Result<Self, PkiError> {
        let serving = plan.regions.iter().filter(|region| region.serves_etcd());
        let regions = serving.map(|region| {
            let name = format!("etcd of {} in {}", region.name, plan.chain_id);
            Ok((&region.name, WebAuthority::create(&name, now_ns, plan.lifetimes.authority)?))
        });
        Ok(Self { plan, now_ns, regions: regions.collect::<Result<_, PkiError>>()? })
    }

    fn store(&self, dir: &Path) -> Result<(), CreateError> {
        self.regions.iter().try_for_each(|(region, ca)| {
            let at = |ending| dir.join(format!("etcd-{region}.{ending}"));
            write(&at("crt"), ca.certificate_pem().as_bytes())?;
            secret(&at("key"), &ca.key_pem())
        })
    }

    fn server(&self, region: &RegionPlan, m: &MemberPlan, dir: &Path) -> Result<(), CreateError> {
        let ca = self.regions.iter().find(|(name, _)| **name == region.name);
        let (Some(etcd), Some((_, ca))) = (&m.etcd, ca) else { return Ok(()) };
        let mut hosts = vec![etcd.host().to_owned()];
        if etcd.listen.ip().is_loopback() {
            hosts.push("localhost".to_owned());
        }
        let leaf = ca.server(&hosts, self.now_ns, self.plan.lifetimes.leaf)?;
        write(&dir.join("etcd.crt"), leaf.certificate_pem.as_bytes())?;
        secret(&dir.join("etcd.key"), &leaf.key_pem)?;
        write(&dir.join("etcd-ca.crt"), ca.certificate_pem().as_bytes())
    }

    /// The user is called like the operator.
    fn clients(&self, operator: &OperatorFiles) -> Result<(), CreateError> {
        self.regions.iter().try_for_each(|(region, ca)| {
            let files = operator.etcd(region);
            let user = operator.principal.as_str();
            let leaf = ca.client(user, self.now_ns, self.plan.lifetimes.leaf)?;
            directory(files::parent(&files.cert), MODE_PRIVATE)?;
            write(&files.cert, leaf.certificate_pem.as_bytes())?;
            secret(&files.key, &leaf.key_pem)?;
            write(&files.ca, ca.certificate_pem().as_bytes())
        })
    }
}

/// The keys that sign votes and changes.
struct Signers {
    validators: Vec<SigningKey>,
    operators: Vec<SigningKey>,
}

impl Signers {
    fn draw(plan: &RealmPlan) -> Self {
        Self {
            validators: plan.validators.iter().map(|_| draw_key()).collect(),
            operators: plan.operators.iter().map(|_| draw_key()).collect(),
        }
    }

    fn genesis(&self, plan: &RealmPlan) -> Result<Genesis, GenesisError> {
        let operator = |(principal, key): (&Label, &SigningKey)| {
            let public = PublicKey::of(key);
            (public, Operator { public, principal: principal.clone() })
        };
        let validators = plan.validators.iter().zip(&self.validators);
        let governance = Governance {
            version: 0,
            approvals: plan.governance_approvals,
            operators: plan.operators.iter().zip(&self.operators).map(operator).collect(),
            classes: plan.classes_by_prefix(),
            region_keys: Default::default(),
            retired_version: 0,
            accounts: [0; 32],
            validators: validators
                .map(|(v, key)| ValidatorInfo {
                    name: v.name.clone(),
                    public: PublicKey::of(key),
                    power: v.power,
                    jurisdiction: v.jurisdiction.clone(),
                    url: v.mesh_url.clone(),
                })
                .collect(),
        };
        // Whole seconds, for people; the file keeps them exactly.
        let time = Timestamp(clock::now() / NS_PER_S * NS_PER_S);
        Genesis::new(&plan.chain_id, time, plan.policy, governance)
    }
}

/// A fresh key from the operating system's randomness.
#[must_use]
pub fn draw_key() -> SigningKey {
    let mut seed = Zeroizing::new([0; 32]);
    rng::fill(&mut *seed);
    SigningKey::from_bytes(&seed)
}

/// A key as the text of its file: the seed in hex.
#[must_use]
pub fn seed_text(key: &SigningKey) -> Zeroizing<String> {
    let seed = Zeroizing::new(key.to_bytes());
    Zeroizing::new(hex::encode(*seed) + "\n")
}

/// The realm's CAs, while they are in memory.
struct Issuer<'a> {
    plan: &'a RealmPlan,
    now_ns: u64,
    validators: Authority,
    regions: Vec<Authority>,
    operators: Authority,
}

impl<'a> Issuer<'a> {
    fn create(plan: &'a RealmPlan) -> Result<Self, PkiError> {
        let now_ns = clock::now();
        let chain = plan.chain_id.to_string();
        let authority = |scope| Authority::create(scope, now_ns, plan.lifetimes.authority);
        let region = |name: &Label| {
            authority(Scope::Region { chain: chain.clone(), region: name.to_string() })
        };
        Ok(Self {
            plan,
            now_ns,
            validators: authority(Scope::Validators { chain: chain.clone() })?,
            regions: plan.regions.iter().map(|r| region(&r.name)).collect::<Result<_, _>>()?,
            operators: authority(Scope::Operators { chain: chain.clone() })?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Authority> {
        [&self.validators].into_iter().chain(&self.regions).chain([&self.operators])
    }

    fn store(&self, dir: &Path) -> Result<(), CreateError> {
        directory(dir, MODE_PRIVATE)?;
        for authority in self.all() {
            let name = match authority.scope() {
                Scope::Validators { .. } => "validator".to_owned(),
                Scope::Region { region, .. } => format!("region-{region}"),
                Scope::Operators { .. } => "operator".to_owned(),
            };
            write(&dir.join(format!("{name}.crt")), authority.certificate_pem().as_bytes())?;
            secret(&dir.join(format!("{name}.key")), &authority.key_pem())?;
        }
        Ok(())
    }

    /// Trust of those who talk to all tiers.
    fn everyone(&self) -> String {
        self.all().map(Authority::certificate_pem).collect()
    }

    /// CREATE-3: trust of those who talk to these regions only.
    fn regions<'r>(&self, names: impl Iterator<Item = &'r Label>) -> String {
        let of = |name: &Label| {
            let place = self.plan.regions.iter().position(|r| r.name == *name);
            self.regions[place.expect("check() refuses unknown regions")].certificate_pem()
        };
        names.map(of).collect()
    }

    fn process(&self, at: &ProcessFiles, role: Role, trust: &str) -> Result<(), CreateError> {
        self.credentials(&at.dir, role, trust)?;
        directory(&at.dir.join("data"), MODE_PRIVATE)
    }

    fn credentials(&self, dir: &Path, role: Role, trust: &str) -> Result<(), CreateError> {
        let id = SpiffeId::new(self.plan.chain_id.as_str(), role)?;
        let scope = id.scope();
        let authority = self.all().find(|a| *a.scope() == scope);
        let authority = authority.expect("there is a CA for every scope of the plan");
        let leaf = authority.issue(&id, self.now_ns, self.plan.lifetimes.leaf)?;
        directory(dir, MODE_PRIVATE)?;
        write(&dir.join("tls.crt"), leaf.certificate_pem.as_bytes())?;
        secret(&dir.join("tls.key"), &leaf.key_pem)?;
        write(&dir.join("trust.pem"), trust.as_bytes())
    }
}

fn disk(path: &Path) -> impl Fn(io::Error) -> CreateError + '_ {
    move |source| CreateError::Disk { path: path.to_owned(), source }
}

fn directory(path: &Path, mode: u32) -> Result<(), CreateError> {
    fs::DirBuilder::new().recursive(true).mode(MODE_PRIVATE).create(path).map_err(disk(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(disk(path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CreateError> {
    files::write(path, bytes).map_err(disk(path))
}

fn secret(path: &Path, text: &str) -> Result<(), CreateError> {
    files::write_secret(path, text.as_bytes()).map_err(disk(path))
}

/// Syncs the directories that hold directories; files were synced when they were written.
fn sync_all(dir: &Path) -> Result<(), CreateError> {
    for entry in fs::read_dir(dir).map_err(disk(dir))? {
        let path = entry.map_err(disk(dir))?.path();
        if path.is_dir() {
            sync_all(&path)?;
        }
    }
    files::sync_directory(dir).map_err(disk(dir))
}
