//! Lists the processes of a `dev` realm: what each runs, which servers it follows, and which of them lie.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use satrap_certify::{BundleName, Genesis};
use satrap_identity::{
    mtls::{CredentialFiles, Credentials, PeerRule},
    pki::{Role, SpiffeId},
};
use satrap_realm::{Description, RealmFiles, RealmPlan, description};
use satrap_runtime::{TaskGroup, child::Daemon};
use satrap_sync::client::Source;

use crate::{
    error::{DevError, io_error},
    liars::{self, Conspiracy},
    plan,
    processes::Spec,
    witness::{Server, Tier},
};

/// The status file of an edge.
pub fn status_file(edge: &description::Edge) -> PathBuf {
    edge.active_dir.with_file_name("data").join("status.json")
}

/// Every process of the realm, by the name its log file has.
pub fn specs(files: &RealmFiles, program: &Path, logs: &Path) -> Vec<Spec> {
    let spec = |verb: &'static str, process: &satrap_realm::layout::ProcessFiles| {
        let name = match (&process.region, verb) {
            (Some(region), "region") => format!("{region}-{}", process.name),
            _ => process.name.to_string(),
        };
        let daemon = Daemon {
            program: program.to_owned(),
            verb,
            config: process.config.clone(),
            log: logs.join(format!("{name}.log")),
        };
        Spec { name, daemon }
    };
    let validators = files.validators.iter().map(|p| spec("validator", p));
    let members = files.members.iter().map(|p| spec("region", p));
    let edges = files.edges.iter().map(|p| spec("edge", p));
    validators.chain(members).chain(edges).collect()
}

/// Every process that can be followed.
///
/// # Errors
///
/// If a name in the description cannot be certified.
pub fn servers(description: &Description, genesis: &Genesis) -> Result<Vec<Server>, DevError> {
    let chain = genesis.realm().chain_id();
    let server = |tier, name: String, url: &str, role| {
        let id = SpiffeId::new(chain, role).map_err(|e| DevError::Realm(e.to_string()))?;
        let source = Source { url: url.to_owned(), rule: PeerRule::Exactly(id) };
        Ok::<_, DevError>(Server { tier, name, source })
    };
    let mut servers = Vec::new();
    for v in &description.validators {
        let role = Role::Validator { name: v.name.clone() };
        servers.push(server(Tier::Validator, v.name.clone(), &v.url, role)?);
    }
    for region in &description.regions {
        for m in &region.members {
            let name = format!("{}-{}", region.name, m.name);
            let role = Role::Member { region: region.name.clone(), name: m.name.clone() };
            servers.push(server(Tier::Member, name, &m.client_url, role)?);
        }
    }
    Ok(servers)
}

/// Starts the liars of an evil realm, still honest.
///
/// # Errors
///
/// If their credentials or addresses cannot be used.
pub async fn start_liars(
    tasks: &TaskGroup,
    plan: &RealmPlan,
    files: &RealmFiles,
    genesis: &Genesis,
    bundle: &BundleName,
) -> Result<Option<Arc<Conspiracy>>, DevError> {
    let liars = plan::liars(plan);
    if liars.is_empty() {
        return Ok(None);
    }
    let conspiracy = Conspiracy::new(genesis.clone(), bundle.clone());
    for (liar, validator) in liars.iter().zip(plan.validators.iter().cycle()) {
        let member = files.members.iter().find(|member| {
            member.region.as_ref() == Some(&liar.region) && member.name == liar.member
        });
        let directory = &member.expect("a liar replaces a planned member").dir;
        let credentials = Credentials::load(CredentialFiles {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            trust: directory.join("trust.pem"),
        })
        .map_err(|e| DevError::Realm(e.to_string()))?;
        let identity = liars::Mask {
            name: format!("{}/{}", liar.region, liar.member),
            listen: liar.listen,
            credentials,
            upstream: validator.url.clone(),
        };
        liars::start(tasks, conspiracy.clone(), identity)
            .await
            .map_err(io_error("starting a liar"))?;
    }
    Ok(Some(conspiracy))
}
