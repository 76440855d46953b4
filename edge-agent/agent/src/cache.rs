//! What an edge keeps across restarts: the verified state, the content, and what is active.
//!
//! The disk is one more peer that may lie: a bit may have flipped, a file may have been replaced.
//! So nothing is believed when it is read back. The state is stored as an update from the genesis
//! and goes through the same verification as one from a server; the content of an active version
//! is rebuilt and its root compared with the recorded one.
//!
//! # Invariants
//!
//! - **K1** Only verified state is written ([`Staged`] holds nothing else), in one transaction.
//! - **K2** The content of what is active stays on disk until something else is active, also if
//!   newer versions were verified since.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use redb::{Database, ReadableTable as _, TableDefinition};
use satrap_certify::{
    BundleName, Genesis, Head, Interest, Rejection, Replica, Snapshot, update::Delta,
};
use satrap_edge_core::{Active, accept::Staged};
use satrap_host::store::{self, StoreError};
use satrap_merkle::{
    BundleTree,
    codec::{Canonical as _, DecodeError, Reader, Writer},
};

/// redb's page cache; the whole content is in memory anyway.
const CACHE_BYTES: usize = 512 * 1024;

/// Key `update`: the state without content.
const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
/// Content by bundle and version.
const CONTENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("contents");
/// What the workload runs, by bundle.
const ACTIVE: TableDefinition<&str, &[u8]> = TableDefinition::new("active");
/// Versions that failed here.
const QUARANTINE: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("quarantine");

/// What was found on disk.
#[derive(Debug)]
pub struct Restored {
    /// The verified state; the genesis if there was none, or if it did not verify.
    pub replica: Replica,
    /// What the workload ran, with its content.
    pub active: BTreeMap<BundleName, (Active, BundleTree)>,
    /// See [`satrap_edge_core::Acceptor`].
    pub quarantine: BTreeSet<(BundleName, Active)>,
    /// What was refused, for the log and the status.
    pub damage: Vec<Rejection>,
}

/// The edge's database.
#[derive(Debug)]
pub struct Cache {
    database: Database,
}

fn encode_active(active: &Active) -> Vec<u8> {
    let mut w = Writer::default();
    w.u64(active.version);
    w.array(&active.root);
    w.finish()
}

fn decode_active(bytes: &[u8]) -> Result<Active, DecodeError> {
    let mut r = Reader::new(bytes);
    Ok(Active { version: r.u64()?, root: r.array()? })
}

impl Cache {
    /// Opens or creates the database in `data_dir`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the file is damaged or cannot be used.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let database = store::open(&data_dir.join("edge.redb"), CACHE_BYTES)?;
        store::write(&database, |txn| {
            txn.open_table(STATE)?;
            txn.open_table(CONTENTS)?;
            txn.open_table(ACTIVE)?;
            txn.open_table(QUARANTINE)?;
            Ok::<_, StoreError>(())
        })?;
        Ok(Self { database })
    }

    /// Reads everything back and verifies it again.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database fails. Damaged content is not an error: it is reported in
    /// [`Restored::damage`] and fetched again.
    pub fn restore(&self, genesis: &Genesis, interest: &Interest) -> Result<Restored, StoreError> {
        let mut restored = Restored {
            replica: Replica::genesis(genesis, interest.clone()),
            active: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            damage: Vec::new(),
        };
        if let Some(snapshot) = self.read_snapshot(&mut restored.damage)? {
            match Replica::restore(genesis, interest.clone(), &snapshot) {
                Ok(replica) => restored.replica = replica,
                Err(rejection) => restored.damage.push(rejection),
            }
        }
        self.read_active(&mut restored)?;
        Ok(restored)
    }

    fn read_snapshot(&self, damage: &mut Vec<Rejection>) -> Result<Option<Snapshot>, StoreError> {
        store::read(&self.database, |txn| {
            let Some(bytes) = txn.open_table(STATE)?.get("update")? else { return Ok(None) };
            let mut update = match Snapshot::from_canonical(bytes.value()) {
                Ok(Snapshot(update)) => update,
                Err(e) => {
                    damage.push(e.into());
                    return Ok(None);
                }
            };
            let table = txn.open_table(CONTENTS)?;
            for row in table.iter()? {
                let (key, bytes) = row?;
                let newest = update.contents.iter_mut().find(|delta| {
                    // The stored state names the version of each content in `base`.
                    delta.bundle.as_str() == key.value().0 && delta.base == key.value().1
                });
                match (newest, Delta::from_canonical(bytes.value())) {
                    (Some(slot), Ok(delta)) => *slot = delta,
                    (Some(_), Err(e)) => damage.push(e.into()),
                    (None, _) => {}
                }
            }
            Ok(Some(Snapshot(update)))
        })
    }

    fn read_active(&self, restored: &mut Restored) -> Result<(), StoreError> {
        store::read(&self.database, |txn| {
            let contents = txn.open_table(CONTENTS)?;
            for row in txn.open_table(ACTIVE)?.iter()? {
                let (name, bytes) = row?;
                let Ok(bundle) = BundleName::new(name.value()) else { continue };
                let found = decode_active(bytes.value()).and_then(|active| {
                    let content = contents.get((name.value(), active.version));
                    let content = content.ok().flatten().ok_or(DecodeError::Truncated)?;
                    let delta = Delta::from_canonical(content.value())?;
                    Ok((active, delta.apply(&BundleTree::default())))
                });
                match found {
                    Ok((active, tree)) if tree.root() == active.root => {
                        restored.active.insert(bundle, (active, tree));
                    }
                    Ok((active, tree)) => restored.damage.push(Rejection::Content {
                        bundle,
                        version: active.version,
                        computed: tree.root(),
                        certified: active.root,
                    }),
                    Err(e) => restored.damage.push(e.into()),
                }
            }
            for row in txn.open_table(QUARANTINE)?.iter()? {
                let (key, bytes) = row?;
                if let (Ok(bundle), Ok(active)) =
                    (BundleName::new(key.value().0), decode_active(bytes.value()))
                {
                    restored.quarantine.insert((bundle, active));
                }
            }
            Ok(())
        })
    }

    /// Makes a verified state durable (K1).
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written then, and the process must stop.
    pub fn stage(&self, staged: &Staged) -> Result<(), StoreError> {
        let Some(Snapshot(mut update)) = staged.replica.snapshot() else { return Ok(()) };
        store::write(&self.database, |txn| {
            let mut contents = txn.open_table(CONTENTS)?;
            for delta in &mut update.contents {
                let name = delta.bundle.clone();
                let version = staged.replica.heads()[&name].version;
                if staged.changed.contains(&name) {
                    let bytes = delta.to_canonical();
                    contents.insert((name.as_str(), version), bytes.as_slice())?;
                }
                // The content has its own row; only its version is kept here.
                *delta =
                    Delta { bundle: name, base: version, puts: Vec::new(), deletes: Vec::new() };
            }
            txn.open_table(STATE)?.insert("update", update.to_canonical().as_slice())?;
            Ok(())
        })
    }

    /// Records that the workload runs `head`, and forgets content nobody needs any more (K2).
    ///
    /// # Errors
    ///
    /// As [`Cache::stage`].
    pub fn activated(&self, head: &Head, replica: &Replica) -> Result<(), StoreError> {
        let name = head.name.as_str();
        let newest = replica.heads().get(&head.name).map(|head| head.version);
        store::write(&self.database, |txn| {
            let active = encode_active(&Active::of(head));
            txn.open_table(ACTIVE)?.insert(name, active.as_slice())?;
            txn.open_table(QUARANTINE)?.retain(|key, _| key.0 != name)?;
            txn.open_table(CONTENTS)?
                .retain(|key, _| key.0 != name || key.1 == head.version || Some(key.1) == newest)?;
            Ok(())
        })
    }

    /// Records that `head` failed here.
    ///
    /// # Errors
    ///
    /// As [`Cache::stage`].
    pub fn quarantined(&self, head: &Head) -> Result<(), StoreError> {
        let name = head.name.as_str();
        store::write(&self.database, |txn| {
            let mut table = txn.open_table(QUARANTINE)?;
            table.retain(|key, _| key.0 != name)?;
            let version = encode_active(&Active::of(head));
            table.insert((name, head.version), version.as_slice())?;
            Ok(())
        })
    }
}
