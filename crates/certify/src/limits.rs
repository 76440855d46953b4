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
/// Steps of one update; a follower that needs more gets several updates.
pub const STEPS_MAX: usize = 64;
/// Validator-set changes in the life of a realm: one a week for a thousand years. Only a snapshot
/// holds all of them, and a step is decoded when its bytes have arrived.
pub const PATH_STEPS_MAX: usize = 1 << 16;
/// Canonical bytes of one step: its checkpoint, one signature for each validator, two sets.
pub const STEP_BYTES_MAX: usize = 1_024 + VALIDATORS_MAX * (64 + 1 + 2 * 40);
/// Directories ever certified, 32 bytes each: a relay that starts from nothing gets all of them in
/// one update. At one publish a minute that is two years; rule V17 refuses the publish beyond.
pub const HISTORY_LEAVES_MAX: usize = 1 << 20;
/// Bundles one follower may ask for by name.
pub const INTEREST_MAX: usize = 64;
/// Canonical bytes of an entry beyond its key and value: their lengths.
pub const ENTRY_WIRE_BYTES: u64 = 8;
/// Content goes into one update until it takes this much; the rest follows in the next.
pub const PART_BYTES: u64 = 1024 * 1024;
/// Canonical bytes of one bundle as one delta.
pub const DELTA_BYTES_MAX: usize =
    BUNDLE_BYTES_MAX as usize + ENTRY_WIRE_BYTES as usize * BUNDLE_ENTRIES_MAX + 1_024;
/// Canonical bytes of one head with its share of a directory proof: the head, two neighbors, and
/// one hash for each level for each of the three.
pub const HEAD_PROOF_BYTES_MAX: usize = 3 * (512 + 32 * 13);
/// Updates between two complete states of a relay: the content of a realm in parts, and a path of
/// some thousand set changes.
pub const PARTS_MAX: usize = 2_048;
/// Canonical bytes of one update: all of the history in one piece, all heads, and a part of the
/// content.
pub const UPDATE_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Canonical bytes of the update of a follower that asked for bundles by name.
pub const EDGE_UPDATE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Canonical bytes of a snapshot: all content, the history, all heads, and a path of about a
/// kilobyte for each set change of a few validators.
pub const SNAPSHOT_BYTES_MAX: usize = 160 * 1024 * 1024;
/// Deltas that a relay keeps, of all bundles, to answer followers that are a few versions behind.
pub const JOURNAL_DELTAS_MAX: usize = 4_096;
/// Wire bytes of those deltas.
pub const JOURNAL_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bundles whose highest versions a follower remembers, wanted or not.
pub const FLOORS_MAX: usize = HEADS_MAX;
/// A leaf certificate inside a status report.
pub const CERTIFICATE_BYTES_MAX: usize = 4 * 1024;
/// Rules named in one status report.
pub const REPORT_REFUSALS_MAX: usize = 64;

const _: () = assert!(BUNDLE_BYTES_MAX <= REALM_BYTES_MAX);
/// A part of the content ends at the latest with the bundle that crossed the mark.
const PART_BYTES_MAX: usize = PART_BYTES as usize + DELTA_BYTES_MAX;
const _: () = assert!(
    STEPS_MAX * STEP_BYTES_MAX
        + 32 * HISTORY_LEAVES_MAX
        + HEADS_MAX * HEAD_PROOF_BYTES_MAX / 3
        + PART_BYTES_MAX
        <= UPDATE_BYTES_MAX
);
const _: () = assert!(
    STEPS_MAX * STEP_BYTES_MAX + INTEREST_MAX * HEAD_PROOF_BYTES_MAX + PART_BYTES_MAX
        <= EDGE_UPDATE_BYTES_MAX
);
const _: () = assert!(CHANGE_BYTES_MAX <= BLOCK_CHANGES_BYTES_MAX);
const _: () = assert!(VALUE_BYTES_MAX < CHANGE_BYTES_MAX);
