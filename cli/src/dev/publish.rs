//! What `dev` publishes, and how: as an operator with everybody's keys would.

use std::{fs, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use satrap_certify::{Action, BundleName, Change, Interest, Key, Publish, SignedChange};
use satrap_merkle::BundleTree;

use super::{Dev, DevError};
use crate::{
    client::{Client, Endpoint, version_of},
    content::{self, Links},
    operator,
    realm::RealmFiles,
};

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

/// The certificates of `file`, or of the operating system.
///
/// # Errors
///
/// If there are none.
pub fn trust_bundle(file: Option<&Path>) -> Result<BundleTree, DevError> {
    let system = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let path = file.or(system).ok_or_else(|| {
        DevError::State(format!(
            "none of {} exists; name a PEM file with --trust-bundle",
            SYSTEM_BUNDLES.join(", ")
        ))
    })?;
    content::read(path, Links::Refuse).map_err(realm_error)
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
        let trust = fs::read(&files.operators[0].trust).map_err(super::file("trust file"))?;
        let cas = content::split_pem(&trust).map_err(realm_error)?;
        let (_, first) = cas.iter().next().ok_or_else(|| realm_error("empty trust file"))?;
        other.insert(&key, Arc::clone(first));
    }
    Ok(other)
}

/// Signs with the keys of all operators and submits to the validators.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    keys: Vec<SigningKey>,
}

impl Publisher {
    /// The publisher of a realm.
    ///
    /// # Errors
    ///
    /// If an operator's key cannot be read.
    pub fn new(dev: &Dev) -> Result<Self, DevError> {
        let keys = dev.files.operators.iter().map(|o| operator::read_key(&o.operator_key));
        let keys = keys.collect::<Result<_, _>>().map_err(realm_error)?;
        let validators = dev.description.validators.iter();
        let endpoint = |v: &crate::realm::description::Validator| Endpoint {
            label: format!("validator {}", v.name),
            url: v.url.clone(),
        };
        let client = Client {
            genesis: dev.genesis.clone(),
            credentials: dev.credentials.clone(),
            endpoints: validators.map(endpoint).collect(),
            description: None,
            operator_key: dev.files.operators[0].operator_key.clone(),
        };
        Ok(Self { client, keys })
    }

    /// The certified version and content of `bundle`; 0 and nothing if it does not exist.
    ///
    /// # Errors
    ///
    /// If no validator can serve it.
    pub async fn current(&self, bundle: &BundleName) -> Result<(u64, BundleTree), DevError> {
        let interest = Interest::Bundles(vec![bundle.clone()]);
        let replica = self.client.read(&interest).await.map_err(realm_error)?.replica;
        let tree = replica.content(bundle).cloned().unwrap_or_default();
        Ok((version_of(&replica, bundle), tree))
    }

    /// Publishes `to` over `from` and returns the new version.
    ///
    /// # Errors
    ///
    /// The validators' refusal, or that none answered.
    pub async fn publish(
        &self,
        bundle: &BundleName,
        version: u64,
        from: &BundleTree,
        to: &BundleTree,
    ) -> Result<u64, DevError> {
        let publish = Publish::between(bundle.clone(), version, from, to);
        let change = Change::new(self.client.genesis.realm(), Action::Publish(publish));
        let mut signed = SignedChange::unsigned(change);
        self.keys.iter().for_each(|key| signed.approve(key));
        Ok(self.client.submit(&signed).await.map_err(realm_error)?.version)
    }
}
