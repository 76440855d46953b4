//! Bounds on the memory that followers cost a server, and on how often they may ask.

use std::time::Duration;

use satrap_certify::limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX};
use satrap_pressure::Rate;

use crate::mtls::FOREIGN_SCOPES;

/// One piece of an update on the wire. HTTP/2 holds one or two of them for a follower that does not
/// read.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Bytes of protobuf around a piece.
pub const ENVELOPE_BYTES: usize = 64;
/// Encoded updates that one identity was given and has not taken, whatever the number of streams: one
/// that is as large as any.
pub const EDGE_ANSWER_BYTES_MAX: usize = EDGE_UPDATE_BYTES_MAX;
/// As [`EDGE_ANSWER_BYTES_MAX`], of members, validators and operators.
pub const RELAY_ANSWER_BYTES_MAX: usize = UPDATE_BYTES_MAX;
/// Different encoded updates of all names that one CA can sign: a region, or the operators. No scope
/// can use the room of another.
pub const SCOPE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// The same of all scopes that a listener keeps room for, and its own: 3.1 GiB if every one of them
/// is hostile at the same time.
pub const ANSWERS_BYTES_MAX: usize = (FOREIGN_SCOPES + 1) * SCOPE_BYTES_MAX;
/// How long a follower may take for one update; 8 MiB then need 2.2 Mbit/s.
pub const TAKE_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks for updates that were not taken.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(5);
/// Encoded updates kept for followers that will ask from the same position.
pub const CACHE_ENTRIES_MAX: usize = 256;
/// Those of them that one identity was the first to ask for.
pub const CACHE_ENTRIES_PER_IDENTITY_MAX: usize = 4;
/// Their bytes.
pub const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Positions that one identity may name. An honest follower names one per stream, and a relay one
/// more when another server was faster.
pub const POSITIONS: Rate = Rate { burst: 64, per_s: 8 };
/// Reports of one identity that are looked at: an edge makes one for each update it has taken.
pub const REPORTS: Rate = Rate { burst: 64, per_s: 16 };
/// Identities whose positions and reports are counted; more than have streams at one time.
pub const IDENTITIES_MAX: usize = 32_768;
/// How long a follower may take to say where it is.
pub const FIRST_POSITION_TIMEOUT: Duration = Duration::from_secs(5);

// The cached updates of one scope leave it room for the largest update.
const _: () = assert!(CACHE_BYTES_MAX + UPDATE_BYTES_MAX <= SCOPE_BYTES_MAX);
const _: () = assert!(SCOPE_BYTES_MAX < u32::MAX as usize, "permits are counted in 32 bits");
const _: () = assert!(ANSWERS_BYTES_MAX <= 3_200 << 20);
const _: () = assert!(TAKE_WITHIN.as_secs() > SWEEP_PERIOD.as_secs());
