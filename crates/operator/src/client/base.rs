//! Reads the version and content that a change will apply to, verified here (CLIENT-1).

use satrap_certify::{BundleName, Interest, Timestamp};
use satrap_merkle::BundleTree;
use satrap_runtime::clock;

use super::{Client, version_of};
use crate::{error::Error, text::span};

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

impl Client {
    /// Reads what a change of `bundle` applies to.
    ///
    /// # Errors
    ///
    /// If no server can serve it, or it is not at the version `expect`ed (V4).
    pub async fn base(&self, bundle: &BundleName, expect: Option<u64>) -> Result<Base, Error> {
        let read = self.read(&Interest::Bundles(vec![bundle.clone()])).await?;
        let version = version_of(&read.replica, bundle);
        if let Some(expected) = expect.filter(|expected| *expected != version) {
            let (height, from) = (read.replica.height(), read.from.label);
            let age = Timestamp(clock::now()).since(read.replica.certified_time());
            return Err(Error::rule(
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
            0 => self.governance().await?.retired_version,
            present => present,
        };
        Ok(Base { version, expected, tree })
    }
}
