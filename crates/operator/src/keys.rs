//! Reads and creates the key files of operators, and signs changes with them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use satrap_certify::{PublicKey, SignatureBytes, SignedChange};
use satrap_identity::signer::{self, KeyFileError, Signer, SoftSigner};
use satrap_realm::create::{draw_key, seed_text};
use satrap_runtime::files;

use crate::error::Error;

/// The signer whose key is in a file.
///
/// # Errors
///
/// If it is not there, not private, or not a key.
pub fn read_signer(path: &Path) -> Result<Arc<dyn Signer>, Error> {
    SoftSigner::read(path).map(SoftSigner::shared).map_err(|error| match error {
        KeyFileError::File(error) => Error::file("operator key", path, &error),
        KeyFileError::Content => Error::usage(format!(
            "operator key {}: {error}; `satrap init` and `satrap govern new-key` write such files",
            path.display()
        )),
    })
}

/// The signers of several operators.
///
/// # Errors
///
/// As for [`read_signer`].
pub fn read_signers(paths: &[PathBuf]) -> Result<Vec<Arc<dyn Signer>>, Error> {
    let named = |error: Error| {
        let message = format!("{}; --operator names the file of your key", error.message);
        Error { message, ..error }
    };
    paths.iter().map(|path| read_signer(path).map_err(named)).collect()
}

/// A verified signature of `message`.
///
/// # Errors
///
/// If the signer does not answer; nothing was changed then, and the same command may
/// succeed later.
pub async fn sign(signer: &dyn Signer, message: &[u8]) -> Result<SignatureBytes, Error> {
    let signed = signer::sign(signer, message).await;
    signed.map_err(|error| {
        let key = signer.public();
        Error::unavailable(format!(
            "operator key {key}: {error}; nothing was changed, so give the same command again"
        ))
    })
}

/// Adds the approval of the operator who holds the key of `signer`.
///
/// # Errors
///
/// As for [`sign`].
pub async fn approve(change: &mut SignedChange, signer: &dyn Signer) -> Result<(), Error> {
    let signature = sign(signer, &change.change.approval_bytes()).await?;
    change.add_approval(signer.public(), signature);
    Ok(())
}

/// Makes a key file that does not exist yet, and returns the public half.
///
/// # Errors
///
/// If the file exists or cannot be written.
pub fn new_key(path: &Path) -> Result<PublicKey, Error> {
    if path.exists() {
        let path = path.display();
        return Err(Error::usage(format!(
            "{path} exists; a key is never overwritten: choose another name"
        )));
    }
    let key = draw_key();
    files::write_secret(path, seed_text(&key).as_bytes())
        .map_err(|e| Error::file("operator key", path, &e))?;
    Ok(PublicKey::of(&key))
}

/// Parses a public key on the command line.
///
/// # Errors
///
/// The expected form.
pub fn parse_public_key(text: &str) -> Result<PublicKey, String> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    match bytes.map(PublicKey) {
        Some(key) if key.is_usable() => Ok(key),
        _ => Err("expected 64 hex digits of an Ed25519 public key".into()),
    }
}
