//! The database of one validator: decided blocks, the log of the height in progress, evidence.
//!
//! One redb file. A decision, the end of its height's log and the snapshot are one transaction, so
//! a crash finds either a height in progress with its whole log, or a decided height and no log.
//!
//! # Invariants
//!
//! - **BLOCKS-1** [`Storage::log`] returns once the entries are on disk; nothing that follows from them
//!   leaves before.
//! - **BLOCKS-2** Blocks are dense: heights 1 to the last decided one are held with their commits.
//! - **BLOCKS-3** A file belongs to one realm; opening it for another is refused.

use std::{path::Path, sync::Arc};

use redb::{Database, ReadableTable as _, TableDefinition, WriteTransaction};
use satrap_certify::{Block, Commit, Digest, Realm, ValidatorSet};
use satrap_merkle::codec::{Canonical as _, DecodeError};
use satrap_runtime::{
    Fault, Unusable,
    store::{StoreError, read, write},
};

use crate::limits::{EVIDENCE_SHOWN_MAX, STORE_CACHE_BYTES};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
const COMMITS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("commits");
const SETS: TableDefinition<'_, [u8; 32], &[u8]> = TableDefinition::new("sets");
const EVIDENCE: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("evidence");

const REALM: &str = "realm";
const LEDGER: &str = "ledger";
const REPLICA: &str = "replica";

/// Why the store cannot go on. Always fatal.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The engine failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record that was read does not decode.
    #[error(
        "{what} in `validator.redb` is damaged ({why}); move that file away and start again, and \
         the blocks come from the other validators"
    )]
    Damaged {
        /// Which record.
        what: &'static str,
        /// How it is damaged.
        why: DecodeError,
    },
    /// The file belongs to another realm.
    #[error(
        "the database belongs to the realm with genesis {held}, the configuration names {asked}"
    )]
    Realm {
        /// The realm of the file.
        held: String,
        /// The realm of the configuration.
        asked: String,
    },
}

impl DiskError {
    /// The same, as a fault of the setting `data_dir`, in which the file at `path` is.
    #[must_use]
    pub fn unusable(self, path: &Path) -> Unusable {
        match self {
            Self::Store(error) => error.unusable("data_dir", path),
            Self::Damaged { .. } => {
                let remedy = "keep `last-sign`, which keeps this validator from signing twice";
                Unusable::new("data_dir", Fault::Machine, self, remedy)
            }
            Self::Realm { .. } => {
                let why = format!("{}: {self}", path.display());
                let remedy = "set `data_dir` and `genesis` to those of one realm";
                Unusable::new("data_dir", Fault::Setting, why, remedy)
            }
        }
    }
}

/// Two messages of one validator that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `duplicate-vote` or `duplicate-proposal`.
    pub kind: ConflictKind,
    /// The validator that signed both.
    pub offender: satrap_certify::Address,
    /// One signed message, canonical.
    pub first: Vec<u8>,
    /// The other.
    pub second: Vec<u8>,
}

/// The kind of message that was signed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// A prevote or precommit.
    Vote,
    /// A proposal.
    Proposal,
}

impl ConflictKind {
    /// As shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vote => "duplicate-vote",
            Self::Proposal => "duplicate-proposal",
        }
    }
}

/// A ledger and the replica of the same height.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `Ledger::snapshot`.
    pub ledger: Vec<u8>,
    /// `Replica::snapshot`, canonical.
    pub replica: Vec<u8>,
}

/// Everything that becomes durable with a decision.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The block.
    pub block: Block,
    /// The signatures that certified it.
    pub commit: Commit,
    /// The set that signed it.
    pub signers: ValidatorSet,
    /// Evidence that came to light during the height.
    pub conflicts: Vec<Conflict>,
    /// Every few heights.
    pub snapshot: Option<Snapshot>,
}

/// The durable side of the engine. The real one is [`Store`]; tests wrap it to crash between any
/// two of its operations.
pub trait Storage: Send {
    /// Appends to the log of the height in progress (BLOCKS-1).
    ///
    /// # Errors
    ///
    /// Fatal; whether the entries are on disk is then unknown.
    fn log(&mut self, entries: &[Vec<u8>]) -> Result<(), DiskError>;

    /// The log of the height in progress, in order.
    ///
    /// # Errors
    ///
    /// Fatal.
    fn logged(&self) -> Result<Vec<Vec<u8>>, DiskError>;

    /// Records a decision and ends the log, in one transaction.
    ///
    /// # Errors
    ///
    /// Fatal.
    fn decide(&mut self, decision: &Decision) -> Result<(), DiskError>;

    /// A decided block.
    ///
    /// # Errors
    ///
    /// Fatal.
    fn decided(&self, height: u64) -> Result<Option<(Block, Commit)>, DiskError>;

    /// The newest snapshot.
    ///
    /// # Errors
    ///
    /// Fatal.
    fn snapshot(&self) -> Result<Option<Snapshot>, DiskError>;
}

/// The database of one validator. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Database>);

macro_rules! engine {
    ($result:expr) => {
        $result.map_err(StoreError::from)?
    };
}

impl Store {
    /// Opens or creates the database at `path` for `realm`.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn open(path: &Path, realm: &Realm) -> Result<Self, DiskError> {
        Self::adopt(Arc::new(satrap_runtime::store::open(path, STORE_CACHE_BYTES)?), realm)
    }

    /// Uses an open database for `realm` (BLOCKS-3).
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn adopt(database: Arc<Database>, realm: &Realm) -> Result<Self, DiskError> {
        let genesis_hash = realm.genesis_hash();
        write(&database, |txn| {
            for table in [LOG, BLOCKS, COMMITS] {
                engine!(txn.open_table(table));
            }
            engine!(txn.open_table(SETS));
            engine!(txn.open_table(EVIDENCE));
            let mut meta = engine!(txn.open_table(META));
            let held = engine!(meta.get(REALM)).map(|held| held.value().to_vec());
            match held {
                Some(held) if held != genesis_hash => {
                    let (held, asked) = (hex::encode(held), hex::encode(genesis_hash));
                    return Err(DiskError::Realm { held, asked });
                }
                Some(_) => {}
                None => drop(engine!(meta.insert(REALM, genesis_hash.as_slice()))),
            }
            Ok(())
        })?;
        Ok(Self(database))
    }

    fn get(
        &self,
        table: TableDefinition<'_, u64, &[u8]>,
        key: u64,
    ) -> Result<Option<Vec<u8>>, DiskError> {
        read(&self.0, |txn| {
            let table = engine!(txn.open_table(table));
            Ok(engine!(table.get(key)).map(|value| value.value().to_vec()))
        })
    }

    /// The set with hash `hash`, if it ever signed a height here.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn set(&self, hash: &Digest) -> Result<Option<ValidatorSet>, DiskError> {
        let bytes = read(&self.0, |txn| {
            let table = engine!(txn.open_table(SETS));
            Ok::<_, DiskError>(engine!(table.get(hash)).map(|value| value.value().to_vec()))
        })?;
        let damaged = |why| DiskError::Damaged { what: "a validator set", why };
        bytes.map(|b| ValidatorSet::from_canonical(&b).map_err(damaged)).transpose()
    }

    /// The newest evidence, newest first.
    ///
    /// # Errors
    ///
    /// [`DiskError`].
    pub fn evidence(&self) -> Result<Vec<(u64, Conflict)>, DiskError> {
        read(&self.0, |txn| {
            let table = engine!(txn.open_table(EVIDENCE));
            let mut found = Vec::new();
            for entry in engine!(table.iter()).rev().take(EVIDENCE_SHOWN_MAX) {
                let (key, value) = engine!(entry);
                let damaged = |why| DiskError::Damaged { what: "evidence", why };
                let conflict = Conflict::from_canonical(value.value()).map_err(damaged)?;
                found.push((key.value().0, conflict));
            }
            Ok(found)
        })
    }
}

impl Storage for Store {
    fn log(&mut self, entries: &[Vec<u8>]) -> Result<(), DiskError> {
        write(&self.0, |txn| {
            let mut log = engine!(txn.open_table(LOG));
            let next = engine!(log.last()).map_or(0, |(last, _)| last.value() + 1);
            for (n, entry) in (next..).zip(entries) {
                engine!(log.insert(n, entry.as_slice()));
            }
            Ok(())
        })
    }

    fn logged(&self) -> Result<Vec<Vec<u8>>, DiskError> {
        read(&self.0, |txn| {
            let log = engine!(txn.open_table(LOG));
            let mut entries = Vec::new();
            for entry in engine!(log.iter()) {
                entries.push(engine!(entry).1.value().to_vec());
            }
            Ok(entries)
        })
    }

    fn decide(&mut self, decision: &Decision) -> Result<(), DiskError> {
        write(&self.0, |txn| write_decision(txn, decision))
    }

    fn decided(&self, height: u64) -> Result<Option<(Block, Commit)>, DiskError> {
        let (block, commit) = (self.get(BLOCKS, height)?, self.get(COMMITS, height)?);
        let Some((block, commit)) = block.zip(commit) else { return Ok(None) };
        let damaged = |what| move |why| DiskError::Damaged { what, why };
        let block = Block::from_canonical(&block).map_err(damaged("a block"))?;
        let commit = Commit::from_canonical(&commit).map_err(damaged("a commit"))?;
        Ok(Some((block, commit)))
    }

    fn snapshot(&self) -> Result<Option<Snapshot>, DiskError> {
        read(&self.0, |txn| {
            let meta = engine!(txn.open_table(META));
            let ledger = engine!(meta.get(LEDGER)).map(|v| v.value().to_vec());
            let replica = engine!(meta.get(REPLICA)).map(|v| v.value().to_vec());
            Ok(ledger.zip(replica).map(|(ledger, replica)| Snapshot { ledger, replica }))
        })
    }
}

fn write_decision(txn: &WriteTransaction, decision: &Decision) -> Result<(), DiskError> {
    let height = decision.block.checkpoint.height;
    let block = decision.block.to_canonical();
    engine!(engine!(txn.open_table(BLOCKS)).insert(height, block.as_slice()));
    let commit = decision.commit.to_canonical();
    engine!(engine!(txn.open_table(COMMITS)).insert(height, commit.as_slice()));
    let mut sets = engine!(txn.open_table(SETS));
    let hash = decision.signers.hash();
    if engine!(sets.get(hash)).is_none() {
        engine!(sets.insert(hash, decision.signers.to_canonical().as_slice()));
    }
    let mut evidence = engine!(txn.open_table(EVIDENCE));
    for (n, conflict) in (0_u32..).zip(&decision.conflicts) {
        engine!(evidence.insert((height, n), conflict.to_canonical().as_slice()));
    }
    if let Some(snapshot) = &decision.snapshot {
        let mut meta = engine!(txn.open_table(META));
        engine!(meta.insert(LEDGER, snapshot.ledger.as_slice()));
        engine!(meta.insert(REPLICA, snapshot.replica.as_slice()));
    }
    engine!(engine!(txn.open_table(LOG)).retain(|_, _| false));
    Ok(())
}

impl satrap_merkle::codec::Canonical for Conflict {
    fn encode(&self, w: &mut satrap_merkle::codec::Writer) {
        w.u8(match self.kind {
            ConflictKind::Vote => 0,
            ConflictKind::Proposal => 1,
        });
        self.offender.encode(w);
        w.bytes(&self.first);
        w.bytes(&self.second);
    }

    fn decode(r: &mut satrap_merkle::codec::Reader<'_>) -> Result<Self, DecodeError> {
        /// A signed vote or proposal head is a few hundred bytes.
        const MESSAGE_BYTES_MAX: usize = 1_024;
        let kind = match r.u8()? {
            0 => ConflictKind::Vote,
            1 => ConflictKind::Proposal,
            _ => return Err(DecodeError::Invalid("evidence kind")),
        };
        let offender = satrap_certify::Address::decode(r)?;
        let mut message = || r.bytes(MESSAGE_BYTES_MAX).map(<[u8]>::to_vec);
        let (first, second) = (message()?, message()?);
        Ok(Self { kind, offender, first, second })
    }
}
