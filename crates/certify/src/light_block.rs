//! Certified checkpoints as Tendermint light blocks, for light clients that are not ours.

use tendermint::{
    Signature,
    account,
    block::{self, CommitSig, Height, Round, signed_header::SignedHeader},
    // Tendermint's evidence module has the one Rust type that encodes as `LightBlock`.
    evidence::ConflictingBlock,
};
use tendermint_proto::{Protobuf, v0_37::types};

use crate::{
    checkpoint::Checkpoint,
    commit::Commit,
    genesis::Realm,
    keys::{Address, SignatureBytes},
    validators::ValidatorSet,
};

/// Header and commit in Tendermint's form: one [`CommitSig`] per validator, in set order.
///
/// # Panics
///
/// If `commit` was not made by `set`; verify it first.
#[must_use]
pub fn signed_header(
    realm: &Realm,
    checkpoint: &Checkpoint,
    commit: &Commit,
    set: &ValidatorSet,
) -> SignedHeader {
    assert_eq!(commit.signatures.len(), set.len(), "BUG: commit of another set");
    let commit_sig = |(address, signature): (&Address, &Option<SignatureBytes>)| match signature {
        None => CommitSig::BlockIdFlagAbsent,
        Some(bytes) => CommitSig::BlockIdFlagCommit {
            validator_address: account::Id::new(address.0),
            timestamp: checkpoint.time.to_tendermint(),
            signature: Signature::new(bytes).expect("64 bytes are a signature"),
        },
    };
    let commit = block::Commit {
        height: Height::try_from(checkpoint.height).expect("decoding bounds heights"),
        round: Round::try_from(commit.round).expect("decoding bounds rounds"),
        block_id: checkpoint.id(realm).to_tendermint(),
        signatures: set.addresses().iter().zip(&commit.signatures).map(commit_sig).collect(),
    };
    SignedHeader::new(checkpoint.to_header(realm), commit)
        .expect("header and commit have the same height")
}

/// `tendermint.types.LightBlock` in protobuf, with the set's proposer filled in (Go demands it).
#[must_use]
pub fn light_block(
    realm: &Realm,
    checkpoint: &Checkpoint,
    commit: &Commit,
    set: &ValidatorSet,
) -> Vec<u8> {
    let block = ConflictingBlock {
        signed_header: signed_header(realm, checkpoint, commit, set),
        validator_set: set.to_tendermint(&checkpoint.proposer),
    };
    Protobuf::<types::LightBlock>::encode_vec(block)
}
