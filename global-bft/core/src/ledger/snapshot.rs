//! The ledger's own snapshot on disk.
//!
//! It is not a message: it is read back only by the validator that wrote it, which believes its
//! disk as little as a peer. A restored ledger must be the one that the last header certifies.

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    BlockId, Checkpoint, Commitments, Genesis, Governance, Head,
    limits::{HEADS_MAX, HISTORY_LEAVES_MAX},
    replica::directory_of,
    update::Delta,
};
use satrap_merkle::{
    BundleTree,
    codec::{Canonical, DecodeError, Reader, Writer, ascending},
    history::History,
};

use super::Ledger;
use crate::{accounts::Accounts, state::State};

const TAG: &str = "satrap/ledger/v2";

impl Ledger {
    /// Encodes everything but the genesis.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut w = Writer::tagged(TAG);
        w.option(self.last.as_ref().map(|(checkpoint, _)| checkpoint));
        // The id covers every field of the header, so that damage to any of them shows.
        w.option(self.last.as_ref().map(|(_, id)| id));
        self.state.governance.encode(&mut w);
        let heads: Vec<_> = self.state.heads.values().cloned().collect();
        w.list(&heads);
        for head in &heads {
            Delta::whole(head.name.clone(), &self.state.contents[&head.name]).encode(&mut w);
        }
        self.state.accounts.encode(&mut w);
        w.list(self.history.leaves_from(0));
        w.finish()
    }

    /// Decodes a snapshot.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if it is damaged.
    pub fn restore(genesis: &Genesis, snapshot: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(snapshot);
        if r.bytes(TAG.len())? != TAG.as_bytes() {
            return Err(DecodeError::Invalid("ledger snapshot format"));
        }
        let last: Option<Checkpoint> = r.option()?;
        let last_id: Option<BlockId> = r.option()?;
        let governance = Governance::decode(&mut r)?;
        let heads: Vec<Head> = r.list(HEADS_MAX)?;
        ascending(heads.iter().map(|head| &head.name))?;
        let mut contents = BTreeMap::new();
        for head in &heads {
            let tree = Delta::decode(&mut r)?.apply(&BundleTree::default());
            if !head.describes(&tree) {
                return Err(DecodeError::Invalid("bundle content in the ledger snapshot"));
            }
            contents.insert(head.name.clone(), tree);
        }
        let mut accounts = Accounts::decode(&mut r)?;
        accounts.recount(&governance, heads.iter())?;
        let mut history = History::default();
        r.list(HISTORY_LEAVES_MAX)?.into_iter().for_each(|leaf| history.append(leaf));
        if r.remaining() != 0 {
            return Err(DecodeError::Trailing(r.remaining()));
        }
        let mut ledger = Self::genesis(genesis);
        ledger.validators = governance
            .validator_set()
            .map_err(|_| DecodeError::Invalid("validators in the ledger snapshot"))?;
        ledger.state = State {
            governance: Arc::new(governance),
            heads: heads.into_iter().map(|head| (head.name.clone(), head)).collect(),
            contents,
            accounts,
        };
        ledger.history = Arc::new(history);
        ledger.last = last.map(|checkpoint| {
            let id = checkpoint.id(ledger.realm());
            (checkpoint, id)
        });
        if ledger.last.as_ref().map(|(_, id)| *id) != last_id {
            return Err(DecodeError::Invalid("ledger snapshot: the last header is damaged"));
        }
        ledger.check_snapshot()?;
        Ok(ledger)
    }

    /// The restored state must be the one the last header commits to.
    fn check_snapshot(&self) -> Result<(), DecodeError> {
        let Some((checkpoint, _)) = &self.last else { return Ok(()) };
        let directory = directory_of(self.state.heads.values());
        let restored = Commitments {
            directory_root: directory.root(),
            directory_size: directory.size(),
            history_root: self.history.root(),
            history_size: self.history.size(),
            governance_root: self.state.governance.root(),
        };
        let accounts = self.state.accounts.digest();
        if restored != checkpoint.commitments || self.state.governance.accounts != accounts {
            return Err(DecodeError::Invalid(
                "ledger snapshot: it is not what its header certifies",
            ));
        }
        Ok(())
    }
}
