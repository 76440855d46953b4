//! Operators' keys and what they sign.
//!
//! A change travels as a file between operators who approve it one after the other. Nobody signs
//! blindly: [`Summary`] says what the very bytes do that the signature will cover.

use std::{fmt, path::Path};

use ed25519_dalek::SigningKey;
use satrap_certify::{Action, GovernanceAct, PublicKey, SignedChange, limits::CHANGE_BYTES_MAX};
use satrap_host::files;
use satrap_merkle::codec::Canonical as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    error::CliError,
    output::{count, short},
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

/// Reads a change file.
///
/// # Errors
///
/// If it is not one.
pub fn read_change(path: &Path) -> Result<SignedChange, CliError> {
    let bytes = files::read(path, CHANGE_BYTES_MAX as u64)
        .map_err(|e| CliError::file("change", path, &e))?;
    SignedChange::from_canonical(&bytes).map_err(|e| {
        let path = path.display();
        CliError::refused(format!("{path} is not a change file ({e}); `publish --out` makes them"))
    })
}

/// Writes a change file.
///
/// # Errors
///
/// If the change is too large for the validators, or the disk refuses.
pub fn write_change(path: &Path, change: &SignedChange) -> Result<(), CliError> {
    files::write(path, &encode(change)?).map_err(|e| CliError::file("change", path, &e))
}

/// A change as it is submitted.
///
/// # Errors
///
/// If it is too large for the validators.
pub fn encode(change: &SignedChange) -> Result<Vec<u8>, CliError> {
    let bytes = change.to_canonical();
    if bytes.len() > CHANGE_BYTES_MAX {
        return Err(CliError::refused(format!(
            "the change has {} bytes, at most {CHANGE_BYTES_MAX} fit a block; publish it in several \
             steps, or keep large artifacts elsewhere and publish their digests",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// What a change does, for whoever is asked to approve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Identifies the change, whoever approved it.
    pub digest: String,
    /// The realm it is for.
    pub genesis_hash: String,
    /// What it does, in words.
    pub action: String,
    /// The bundle it changes.
    pub bundle: Option<String>,
    /// Version of the bundle or of the governance state that it applies to.
    pub expect_version: u64,
    /// For a publish: the root that results.
    pub root: Option<String>,
    /// Keys of those who approved; only signatures that verify are listed.
    pub approved_by: Vec<String>,
}

impl Summary {
    /// Describes `signed`.
    #[must_use]
    pub fn of(signed: &SignedChange) -> Self {
        let bytes = signed.change.approval_bytes();
        let verifies = |a: &&satrap_certify::Approval| a.operator.verifies(&bytes, &a.signature);
        let approved = signed.approvals.iter().filter(verifies);
        let (action, bundle, expect_version, root) = match &signed.change.action {
            Action::Publish(p) => (
                format!(
                    "publish `{}` {}: {} put, {} deleted",
                    p.bundle,
                    match p.expect_version {
                        0 => "as a new bundle".to_owned(),
                        version => format!("version {version} to {}", version + 1),
                    },
                    count(p.puts.len(), "entry", "entries"),
                    p.deletes.len()
                ),
                Some(p.bundle.to_string()),
                p.expect_version,
                Some(hex::encode(p.root)),
            ),
            Action::Retire(r) => (
                format!("retire `{}` version {}, with all its entries", r.bundle, r.expect_version),
                Some(r.bundle.to_string()),
                r.expect_version,
                None,
            ),
            Action::Govern(version, act) => (describe_act(act), None, *version, None),
        };
        Self {
            digest: hex::encode(signed.change.digest()),
            genesis_hash: hex::encode(signed.change.genesis_hash),
            action,
            bundle,
            expect_version,
            root,
            approved_by: approved.map(|a| a.operator.to_string()).collect(),
        }
    }
}

fn describe_act(act: &GovernanceAct) -> String {
    match act {
        GovernanceAct::AuthorizeOperator(o) => {
            format!("authorize key {} of operator `{}`", o.public, o.principal)
        }
        GovernanceAct::RevokeOperator(key) => format!("revoke operator key {key}"),
        GovernanceAct::AuthorizeRegionKey(region, key) => {
            format!("authorize key {key} to speak for region `{region}`")
        }
        GovernanceAct::RevokeRegionKey(region, key) => {
            format!("revoke key {key} of region `{region}`")
        }
        GovernanceAct::SetValidators(validators) => {
            let one = |v: &satrap_certify::ValidatorInfo| {
                format!("{} (power {}, key {})", v.name, v.power, short(&v.public.0))
            };
            let list: Vec<_> = validators.iter().map(one).collect();
            format!("set {} validators: {}", validators.len(), list.join(", "))
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.action)?;
        if let Some(root) = &self.root {
            writeln!(f, "  resulting root  {root}")?;
        }
        writeln!(f, "  change          {}", self.digest)?;
        writeln!(f, "  realm genesis   {}", self.genesis_hash)?;
        match self.approved_by.as_slice() {
            [] => writeln!(f, "  approved by     nobody yet"),
            keys => writeln!(f, "  approved by     {}", keys.join(", ")),
        }
    }
}

/// Parses a public key on the command line.
///
/// # Errors
///
/// What was expected.
pub fn parse_public_key(text: &str) -> Result<PublicKey, String> {
    let bytes = hex::decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    match bytes.map(PublicKey) {
        Some(key) if key.is_usable() => Ok(key),
        _ => Err("expected 64 hex digits of an Ed25519 public key".into()),
    }
}

/// Adds the approvals of the keys in `paths`.
///
/// # Errors
///
/// As for [`read_key`].
pub fn approve(change: &mut SignedChange, paths: &[std::path::PathBuf]) -> Result<(), CliError> {
    for path in paths {
        change.approve(&read_key(path)?);
    }
    let limit = satrap_certify::limits::APPROVALS_MAX;
    if change.approvals.len() > limit {
        let have = change.approvals.len();
        return Err(CliError::refused(format!("{have} approvals, at most {limit} are allowed")));
    }
    Ok(())
}
