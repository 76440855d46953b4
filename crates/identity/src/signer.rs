//! Signs with a key that may be outside this process: validators sign votes, operators changes and
//! edges reports through one interface, [`Signer`].
//!
//! A key in a hardware security module or a key service answers late, and at times not at all. So
//! signing is asynchronous and its failure is temporary: the caller retries or goes without the
//! signature, and the process goes on. The signer is not trusted to be correct either: [`sign`]
//! verifies each signature before anything is sent with it.
//!
//! # Deliberately absent
//!
//! No retries and no timeouts, because they differ: a validator gives a vote up when its height is
//! decided, an operator waits. No judgement of what is signed: a validator asks its last-sign guard
//! first.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use ed25519_dalek::SigningKey;
use satrap_certify::{PublicKey, SignatureBytes, keys};
use satrap_runtime::files;
use zeroize::Zeroizing;

use crate::pki;

/// A key in PKCS#8 PEM, with room for comments.
const KEY_FILE_BYTES_MAX: u64 = 4 * 1024;

/// An Ed25519 key that can be used but not read.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The public half, which does not change while the process runs.
    fn public(&self) -> PublicKey;

    /// Signs `message` (RFC 8032). Dropping the future gives the signature up; the signer may still
    /// make it.
    ///
    /// # Errors
    ///
    /// [`SignerError`]; the same call may succeed later.
    async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError>;
}

/// Why there is no signature now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The signer did not answer, or refused.
    #[error("the signer is unavailable: {0}")]
    Unavailable(String),
    /// The signer answered with a signature that does not verify under its public key.
    #[error("the signer made a signature that does not verify under its key {0}")]
    Invalid(PublicKey),
}

/// Asks `signer` for a signature of `message` and verifies it.
///
/// # Errors
///
/// Those of [`Signer::sign`], and [`SignerError::Invalid`].
pub async fn sign(signer: &dyn Signer, message: &[u8]) -> Result<SignatureBytes, SignerError> {
    let signature = signer.sign(message).await?;
    let public = signer.public();
    if public.verifies(message, &signature) {
        return Ok(signature);
    }
    Err(SignerError::Invalid(public))
}

/// A key in this process's memory, which answers at once and never fails. Wiped when dropped.
pub struct SoftSigner(SigningKey);

impl SoftSigner {
    /// Signs with `key`.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        Self(key)
    }

    /// Reads a key file of mode 0600: 64 hex digits (the seed) or an Ed25519 key in PKCS#8 PEM.
    ///
    /// # Errors
    ///
    /// [`KeyFileError`]. The text of the file never appears in it.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let bytes = files::read_secret(path, KEY_FILE_BYTES_MAX)?;
        let mut seed = Zeroizing::new([0; 32]);
        match hex::decode_to_slice(bytes.trim_ascii(), &mut *seed) {
            Ok(()) => Ok(Self(SigningKey::from_bytes(&seed))),
            Err(_) => pki::signing_key(&bytes).map(Self).map_err(|_| KeyFileError::Content),
        }
    }

    /// The same, as a signer that several owners share.
    #[must_use]
    pub fn shared(self) -> Arc<dyn Signer> {
        Arc::new(self)
    }
}

/// Why a key file is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read, or users other than its owner can read it.
    #[error(transparent)]
    File(#[from] io::Error),
    /// It holds something else.
    #[error("it holds no signing key; expected 64 hex digits, or an Ed25519 key in PKCS#8 PEM")]
    Content,
}

#[async_trait]
impl Signer for SoftSigner {
    fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
        Ok(keys::sign(&self.0, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signs with a key that its public half does not belong to.
    struct Confused(SoftSigner, PublicKey);

    #[async_trait]
    impl Signer for Confused {
        fn public(&self) -> PublicKey {
            self.1
        }

        async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
            self.0.sign(message).await
        }
    }

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    #[tokio::test]
    async fn a_signature_of_another_key_is_refused() {
        let (own, other) = (PublicKey::of(&key(1)), PublicKey::of(&key(2)));
        let signer = SoftSigner::new(key(1));
        let signature = sign(&signer, b"message").await.unwrap();
        assert!(own.verifies(b"message", &signature));
        let refused = sign(&Confused(signer, other), b"message").await;
        assert_eq!(refused, Err(SignerError::Invalid(other)));
    }

    #[test]
    fn key_files_are_private_and_hold_a_key() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signing.key");
        files::write_secret(&path, hex::encode([7; 32]).as_bytes()).unwrap();
        assert_eq!(SoftSigner::read(&path).unwrap().public(), PublicKey::of(&key(7)));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(SoftSigner::read(&path), Err(KeyFileError::File(_))));
        files::write_secret(&path, b"no key").unwrap();
        assert!(matches!(SoftSigner::read(&path), Err(KeyFileError::Content)));
    }
}
