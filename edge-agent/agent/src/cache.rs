//! The state that an edge keeps across restarts: its memory, and content.
//!
//! The disk may lie like any other peer: a bit may have flipped, a file may have been replaced. So
//! nothing is believed when it is read back. The memory ([`Kept`]) is one sealed
//! row; without it the edge does not start, because it could not tell old versions from new ones.
//! Content is compared with the root of its version; without it the edge starts and fetches it.
//!
//! # Invariants
//!
//! - **KEPT-1** Only verified state is written ([`Staged`] holds nothing else), content and [`Kept`] in
//!   one transaction. Content that is read back is verified, or not used.
//! - **KEPT-2** The content of what is active stays on disk until something else is active, also if
//!   newer versions were verified since; and that of the newest complete state until it is activated
//!   or a later one is complete, also if parts of that were stored since.
//! - **KEPT-5** A database that exists is never treated as none: one without a readable [`Kept`], or of
//!   another realm, is an error that says what to do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableTable as _, Table, TableDefinition};
use satrap_certify::{BundleName, Digest, Genesis, Rejection, update::Delta};
use satrap_edge_core::{Active, Candidate, Kept, accept::Staged, kept::Versions};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_runtime::store::{self, StoreError};

/// The database's file in the data directory.
pub const FILE: &str = "edge.redb";
/// redb's page cache; the whole content is in memory anyway.
const CACHE_BYTES: usize = 512 * 1024;

/// One row: [`Kept`], sealed.
const KEPT: TableDefinition<&str, &[u8]> = TableDefinition::new("kept");
/// The key of that row.
const KEPT_KEY: &str = "kept";
/// Content by bundle and version.
const CONTENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("contents");

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The database exists and cannot be read, so it is not treated as none (KEPT-5).
    #[error(
        "{path} is damaged ({what}): this edge no longer knows which versions it verified, and \
         without that a server could give it older ones; put a certificate of today, from `satrap \
         get --certificate`, where `trusted_checkpoint` names it, then move {path} away and start \
         again"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// The fault in it.
        what: String,
    },
    /// The database is of another realm, and is not treated as none (KEPT-5).
    #[error(
        "{path} belongs to the realm with genesis {}, the configured genesis is {}; use another \
         `data_dir`, or the genesis file of that realm",
        hex::encode(found),
        hex::encode(expected)
    )]
    Realm {
        /// The database file.
        path: PathBuf,
        /// The realm in the file, by the hash of its genesis.
        found: Digest,
        /// The realm of this edge.
        expected: Digest,
    },
    /// The disk failed; going on could lose what was reported as running.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Content found on disk.
#[derive(Debug, Default)]
pub struct Contents {
    /// Content of the highest verified versions.
    pub newest: BTreeMap<BundleName, BundleTree>,
    /// Content of the versions that the workload runs.
    pub active: BTreeMap<BundleName, BundleTree>,
    /// Content of the versions whose activation a crash prevented.
    pub ready: BTreeMap<BundleName, BundleTree>,
    /// Why damaged content was refused, for the log.
    pub damage: Vec<Rejection>,
}

/// The edge's database, and the newest value of what must not be forgotten.
#[derive(Debug)]
pub struct Cache {
    database: Database,
    kept: Kept,
}

impl Cache {
    /// Opens the database in `data_dir`, or creates it for a realm of `genesis`.
    ///
    /// # Errors
    ///
    /// [`CacheError`] says what to do (KEPT-5).
    pub fn open(data_dir: &Path, genesis: &Genesis) -> Result<Self, CacheError> {
        let path = data_dir.join(FILE);
        let database = store::open(&path, CACHE_BYTES).map_err(|error| match error {
            StoreError::Damaged { what, .. } => CacheError::Damaged { path: path.clone(), what },
            error => error.into(),
        })?;
        let kept = match read_kept(&database, &path)? {
            Some(kept) => kept,
            None => create(&database, genesis)?,
        };
        let (found, expected) = (kept.memory.genesis_hash, *genesis.realm().genesis_hash());
        if found != expected {
            return Err(CacheError::Realm { path, found, expected });
        }
        Ok(Self { database, kept })
    }

    /// The memory, as it is on disk.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Reads content back: of the highest versions of `wanted`, of the active ones, and of those
    /// that are `ready`. Content that is missing or damaged in the database is asked of `elsewhere`; content of either
    /// source must have the root of its version.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database fails.
    pub fn contents(
        &self,
        wanted: &[BundleName],
        ready: &Versions,
        elsewhere: impl Fn(&BundleName, Active) -> Option<BundleTree>,
    ) -> Result<Contents, StoreError> {
        let floors = &self.kept.memory.floors;
        let newest = wanted.iter().filter_map(|name| floors.get_key_value(name));
        let newest = newest.map(|(name, head)| (name.clone(), Active::of(head))).collect();
        let mut found = Contents::default();
        let mut read = |versions: &Versions| {
            let mut trees = BTreeMap::new();
            for (name, version) in versions {
                let tree = self.content(name, *version, &mut found.damage)?;
                if let Some(tree) = tree.or_else(|| elsewhere(name, *version)) {
                    trees.insert(name.clone(), tree);
                }
            }
            Ok::<_, StoreError>(trees)
        };
        let (newest, active) = (read(&newest)?, read(&self.kept.active)?);
        let ready = read(ready)?;
        Ok(Contents { newest, active, ready, ..found })
    }

    fn content(
        &self,
        name: &BundleName,
        version: Active,
        damage: &mut Vec<Rejection>,
    ) -> Result<Option<BundleTree>, StoreError> {
        let row = store::read(&self.database, |txn| {
            let row = txn.open_table(CONTENTS)?.get((name.as_str(), version.version))?;
            Ok::<_, StoreError>(row.map(|bytes| Delta::from_canonical(bytes.value())))
        })?;
        let tree = match row {
            None => return Ok(None),
            Some(Ok(delta)) => delta.apply(&BundleTree::default()),
            Some(Err(error)) => {
                damage.push(error.into());
                return Ok(None);
            }
        };
        if tree.root() == version.root {
            return Ok(Some(tree));
        }
        let (computed, certified) = (tree.root(), version.root);
        let (bundle, version) = (name.clone(), version.version);
        damage.push(Rejection::Content { bundle, version, computed, certified });
        Ok(None)
    }

    /// Makes a verified state durable (KEPT-1).
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written then, and the process must stop.
    pub fn stage(&mut self, staged: &Staged) -> Result<(), StoreError> {
        let mut kept = self.kept.clone();
        kept.staged(staged);
        self.write(kept, |contents, kept| {
            for name in &staged.changed {
                let tree = staged.replica.content(name).expect("a change brings content");
                let bytes = Delta::whole(name.clone(), tree).to_canonical();
                let version = staged.replica.heads()[name].version;
                contents.insert((name.as_str(), version), bytes.as_slice())?;
                forget_others(contents, name, kept)?;
            }
            Ok(())
        })
    }

    /// Records that the workload runs a version, and forgets content that is not needed any more (KEPT-2).
    ///
    /// # Errors
    ///
    /// As [`Cache::stage`].
    pub fn activated(&mut self, candidate: &Candidate) -> Result<(), StoreError> {
        let Candidate { bundle, version, content } = candidate;
        let mut kept = self.kept.clone();
        kept.activated(bundle, *version);
        self.write(kept, |contents, kept| {
            let key = (bundle.as_str(), version.version);
            // KEPT-2: a newer version that was staged meanwhile took its place.
            if contents.get(key)?.is_none() {
                let bytes = Delta::whole(bundle.clone(), content).to_canonical();
                contents.insert(key, bytes.as_slice())?;
            }
            forget_others(contents, bundle, kept)
        })
    }

    /// Records that the workload was found running `version`.
    ///
    /// # Errors
    ///
    /// As [`Cache::stage`].
    pub fn runs(&mut self, bundle: &BundleName, version: Active) -> Result<(), StoreError> {
        let mut kept = self.kept.clone();
        kept.activated(bundle, version);
        self.write(kept, |contents, kept| forget_others(contents, bundle, kept))
    }

    /// Records that `version` failed here.
    ///
    /// # Errors
    ///
    /// As [`Cache::stage`].
    pub fn quarantined(&mut self, bundle: &BundleName, version: Active) -> Result<(), StoreError> {
        let mut kept = self.kept.clone();
        kept.quarantined(bundle, version);
        self.write(kept, |_, _| Ok(()))
    }

    fn write(
        &mut self,
        kept: Kept,
        change: impl FnOnce(&mut Table<'_, (&str, u64), &[u8]>, &Kept) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        store::write(&self.database, |txn| {
            change(&mut txn.open_table(CONTENTS)?, &kept)?;
            txn.open_table(KEPT)?.insert(KEPT_KEY, kept.seal().as_slice())?;
            Ok::<_, StoreError>(())
        })?;
        self.kept = kept;
        Ok(())
    }
}

/// KEPT-2: what is active stays, what is to be activated, and the newest.
fn forget_others(
    contents: &mut Table<'_, (&str, u64), &[u8]>,
    name: &BundleName,
    kept: &Kept,
) -> Result<(), StoreError> {
    let newest = kept.memory.floors.get(name).map(|head| head.version);
    let active = kept.active.get(name).map(|active| active.version);
    let ready = kept.ready.get(name).map(|ready| ready.version);
    let needed = |version: u64| [newest, active, ready].contains(&Some(version));
    Ok(contents.retain(|key, _| key.0 != name.as_str() || needed(key.1))?)
}

/// KEPT-5: `None` only for a database in which nothing was ever written.
fn read_kept(database: &Database, path: &Path) -> Result<Option<Kept>, CacheError> {
    let row = store::read(database, |txn| {
        if txn.list_tables()?.next().is_none() {
            return Ok::<_, StoreError>(None);
        }
        match txn.open_table(KEPT) {
            Ok(table) => Ok(Some(table.get(KEPT_KEY)?.map(|bytes| Kept::unseal(bytes.value())))),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(Some(None)),
            Err(error) => Err(error.into()),
        }
    })?;
    let damaged = |what: String| CacheError::Damaged { path: path.to_owned(), what };
    match row {
        None => Ok(None),
        Some(None) => Err(damaged("the record of what was verified is missing".to_owned())),
        Some(Some(Ok(kept))) => Ok(Some(kept)),
        Some(Some(Err(error))) => Err(damaged(format!("the record of what was verified: {error}"))),
    }
}

/// All tables and the first value in one transaction, so that no crash leaves one without the
/// other.
fn create(database: &Database, genesis: &Genesis) -> Result<Kept, StoreError> {
    let kept = Kept::new(genesis);
    store::write(database, |txn| {
        txn.open_table(CONTENTS)?;
        txn.open_table(KEPT)?.insert(KEPT_KEY, kept.seal().as_slice())?;
        Ok::<_, StoreError>(())
    })?;
    Ok(kept)
}
