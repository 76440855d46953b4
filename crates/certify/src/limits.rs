//! Every bound on what a certificate, a change or an update may hold.
//!
//! A number that a peer controls is compared with one of these before anything is allocated.

/// Tendermint allows chain ids of 50 bytes.
pub const CHAIN_ID_BYTES_MAX: usize = 50;
/// Long enough for a path of five labels.
pub const BUNDLE_NAME_BYTES_MAX: usize = 128;
/// A DNS label: names of processes, regions and principals become parts of SPIFFE ids.
pub const LABEL_BYTES_MAX: usize = 63;
/// A URL of a validator in the governance state.
pub const URL_BYTES_MAX: usize = 256;
/// One value; larger artifacts belong in an object store, by digest (000-25).
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// All keys and values of one bundle.
pub const BUNDLE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Entries of one bundle.
pub const BUNDLE_ENTRIES_MAX: usize = 65_536;
/// All keys and values of all bundles, so that one update can always carry a whole realm.
pub const REALM_BYTES_MAX: u64 = 24 * 1024 * 1024;
/// Bundles in the directory.
pub const HEADS_MAX: usize = 4_096;
/// Canonical bytes of one signed change: the proposal that carries it must fit a mesh frame.
pub const CHANGE_BYTES_MAX: usize = 768 * 1024;
/// Canonical bytes of all changes of one block.
pub const BLOCK_CHANGES_BYTES_MAX: usize = 768 * 1024;
/// Changes in one block.
pub const BLOCK_CHANGES_MAX: usize = 1_024;
/// Signatures on one change.
pub const APPROVALS_MAX: usize = 16;
/// Validators in one set; the commit must stay small enough for every edge.
pub const VALIDATORS_MAX: usize = 128;
/// Power of one set; keeps threefold sums far from overflow (Tendermint allows 2^60).
pub const TOTAL_POWER_MAX: u64 = 1 << 50;
/// Operator keys, classes, regions, keys of one region in the governance state.
pub const GOVERNANCE_ITEMS_MAX: usize = 1_024;
/// Validator-set changes that one update may step over.
pub const STEPS_MAX: usize = 256;
/// Directories ever certified, 32 bytes each: a relay that starts from nothing gets all of them in
/// one update. At one publish a minute that is two years; rule V17 refuses the publish beyond.
pub const HISTORY_LEAVES_MAX: usize = 1 << 20;
/// Bundles one follower may ask for by name.
pub const INTEREST_MAX: usize = 64;
/// Canonical bytes of one update: a whole realm, its history and some room.
pub const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Canonical bytes of the update of a follower that asked for bundles by name.
pub const EDGE_UPDATE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Deltas that a relay keeps per bundle to answer followers that are a few versions behind.
pub const JOURNAL_DELTAS_MAX: usize = 32;
/// Bytes of those deltas.
pub const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;
/// A leaf certificate inside a status report.
pub const CERTIFICATE_BYTES_MAX: usize = 4 * 1024;
/// Rules named in one status report.
pub const REPORT_REFUSALS_MAX: usize = 64;

const _: () = assert!(BUNDLE_BYTES_MAX <= REALM_BYTES_MAX);
const _: () = assert!(REALM_BYTES_MAX + 32 * HISTORY_LEAVES_MAX as u64 <= UPDATE_BYTES_MAX as u64);
const _: () = assert!(CHANGE_BYTES_MAX <= BLOCK_CHANGES_BYTES_MAX);
const _: () = assert!(VALUE_BYTES_MAX < CHANGE_BYTES_MAX);
