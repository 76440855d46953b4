//! Why a proof is not believed; always the sender's fault.

use crate::codec::DecodeError;

/// Why a proof is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// No honest prover makes such a proof.
    #[error("malformed proof: {0}")]
    Shape(&'static str),
    /// Well-formed, but about another tree, or about content that was altered or withheld.
    #[error("the proof does not lead to the certified root")]
    Root,
    /// A leaf that is under the root does not have the form its readers expect.
    #[error("a proven leaf does not decode: {0}")]
    Leaf(#[from] DecodeError),
}
