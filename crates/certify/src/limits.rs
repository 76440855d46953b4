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
/// One value; larger artifacts belong in an object store, by digest.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// All keys and values of one bundle.
pub const BUNDLE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Entries of one bundle.
pub const BUNDLE_ENTRIES_MAX: usize = 65_536;
/// All keys and values of all bundles, so that one snapshot can always carry a whole realm.
pub const REALM_BYTES_MAX: u64 = 24 * 1024 * 1024;
/// Entries of all bundles: each costs [`ENTRY_WIRE_BYTES`] and [`ENTRY_HELD_BYTES`], however small.
pub const REALM_ENTRIES_MAX: usize = 131_072;
/// Bytes that an entry takes in memory, besides its key and value: a leaf, an inner node, two
/// allocations and what the allocator adds. `tests/memory.rs` measures it.
pub const ENTRY_HELD_BYTES: usize = 320;
/// The content of a whole realm in memory.
pub const REALM_HELD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bundles in the directory.
pub const HEADS_MAX: usize = 4_096;
/// Bundles, bytes, entries and directories of the history that no opaque class can take: room
/// that trust roots have, whatever else the realm is filled with.
pub const TRUST_HEADS_RESERVED: usize = 256;
/// See [`TRUST_HEADS_RESERVED`].
pub const TRUST_BYTES_RESERVED: u64 = 4 * 1024 * 1024;
/// See [`TRUST_HEADS_RESERVED`].
pub const TRUST_ENTRIES_RESERVED: usize = 16_384;
/// See [`TRUST_HEADS_RESERVED`].
pub const TRUST_HISTORY_RESERVED: usize = HISTORY_LEAVES_MAX / 4;
/// Publishes that one principal may make in a class at once, after a while without any.
pub const PUBLISH_BURST: u64 = 1_024;
/// Publishes per hour that a class can allow one principal in the long run.
pub const PUBLISHES_PER_HOUR_MAX: u32 = 3_600_000;
/// The same of a class that names no rate: one directory every ten minutes.
pub const PUBLISHES_PER_HOUR_DEFAULT: u32 = 6;
/// Canonical bytes of one signed change: the proposal that carries it must fit a mesh frame.
pub const CHANGE_BYTES_MAX: usize = 768 * 1024;
/// Canonical bytes of all changes of one block.
pub const BLOCK_CHANGES_BYTES_MAX: usize = 768 * 1024;
/// Changes in one block.
pub const BLOCK_CHANGES_MAX: usize = 1_024;
/// Signatures on all changes of one block: about 0.1 s of verification.
pub const BLOCK_APPROVALS_MAX: usize = 2_048;
/// Tree nodes that all changes of one block may visit or make: about 0.1 s of hashing.
pub const BLOCK_NODES_MAX: usize = 8 * BUNDLE_ENTRIES_MAX;
/// Signatures on one change.
pub const APPROVALS_MAX: usize = 16;
/// Validators in one set; the commit must stay small enough for every edge.
pub const VALIDATORS_MAX: usize = 128;
/// Power of one set; keeps threefold sums far from overflow (Tendermint allows 2^60).
pub const TOTAL_POWER_MAX: u64 = 1 << 50;
/// Operator keys in the governance state; and regions together with their keys.
pub const GOVERNANCE_ITEMS_MAX: usize = 1_024;
/// Classes in the governance state.
pub const CLASSES_MAX: usize = 64;
/// Canonical bytes of the governance state.
pub const GOVERNANCE_BYTES_MAX: usize = 256 * 1024;
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
/// Entries, put or deleted, of all content of one update: of a part, and of the bundle that crossed
/// its mark. A decoded entry takes up to a hundred bytes, and six on the wire.
pub const UPDATE_ENTRIES_MAX: usize = 4 * BUNDLE_ENTRIES_MAX;
/// Canonical bytes of one bundle as one delta.
pub const DELTA_BYTES_MAX: usize =
    BUNDLE_BYTES_MAX as usize + ENTRY_WIRE_BYTES as usize * BUNDLE_ENTRIES_MAX + 1_024;
/// Canonical bytes of one head with its share of a directory proof: the head, two neighbors, and
/// one hash for each level for each of the three.
pub const HEAD_PROOF_BYTES_MAX: usize = 3 * (512 + 32 * 13);
/// Updates between two complete states of a relay: the content of a realm in parts, and the path of
/// all set changes there can be.
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
/// Running versions in one status report, and as many failed ones: all bundles that an edge can ask
/// for, and as many that it ran before.
pub const REPORT_VERSIONS_MAX: usize = 2 * INTEREST_MAX;
/// Canonical bytes of one signed status report.
pub const REPORT_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(BUNDLE_BYTES_MAX <= REALM_BYTES_MAX);
// A new relay completes its first state within the parts that are kept.
const _: () =
    assert!(PATH_STEPS_MAX / STEPS_MAX + (REALM_BYTES_MAX / PART_BYTES) as usize + 1 < PARTS_MAX);
const _: () = assert!(4 * GOVERNANCE_ITEMS_MAX <= BLOCK_NODES_MAX);
const _: () = assert!(TRUST_BYTES_RESERVED >= BUNDLE_BYTES_MAX);
const _: () = assert!(JOURNAL_BYTES_MAX as usize >= DELTA_BYTES_MAX);
const _: () = assert!(BUNDLE_ENTRIES_MAX <= REALM_ENTRIES_MAX);
/// A part of the content ends at the latest with the bundle that crossed the mark.
const PART_BYTES_MAX: usize = PART_BYTES as usize + DELTA_BYTES_MAX;
// A delta puts and deletes as many entries as a bundle may have.
const _: () = assert!(
    PART_BYTES as usize / (ENTRY_WIRE_BYTES as usize + 1) + 2 * BUNDLE_ENTRIES_MAX
        <= UPDATE_ENTRIES_MAX
);
const _: () = assert!(REALM_ENTRIES_MAX <= UPDATE_ENTRIES_MAX);
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
const _: () = assert!(APPROVALS_MAX <= BLOCK_APPROVALS_MAX);

/// Canonical bytes of the longest name.
const NAME: usize = 4 + BUNDLE_NAME_BYTES_MAX;
/// Canonical bytes of the longest label.
const LABEL: usize = 4 + LABEL_BYTES_MAX;

/// Canonical bytes of a whole replica, with a path of about a kilobyte for each set change; the
/// numbers are those of `docs/spec/encoding.md`.
const WHOLE_REALM: usize = {
    let steps = 4 + 1_024 * PATH_STEPS_MAX;
    let history = 2 + 4 + 32 * HISTORY_LEAVES_MAX;
    let head = 4 + "satrap/head/v1".len() + NAME + 8 + 32 + 3 * 8;
    // All leaves, each with its index, need no hash to prove them.
    let heads = 1 + (4 + 4 + 4) + 4 + HEADS_MAX * (4 + 4 + head);
    let deltas = 4 + HEADS_MAX * (NAME + 8 + 4 + 4);
    let entries = REALM_BYTES_MAX as usize + ENTRY_WIRE_BYTES as usize * REALM_ENTRIES_MAX;
    32 + steps + history + heads + deltas + entries
};
const _: () = assert!(WHOLE_REALM <= SNAPSHOT_BYTES_MAX);
const _: () = assert!(
    REALM_BYTES_MAX + (ENTRY_HELD_BYTES * REALM_ENTRIES_MAX) as u64 <= REALM_HELD_BYTES_MAX
);

/// Canonical bytes of the largest signed status report.
const REPORT: usize = {
    let versions = 4 + REPORT_VERSIONS_MAX * (NAME + 8 + 32);
    let refusals = 4 + REPORT_REFUSALS_MAX * (LABEL + 8);
    32 + 2 * LABEL + 4 * 8 + 2 * versions + refusals + 4 + CERTIFICATE_BYTES_MAX + 64
};
const _: () = assert!(REPORT <= REPORT_BYTES_MAX);

/// Canonical bytes of the largest governance state.
const GOVERNANCE: usize = {
    let operators = 4 + GOVERNANCE_ITEMS_MAX * (32 + LABEL);
    let classes = 4 + CLASSES_MAX * (NAME + 4 + 1 + 4 + 8 + 4);
    // A region takes more than a key.
    let regions = 4 + GOVERNANCE_ITEMS_MAX * (LABEL + 4);
    let validators = 4 + VALIDATORS_MAX * (LABEL + 32 + 8 + LABEL + 4 + URL_BYTES_MAX);
    8 + 4 + 8 + 32 + operators + classes + regions + validators
};
const _: () = assert!(GOVERNANCE <= GOVERNANCE_BYTES_MAX);

// The reserve for trust roots leaves most of the realm to opaque classes.
const _: () = assert!(TRUST_HEADS_RESERVED < HEADS_MAX / 2);
const _: () = assert!(TRUST_BYTES_RESERVED < REALM_BYTES_MAX / 2);
const _: () = assert!(TRUST_ENTRIES_RESERVED < REALM_ENTRIES_MAX / 2);

// One key of an opaque class, never idle, takes more than ten years to use up the history.
const _: () = assert!(
    (HISTORY_LEAVES_MAX - TRUST_HISTORY_RESERVED) as u64
        > PUBLISH_BURST + 10 * 365 * 24 * PUBLISHES_PER_HOUR_DEFAULT as u64
);

// A change may visit the whole of a bundle and replace it.
const _: () = assert!(BLOCK_NODES_MAX >= 5 * BUNDLE_ENTRIES_MAX);
