//! Every bound on what a peer, an operator or the disk may make this process hold.

use std::time::Duration;

use satrap_certify::limits::{BLOCK_CHANGES_BYTES_MAX, CHANGE_BYTES_MAX, VALIDATORS_MAX};
use satrap_identity::{
    charges::{CallLimits, REQUESTS, SUBMIT_FLAT_BYTES},
    mtls::FOREIGN_SCOPES,
};
use satrap_pressure::{Quota, Rate};

/// One mesh frame: a proposal with a full block, its header and signature.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// A request to the control service: one change and its envelope.
pub const CONTROL_BYTES_MAX: usize = CHANGE_BYTES_MAX + 4 * 1024;
/// Frames waiting for the consensus thread, per peer; a whole height has fewer than ten.
pub const INBOX_FRAMES_MAX: usize = 256;
/// Their bytes, per peer: a few full proposals.
pub const INBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Frames waiting for the network, per peer. A peer that does not read loses the rest; rebroadcast
/// and value sync repair that.
pub const OUTBOX_FRAMES_MAX: usize = 256;
/// Their bytes, per peer; given back when a frame leaves the queue.
pub const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The part of these that changes and blocks for value sync do not take.
pub const OUTBOX_RESERVED_BYTES: usize = OUTBOX_BYTES_MAX / 2;
/// The most that one height makes a validator send to a peer before it hears of the next one: its
/// proposal of a round, one relayed for a lock, and as many bytes again for their certificates and
/// the votes of all rounds until they are repeated.
const HEIGHT_BYTES_MAX: usize = 2 * (FRAME_BYTES_MAX + CERTIFICATES_BYTES_MAX) + 64 * 1024;
/// A polka and a round certificate of the largest set: an address, a signature, a vote type and a
/// block id each.
const CERTIFICATES_BYTES_MAX: usize = 2 * VALIDATORS_MAX * 256;
/// Submissions of one payer that wait for the consensus thread.
pub const SUBMISSIONS_PER_PAYER_MAX: usize = 32;
/// Their canonical bytes.
pub const SUBMISSION_BYTES_PER_PAYER_MAX: usize = 2 * 1024 * 1024;
/// Submissions of all payers: 32 of them can fill their queues.
pub const SUBMISSIONS_MAX: usize = 1_024;
/// Their canonical bytes.
pub const SUBMISSION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that one payer may submit: a few of the largest changes at once, and less in the long run
/// than blocks carry.
pub const SUBMIT_RATE: Rate = Rate { burst: 3 * 1024 * 1024, per_s: 512 * 1024 };
/// Names of validators that may have a mesh stream here at one time.
pub const PEERS_MAX: usize = 256;

/// The budget of one peer for votes, proposals and certificates per second, in
/// verified votes (about 60 us each): a fifth of the consensus thread at most, with the next.
pub const PEER_COST_PER_S: u32 = 2_000;
/// Burst of the same.
pub const PEER_COST_BURST: u32 = 8_000;
/// The budget of one peer for changes and requests for blocks per second.
pub const PEER_BULK_COST_PER_S: u32 = 1_000;
/// Burst of the same.
pub const PEER_BULK_COST_BURST: u32 = 4_000;
/// The most that one frame is charged: a bundle of 12 000 small entries. Two of these are a burst of
/// changes.
pub const FRAME_COST_MAX: u32 = 2_000;
/// A proposal, besides its changes: two signature checks, and deriving the directory again. The
/// last costs more in a realm of many bundles; there, [`PROPOSALS_PER_ROUND_MAX`] is the bound.
pub const PROPOSAL_COST: u32 = 10;
/// A change of a proposal, besides its approvals and content: a head and its place in the directory.
pub const CHANGE_IN_BLOCK_COST: u32 = 8;
/// A relayed change, besides its approvals and content: working on a copy of the state.
pub const CHANGE_COST: u32 = 25;
/// Bytes of values that are decoded, hashed and applied in the time of one signature check.
pub const BYTES_PER_COST: usize = 8 * 1024;
/// Entries that are applied to a bundle's tree in the time of one signature check.
pub const ENTRIES_PER_COST: usize = 6;
/// Looking up a block for value sync.
pub const SYNC_COST: u32 = 4;
/// Bytes of it that are read, encoded and sent in the time of one signature check.
pub const SYNC_BYTES_PER_COST: usize = 16 * 1024;
/// Messages that fail verification before a peer is cut off.
pub const STRIKES_MAX: u32 = 20;
/// For how long.
pub const BAN: Duration = Duration::from_secs(10);

/// Votes kept for the next height, per peer: two votes of eight rounds.
pub const EARLY_VOTES_MAX: usize = 16;
/// Proposals kept for the next height, per peer: its leader may send the one of another round, too.
pub const EARLY_PROPOSALS_MAX: usize = 2;
/// Changes kept for the next height, per peer: what it decided first makes others possible there.
pub const EARLY_CHANGES_MAX: usize = 16;
/// Their canonical bytes.
pub const EARLY_CHANGE_BYTES_MAX: usize = CHANGE_BYTES_MAX;
/// Different proposals looked at per round, and as many again of blocks with a polka; two prove an
/// equivocation.
pub const PROPOSALS_PER_ROUND_MAX: usize = 3;
/// Proposals that wait for a polka, per proposer; an honest one makes one per round.
pub const HELD_PER_PROPOSER_MAX: usize = 4;
/// The core drops messages of rounds further ahead than this.
pub const ROUNDS_AHEAD_MAX: u32 = 10;
/// Heights in the core's own queue. The host queues early messages itself, per peer, so this queue is
/// only used between two inputs.
pub const CORE_QUEUE_HEIGHTS: usize = 2;
/// Messages per height in the same queue.
pub const CORE_QUEUE_MESSAGES: usize = 512;

/// Changes waiting for a block.
pub const MEMPOOL_CHANGES_MAX: usize = 2_048;
/// Their canonical bytes.
pub const MEMPOOL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Callers waiting for one change.
pub const TICKETS_PER_CHANGE_MAX: usize = 16;
/// Changes submitted here that are sent again in one go.
pub const RESUBMIT_MAX: usize = 16;

/// Heights between two snapshots of the ledger; a restart applies at most this many blocks.
pub const SNAPSHOT_HEIGHTS: u64 = 64;
/// Page cache of the database.
pub const STORE_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// Own messages whose digests the last-sign guard keeps: three for each of about forty rounds.
pub const GUARD_RECORDS_MAX: usize = 64;
/// Pairs of conflicting messages shown in one status reply.
pub const EVIDENCE_SHOWN_MAX: usize = 64;
/// Light blocks in one reply stream.
pub const LIGHT_BLOCKS_MAX: u64 = 10_000;
/// `Status` and `Governance`. A status names 4 096 bundles at most and takes about 0.7 MiB then, the
/// governance state about as much: a scope can make this process hold 12 MiB of replies.
pub const READS: CallLimits = CallLimits {
    at_once: Quota { group_max: 16, holder_max: 4 },
    rate: Rate { burst: 8 * 1024 * 1024, per_s: 4 * 1024 * 1024 },
    flat_bytes: 4 * 1024,
};
/// `LightBlocks`, which are slowed down to the rate. A stream holds two blocks that were not sent, each
/// with all its changes, its light block and its commit.
pub const LIGHT_BLOCK_STREAMS: CallLimits =
    CallLimits { at_once: Quota { group_max: 4, holder_max: 2 }, ..READS };
/// `Follow` streams of one name, and of all names of one scope: a region has a handful of members,
/// and the operators run a few programs each. No scope can use the streams of another.
pub const FOLLOWERS_PER_SCOPE: Quota = Quota { group_max: 32, holder_max: 4 };
/// `Follow` streams of all scopes that a listener keeps room for, and its own.
pub const FOLLOWERS_MAX: usize = (FOREIGN_SCOPES + 1) * FOLLOWERS_PER_SCOPE.group_max;
/// Signatures that are pending: three messages for each of five rounds, and one more.
pub const SIGN_REQUESTS_MAX: usize = 16;

/// How long the signer may take for one signature before it is asked again.
pub const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause after the first failure of the signer; it doubles with each, up to
/// [`SIGN_TIMEOUT`].
pub const SIGN_RETRY: Duration = Duration::from_millis(200);
/// Status frames and upkeep of the consensus thread.
pub const TICK: Duration = Duration::from_millis(250);
/// How long a peer must be ahead before this process asks it for blocks; votes for the height may
/// simply still be on the way.
pub const SYNC_PATIENCE: Duration = Duration::from_millis(400);
/// How long to wait for a block before its peer counts as one that does not deliver.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(2);
/// Peers asked for one block at once, while none has proven itself or the one that has is slow.
pub const SYNC_REQUESTS_MAX: usize = 2;
/// How long the peer that delivered the last block is asked alone.
pub const SYNC_HEDGE_AFTER: Duration = Duration::from_millis(250);
/// For how long a peer that did not deliver a block is asked last; it doubles with each failure.
pub const SYNC_DISTRUST_MIN: Duration = Duration::from_secs(2);
/// No longer than this.
pub const SYNC_DISTRUST_MAX: Duration = Duration::from_secs(128);
/// How long a change submitted here waits before it is sent to all validators again.
pub const RESUBMIT_AFTER: Duration = Duration::from_secs(1);

const _: () = assert!(BLOCK_CHANGES_BYTES_MAX + 64 * 1024 <= FRAME_BYTES_MAX);
const _: () = assert!(INBOX_BYTES_MAX > 4 * FRAME_BYTES_MAX);
/// The cost of the largest block to the peer that asks for it.
pub const FULL_BLOCK_COST: u32 = (FRAME_BYTES_MAX / SYNC_BYTES_PER_COST) as u32;
const _: () = assert!(FULL_BLOCK_COST <= PEER_BULK_COST_BURST / 8);
const _: () = assert!(FRAME_COST_MAX <= PEER_COST_BURST / 4);
const _: () = assert!(FRAME_COST_MAX <= PEER_BULK_COST_BURST / 2);
// A full height fits beside whatever changes wait.
const _: () = assert!(HEIGHT_BYTES_MAX <= OUTBOX_RESERVED_BYTES);
const _: () = assert!(REQUESTS.group_max * CONTROL_BYTES_MAX <= 50 * 1024 * 1024);
const _: () = assert!(FOLLOWERS_MAX == 1_056);
const _: () = assert!(SUBMISSION_BYTES_PER_PAYER_MAX >= 2 * CHANGE_BYTES_MAX);
const _: () = assert!(SUBMIT_RATE.burst as usize > CHANGE_BYTES_MAX + SUBMIT_FLAT_BYTES);
const _: () = assert!(SUBMISSIONS_MAX == 32 * SUBMISSIONS_PER_PAYER_MAX);
const _: () = assert!(SUBMISSION_BYTES_MAX == 32 * SUBMISSION_BYTES_PER_PAYER_MAX);
