//! Publishes for `dev`, as an operator with the keys of all operators would.

use std::{fs, path::Path, sync::Arc};

use satrap_certify::{BundleName, Genesis, Key};
use satrap_identity::{mtls::Credentials, signer::Signer};
use satrap_merkle::BundleTree;
use satrap_operator::{
    Error,
    changes::split,
    client::{Base, Client, Endpoint},
    content::{self, Links},
    keys,
};
use satrap_realm::{RealmFiles, description::Validator};

use crate::error::DevError;

/// Where operating systems keep the CA bundle that OpenSSL uses.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// The key under which the realm's own CA is added.
const OWN_CA: &str = "satrap-dev-validators.pem";

fn realm_error(e: impl std::fmt::Display) -> DevError {
    DevError::Realm(e.to_string())
}

/// The content to publish over `base`, if any: into a new realm the certificates of `file`, or
/// those of the operating system, and later only what the user asks for. Starting the realm
/// again must not undo versions that an operator published.
///
/// # Errors
///
/// If there are no certificates.
pub fn wanted(file: Option<&Path>, base: &Base) -> Result<Option<BundleTree>, DevError> {
    // No bundle was retired either, so nothing was published here yet.
    let is_new = base.version == 0 && base.expected == 0;
    if file.is_none() && !is_new {
        return Ok(None);
    }
    let system = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let path = file.or(system).ok_or_else(|| {
        Error::usage(format!(
            "none of {} exists; name a PEM file with --trust-bundle",
            SYSTEM_BUNDLES.join(", ")
        ))
    })?;
    let content = content::read(path, Links::REFUSE)?;
    Ok((base.version == 0 || content.root() != base.tree.root()).then_some(content))
}

/// `tree` with the realm's own CA added, or without it if it is there: a small change either way.
///
/// # Errors
///
/// If the CA cannot be read.
pub fn with_or_without_own_ca(
    tree: &BundleTree,
    files: &RealmFiles,
) -> Result<BundleTree, DevError> {
    let key = Key::new(OWN_CA.as_bytes()).expect("a constant key");
    let mut other = tree.clone();
    if !other.remove(&key) {
        // The trust file of any process begins with the validators' CA.
        let path = &files.operators[0].trust;
        let trust = fs::read(path).map_err(|e| Error::file("trust file", path, &e))?;
        let cas = content::split_pem(&trust).map_err(realm_error)?;
        let (_, first) = cas.iter().next().ok_or_else(|| realm_error("empty trust file"))?;
        other.insert(&key, Arc::clone(first));
    }
    Ok(other)
}

/// Signs with the keys of all operators and submits to the validators.
pub struct Publisher {
    client: Client,
    signers: Vec<Arc<dyn Signer>>,
}

impl Publisher {
    /// The publisher of a realm.
    ///
    /// # Errors
    ///
    /// If an operator's key cannot be read.
    pub fn new(
        files: &RealmFiles,
        validators: &[Validator],
        genesis: Genesis,
        credentials: Credentials,
    ) -> Result<Self, DevError> {
        let signers = files.operators.iter().map(|o| keys::read_signer(&o.operator_key));
        let signers = signers.collect::<Result<_, _>>()?;
        let endpoint =
            |v: &Validator| Endpoint { label: format!("validator {}", v.name), url: v.url.clone() };
        let client = Client {
            genesis,
            credentials,
            endpoints: validators.iter().map(endpoint).collect(),
            description: None,
            operator_key: files.operators[0].operator_key.clone(),
        };
        Ok(Self { client, signers })
    }

    /// The version and content that a change of `bundle` applies to.
    ///
    /// # Errors
    ///
    /// If no validator can serve it.
    pub async fn current(&self, bundle: &BundleName) -> Result<Base, DevError> {
        Ok(self.client.base(bundle, None).await?)
    }

    /// Publishes `to` over `base` and returns the new version. Content too large for one block takes
    /// several versions.
    ///
    /// # Errors
    ///
    /// The validators' refusal, or that none answered.
    pub async fn publish(
        &self,
        bundle: &BundleName,
        base: &Base,
        to: &BundleTree,
    ) -> Result<u64, DevError> {
        let realm = self.client.genesis.realm();
        let mut changes = split::publish(realm, bundle, base.expected, (&base.tree, to))?;
        changes.approve(&self.signers).await?;
        let mut version = base.version;
        for part in changes.parts() {
            version = self.client.submit(part).await?.version;
        }
        Ok(version)
    }
}
