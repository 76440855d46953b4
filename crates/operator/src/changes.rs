//! Changes as they travel between operators: the content of a change file.
//!
//! A file holds one signed change, or a publish in several parts (see [`split`]): changes of one
//! bundle, each of which expects the version that the one before makes. An approval signs all of them,
//! so that one file still means one outcome.
//!
//! # Invariants
//!
//! - **CHANGEFILE-1** At most one part names a key. Each part is a valid change without those after it, and an
//!   approver sees the result of all: a part must not add an entry that a later part removes.
//!
//! The file is the canonical encoding of its changes, one after the other.

pub mod review;
pub mod split;

use std::{collections::BTreeSet, io::ErrorKind, path::Path, sync::Arc};

use satrap_certify::{
    Action, Approval, Change, PublicKey, Publish, SignedChange,
    limits::{APPROVALS_MAX, CHANGE_BYTES_MAX},
};
use satrap_identity::signer::Signer;
use satrap_merkle::{
    Digest,
    codec::{Canonical as _, Reader},
};
use satrap_runtime::files;

use crate::{content::key_text, error::Error, keys, text::one_line};

/// Most parts of one publish. The largest difference of two bundles needs fewer.
pub const PARTS_MAX: usize = 32;
/// Bytes of the largest change file.
const FILE_BYTES_MAX: u64 = (PARTS_MAX * CHANGE_BYTES_MAX) as u64;

/// One change, or a publish in several parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// At least one.
    parts: Vec<SignedChange>,
}

impl From<Change> for Changes {
    fn from(change: Change) -> Self {
        Self { parts: vec![SignedChange::unsigned(change)] }
    }
}

impl Changes {
    /// In the order in which they must be decided; at least one.
    #[must_use]
    pub fn parts(&self) -> &[SignedChange] {
        &self.parts
    }

    /// The first part.
    #[must_use]
    pub fn first(&self) -> &SignedChange {
        &self.parts[0]
    }

    /// The last part, whose outcome is that of all.
    #[must_use]
    pub fn last(&self) -> &SignedChange {
        &self.parts[self.parts.len() - 1]
    }

    /// The parts that publish, which are all or none.
    pub fn publishes(&self) -> impl Iterator<Item = &Publish> {
        self.parts.iter().filter_map(|part| match &part.change.action {
            Action::Publish(publish) => Some(publish),
            Action::Retire(_) | Action::Govern(..) => None,
        })
    }

    /// CHANGEFILE-1
    fn check_keys(&self) -> Result<(), String> {
        let mut named = BTreeSet::new();
        let keys = self
            .publishes()
            .flat_map(|part| part.puts.iter().map(|(key, _)| key).chain(&part.deletes));
        for key in keys {
            if !named.insert(key) {
                let key = one_line(&key_text(key));
                return Err(format!(
                    "two of its parts name the key {key}, so a version between could hold what its \
                     outcome does not show; do not sign it"
                ));
            }
        }
        Ok(())
    }

    /// Signs every part with each of `signers`.
    ///
    /// # Errors
    ///
    /// If a signer gives no signature, or there are too many approvals then. An approval is on every
    /// part or on none.
    pub async fn approve(&mut self, signers: &[Arc<dyn Signer>]) -> Result<(), Error> {
        for signer in signers {
            let mut signatures = Vec::with_capacity(self.parts.len());
            for part in &self.parts {
                signatures.push(keys::sign(&**signer, &part.change.approval_bytes()).await?);
            }
            for (part, signature) in self.parts.iter_mut().zip(signatures) {
                part.add_approval(signer.public(), signature);
            }
        }
        let have = self.first().approvals.len();
        if have > APPROVALS_MAX {
            return Err(Error::refused(format!(
                "the change would have {have} approvals, at most {APPROVALS_MAX} are allowed; those of so \
                 many are enough for every class"
            )));
        }
        Ok(())
    }

    /// Removes the approvals of `operators`.
    pub fn drop_approvals(&mut self, operators: &[PublicKey]) {
        let stays = |approval: &Approval| !operators.contains(&approval.operator);
        self.parts.iter_mut().for_each(|part| part.approvals.retain(stays));
    }

    /// Every key whose approval is on some part, and whether it is on every part and verifies.
    #[must_use]
    pub fn approvals(&self) -> Vec<(PublicKey, bool)> {
        let all = self.parts.iter().flat_map(|part| &part.approvals);
        let mut keys: Vec<_> = all.map(|approval| approval.operator).collect();
        keys.sort();
        keys.dedup();
        let bytes: Vec<_> = self.parts.iter().map(|part| part.change.approval_bytes()).collect();
        let verifies = |key: &PublicKey| {
            self.parts.iter().zip(&bytes).all(|(part, bytes)| {
                let mut own = part.approvals.iter().filter(|a| a.operator == *key);
                own.any(|a| key.verifies(bytes, &a.signature))
            })
        };
        keys.into_iter().map(|key| (key, verifies(&key))).collect()
    }

    /// Reads a change file.
    ///
    /// # Errors
    ///
    /// [`Error`] names the file that cannot be read or is no change file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = files::read(path, FILE_BYTES_MAX);
        let bytes = bytes.map_err(|e| Error::file("change", path, &e))?;
        Self::decode(&bytes).map_err(|why| {
            let path = path.display();
            Error::refused(format!(
                "{path} is not a change file ({why}); `satrap publish`, `retire` and `govern` save one \
                 with --out"
            ))
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let mut parts = Vec::new();
        while parts.is_empty() || reader.remaining() > 0 {
            if parts.len() == PARTS_MAX {
                return Err(format!("it has more than {PARTS_MAX} parts"));
            }
            parts.push(SignedChange::decode(&mut reader).map_err(|e| e.to_string())?);
        }
        if parts.len() > 1 && !parts.array_windows().all(|[a, b]| follows(&a.change, &b.change)) {
            return Err("its parts are not one publish".to_owned());
        }
        let changes = Self { parts };
        changes.check_keys().map(|()| changes)
    }

    fn encode(&self) -> Result<Vec<u8>, Error> {
        let parts = self.parts.iter().map(encode).collect::<Result<Vec<_>, _>>();
        parts.map(|parts| parts.concat())
    }

    /// Writes a new change file.
    ///
    /// # Errors
    ///
    /// If the file exists, since it may hold approvals; if a change is too large, or the disk
    /// refuses.
    pub fn create(&self, path: &Path) -> Result<(), Error> {
        check_absent(path)?;
        self.replace(path)
    }

    /// Writes a change file in place of the one that was read.
    ///
    /// # Errors
    ///
    /// If a change is too large for the validators, or the disk refuses.
    pub fn replace(&self, path: &Path) -> Result<(), Error> {
        files::write(path, &self.encode()?).map_err(|e| Error::file("change", path, &e))
    }

    /// The realm that every part is for.
    #[must_use]
    pub fn genesis_hash(&self) -> &Digest {
        &self.first().change.genesis_hash
    }
}

/// Refuses to overwrite a file that may hold approvals.
///
/// # Errors
///
/// If there is anything at `path`.
pub fn check_absent(path: &Path) -> Result<(), Error> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::file("change", path, &e)),
        Ok(_) => {
            let path = path.display();
            Err(Error::usage(format!(
                "{path} exists, and may hold a change that others have approved; choose another \
                 name for --out, or remove it first"
            )))
        }
    }
}

/// Whether `after` applies to what `before` makes.
fn follows(before: &Change, after: &Change) -> bool {
    let (Action::Publish(a), Action::Publish(b)) = (&before.action, &after.action) else {
        return false;
    };
    let same = before.genesis_hash == after.genesis_hash && a.bundle == b.bundle;
    same && a.expect_version.checked_add(1) == Some(b.expect_version)
}

/// The canonical bytes of a change, as they are submitted.
///
/// # Errors
///
/// If it is too large for the validators.
pub fn encode(change: &SignedChange) -> Result<Vec<u8>, Error> {
    let bytes = change.to_canonical();
    if bytes.len() > CHANGE_BYTES_MAX {
        return Err(Error::refused(format!(
            "the change has {} bytes, at most {CHANGE_BYTES_MAX} fit a block; divide it into several \
             changes, as `satrap publish` does by itself",
            bytes.len()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use ed25519_dalek::SigningKey;
    use satrap_certify::{BundleName, Key, Publish, SignatureBytes};
    use satrap_identity::signer::{SignerError, SoftSigner};
    use satrap_merkle::BundleTree;

    use super::*;
    use crate::error::Kind;

    fn tree(keys: &[&str]) -> BundleTree {
        let mut tree = BundleTree::default();
        for key in keys {
            tree.insert(&Key::new(key.as_bytes()).unwrap(), Arc::from(&b"1"[..]));
        }
        tree
    }

    fn change(version: u64, from: &[&str], to: &[&str]) -> SignedChange {
        let name = BundleName::new("config/x").unwrap();
        let publish = Publish::between(name, version, &tree(from), &tree(to));
        SignedChange::unsigned(Change { genesis_hash: [7; 32], action: Action::Publish(publish) })
    }

    fn part(version: u64, key: &str) -> SignedChange {
        change(version, &[], &[key])
    }

    fn signer(n: u8) -> Arc<dyn Signer> {
        SoftSigner::new(SigningKey::from_bytes(&[n; 32])).shared()
    }

    #[tokio::test]
    async fn a_file_holds_one_change_or_one_publish_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("change");
        let mut changes = Changes { parts: vec![part(3, "a"), part(4, "b")] };
        let (alice, bob) = (signer(1), SigningKey::from_bytes(&[2; 32]));
        changes.approve(std::slice::from_ref(&alice)).await.unwrap();
        changes.create(&path).unwrap();
        assert_eq!(Changes::read(&path).unwrap(), changes);
        assert_eq!(changes.approvals(), [(alice.public(), true)]);
        let error = changes.create(&path).unwrap_err();
        assert!(error.message.contains("may hold a change that others have approved"), "{error}");

        // An approval counts only if it is on every part.
        changes.parts[1].approve(&bob);
        changes.replace(&path).unwrap();
        let found = Changes::read(&path).unwrap().approvals();
        assert!(found.contains(&(PublicKey::of(&bob), false)), "{found:?}");
        changes.drop_approvals(&[PublicKey::of(&bob)]);
        assert_eq!(changes.approvals().len(), 1);
        let others: Vec<_> =
            (2..=APPROVALS_MAX).map(|n| signer(u8::try_from(n).unwrap())).collect();
        changes.approve(&others).await.unwrap();
        let error = changes.approve(&[signer(99)]).await.unwrap_err();
        assert!(error.message.contains("would have 17 approvals, at most 16"), "{error}");

        for parts in [vec![part(3, "a"), part(5, "b")], vec![part(3, "a"), part(3, "b")]] {
            let bytes = Changes { parts }.encode().unwrap();
            assert!(Changes::decode(&bytes).unwrap_err().contains("not one publish"));
        }
        assert!(Changes::decode(&[]).is_err());
        let many = vec![part(0, "a"); PARTS_MAX + 1];
        let many = Changes { parts: many }.encode().unwrap();
        assert!(Changes::decode(&many).unwrap_err().contains("more than 32 parts"));
    }

    /// The first part is a valid change by itself, and the result of all parts hides it.
    #[test]
    fn no_part_takes_back_what_one_before_it_did() {
        let dir = tempfile::tempdir().unwrap();
        let evil = [change(3, &[], &["good", "evil"]), change(4, &["good", "evil"], &["good"])];
        let gone = [change(3, &["a", "b"], &["b"]), change(4, &["b"], &["a", "b"])];
        for (n, (parts, key)) in [(evil, "evil"), (gone, "a")].into_iter().enumerate() {
            let path = dir.path().join(n.to_string());
            Changes { parts: parts.into() }.create(&path).unwrap();
            let error = Changes::read(&path).unwrap_err();
            let expected = format!("two of its parts name the key {key}, ");
            assert!(error.message.contains(&expected), "{error}");
        }
    }

    /// Signs the first `left` times, and is away after that, as a security module can be.
    struct Failing {
        inner: Arc<dyn Signer>,
        left: AtomicUsize,
    }

    #[async_trait]
    impl Signer for Failing {
        fn public(&self) -> PublicKey {
            self.inner.public()
        }

        async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
            match self.left.fetch_sub(1, Ordering::Relaxed) {
                1.. => self.inner.sign(message).await,
                0 => Err(SignerError::Unavailable("no answer".into())),
            }
        }
    }

    /// A signer that fails in the middle leaves a change without its approval, not with half of it.
    #[tokio::test]
    async fn an_approval_is_on_every_part_or_on_none() {
        let mut changes = Changes { parts: vec![part(3, "a"), part(4, "b")] };
        let failing = Arc::new(Failing { inner: signer(1), left: AtomicUsize::new(1) });
        let signers: [Arc<dyn Signer>; 1] = [failing.clone()];
        let error = changes.approve(&signers).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.message.ends_with("so give the same command again"), "{error}");
        assert_eq!(changes.approvals(), []);
        failing.left.store(2, Ordering::Relaxed);
        changes.approve(&signers).await.unwrap();
        assert_eq!(changes.approvals(), [(failing.public(), true)]);
    }
}
