//! The statement validators sign: a Tendermint block header, in compact form.
//!
//! A full header repeats what every verifier already knows (chain id, versions, empty hashes).
//! The compact form carries the rest, and [`Checkpoint::to_header`] rebuilds the exact Tendermint
//! header, so the signatures are those of a real Tendermint commit and any Tendermint light client
//! accepts the block. `consensus_hash` is the genesis hash: a certificate binds the whole genesis.

use satrap_merkle::{
    Digest,
    codec::{Canonical, DecodeError, Reader, Writer},
};
use sha2::{Digest as _, Sha256};
use tendermint::{
    AppHash, Hash, account,
    block::{self, Height, parts},
};

use crate::{genesis::Realm, keys::Address, timestamp::Timestamp};

/// Tendermint's block protocol version; light clients check it.
const BLOCK_PROTOCOL: u64 = 11;
/// Version of what `app_hash` means.
const APP_VERSION: u64 = 1;

/// The roots that `app_hash` commits to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitments {
    /// RFC 6962 root over the heads of all bundles, sorted by name.
    pub directory_root: Digest,
    /// Number of heads.
    pub directory_size: u64,
    /// RFC 6962 root over every directory ever certified.
    pub history_root: Digest,
    /// Number of directories ever certified.
    pub history_size: u64,
    /// Root of the governance state.
    pub governance_root: Digest,
}

impl Commitments {
    /// The `app_hash` of the Tendermint header.
    #[must_use]
    pub fn app_hash(&self) -> Digest {
        let mut w = Writer::tagged("satrap/app/v1");
        self.encode(&mut w);
        Sha256::digest(w.finish()).into()
    }
}

/// Names one block: its header and its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    /// Tendermint header hash.
    pub hash: Digest,
    /// Payload root; also Tendermint's part-set hash (total 1).
    pub data_hash: Digest,
}

impl BlockId {
    /// As Tendermint's type.
    #[must_use]
    pub fn to_tendermint(&self) -> block::Id {
        let part_set_header = parts::Header::new(1, Hash::Sha256(self.data_hash))
            .expect("a part set of one part with a hash is valid");
        block::Id { hash: Hash::Sha256(self.hash), part_set_header }
    }
}

/// A block header with its commitments, without what every verifier knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// 1 for the first block.
    pub height: u64,
    /// Proposer's clock, checked by every validator (PBTS).
    pub time: Timestamp,
    /// The block before; `None` at height 1.
    pub last_block: Option<BlockId>,
    /// Root of the payload.
    pub data_hash: Digest,
    /// The set that signs this block.
    pub validators_hash: Digest,
    /// The set that signs the next one.
    pub next_validators_hash: Digest,
    /// The validator that proposed the block.
    pub proposer: Address,
    /// The state after this block.
    pub commitments: Commitments,
}

impl Checkpoint {
    /// The Tendermint header that the validators signed.
    #[must_use]
    pub fn to_header(&self, realm: &Realm) -> block::Header {
        let genesis_hash = *realm.genesis_hash();
        block::Header {
            version: block::header::Version { block: BLOCK_PROTOCOL, app: APP_VERSION },
            chain_id: realm.tendermint_chain_id().clone(),
            height: Height::try_from(self.height).expect("decoding bounds heights below 2^63"),
            time: self.time.to_tendermint(),
            last_block_id: self.last_block.map(|id| id.to_tendermint()),
            last_commit_hash: None,
            data_hash: Some(Hash::Sha256(self.data_hash)),
            validators_hash: Hash::Sha256(self.validators_hash),
            next_validators_hash: Hash::Sha256(self.next_validators_hash),
            consensus_hash: Hash::Sha256(genesis_hash),
            app_hash: AppHash::try_from(self.commitments.app_hash().to_vec())
                .expect("any bytes are an app hash"),
            last_results_hash: None,
            evidence_hash: None,
            proposer_address: account::Id::new(self.proposer.0),
        }
    }

    /// Names this block in `realm`.
    #[must_use]
    pub fn id(&self, realm: &Realm) -> BlockId {
        let hash = self.to_header(realm).hash();
        let hash = hash.as_bytes().try_into().expect("SHA-256 has 32 bytes");
        BlockId { hash, data_hash: self.data_hash }
    }
}

impl Canonical for Commitments {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.directory_root);
        w.u64(self.directory_size);
        w.array(&self.history_root);
        w.u64(self.history_size);
        w.array(&self.governance_root);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            directory_root: r.array()?,
            directory_size: r.u64()?,
            history_root: r.array()?,
            history_size: r.u64()?,
            governance_root: r.array()?,
        })
    }
}

impl Canonical for BlockId {
    fn encode(&self, w: &mut Writer) {
        w.array(&self.hash);
        w.array(&self.data_hash);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { hash: r.array()?, data_hash: r.array()? })
    }
}

impl Canonical for Checkpoint {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.height);
        self.time.encode(w);
        w.option(self.last_block.as_ref());
        w.array(&self.data_hash);
        w.array(&self.validators_hash);
        w.array(&self.next_validators_hash);
        self.proposer.encode(w);
        self.commitments.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let height = r.u64()?;
        if !(1..=i64::MAX as u64).contains(&height) {
            return Err(DecodeError::Invalid("height: must be 1 to 2^63 - 1"));
        }
        let checkpoint = Self {
            height,
            time: Timestamp::decode(r)?,
            last_block: r.option()?,
            data_hash: r.array()?,
            validators_hash: r.array()?,
            next_validators_hash: r.array()?,
            proposer: Address::decode(r)?,
            commitments: Commitments::decode(r)?,
        };
        if checkpoint.last_block.is_none() != (height == 1) {
            return Err(DecodeError::Invalid("last block: absent at height 1 only"));
        }
        Ok(checkpoint)
    }
}
