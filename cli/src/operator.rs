//! Operators' keys.

use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use satrap_certify::PublicKey;
use satrap_host::files;
use zeroize::Zeroizing;

use crate::{
    error::CliError,
    realm::create::{draw_key, seed_text},
};

/// 64 hex digits, with room for white space.
const KEY_FILE_BYTES_MAX: u64 = 256;

/// Reads an operator's key.
///
/// # Errors
///
/// If it is not there, not private, or not a key.
pub fn read_key(path: &Path) -> Result<SigningKey, CliError> {
    let text = files::read_secret(path, KEY_FILE_BYTES_MAX)
        .map_err(|e| CliError::file("operator key", path, &e))?;
    let mut seed = Zeroizing::new([0_u8; 32]);
    hex::decode_to_slice(text.trim_ascii(), &mut *seed).map_err(|_| {
        let path = path.display();
        CliError::usage(format!(
            "operator key {path}: expected 64 hex digits, as `satrap init` and `satrap govern \
             new-key` write them"
        ))
    })?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Reads the keys of several operators.
///
/// # Errors
///
/// As for [`read_key`].
pub fn read_keys(paths: &[PathBuf]) -> Result<Vec<SigningKey>, CliError> {
    let named = |error: CliError| {
        let message = format!("{}; --operator names the file of your key", error.message);
        CliError { message, ..error }
    };
    paths.iter().map(|path| read_key(path).map_err(named)).collect()
}

/// Makes a key file that does not exist yet, and returns the public half.
///
/// # Errors
///
/// If the file exists or cannot be written.
pub fn new_key(path: &Path) -> Result<PublicKey, CliError> {
    if path.exists() {
        let path = path.display();
        return Err(CliError::usage(format!("{path} exists; a key is never overwritten")));
    }
    let key = draw_key();
    files::write_secret(path, seed_text(&key).as_bytes())
        .map_err(|e| CliError::file("operator key", path, &e))?;
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
