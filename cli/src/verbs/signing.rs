//! Arguments and results that the commands which sign a change share.

use std::{fmt, path::PathBuf, sync::Arc};

use satrap_certify::Governance;
use satrap_identity::signer::Signer;
use satrap_operator::{
    Error,
    changes::review::Review,
    client::{Connection, Patience},
    text::one_line,
};
use serde::Serialize;

/// The keys that sign a change, and its destination: a file or the validators.
#[derive(clap::Args, Debug)]
pub struct Signing {
    /// Sign with this key (repeatable); without it, with the client's own
    #[arg(long = "operator", value_name = "FILE")]
    pub operators: Vec<PathBuf>,
    /// Save the signed change for others to approve, and do not submit it
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Bound on the wait for a decision.
    #[command(flatten)]
    pub patience: Patience,
    #[command(flatten)]
    /// The realm.
    pub connection: Connection,
}

/// A change that was saved to a file.
#[derive(Serialize)]
pub struct Saved {
    /// Path of the file.
    pub file: PathBuf,
    /// Its effect, and who approved it.
    pub change: Review,
}

/// V3: refuses keys whose approvals would spoil a change.
///
/// # Errors
///
/// Names the first key that no operator holds.
pub fn check_keys(signers: &[Arc<dyn Signer>], governance: &Governance) -> Result<(), Error> {
    let mut publics = signers.iter().map(|signer| signer.public());
    let unknown = publics.find(|key| !governance.operators.contains_key(key));
    unknown.map_or(Ok(()), |key| {
        Err(Error::rule(
            "V3",
            format!(
                "no operator of this realm holds key {key}, and an approval by it would spoil the \
                 change; `satrap govern show` lists the keys that may approve"
            ),
        ))
    })
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = one_line(&self.file.display().to_string());
        write!(f, "{}", self.change)?;
        let next = match self.change.is_approved() {
            true => format!("`satrap submit {file}`"),
            false => format!(
                "`satrap approve {file} --operator KEY` by others, then `satrap submit {file}`"
            ),
        };
        writeln!(f, "saved to {file}; next: {next}")
    }
}
