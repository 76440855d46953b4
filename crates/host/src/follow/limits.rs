//! Bounds on the memory that followers cost a server, and on how often they may ask.

use std::time::Duration;

use satrap_certify::limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX};

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
pub const CACHE_ENTRIES_MAX: usize = 64;
/// Their bytes.
pub const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Positions that one identity may name at once, and in each second after that. An honest follower
/// names one per stream, and a relay one more after each update.
pub const POSITIONS_BURST: u32 = 64;
/// See [`POSITIONS_BURST`].
pub const POSITIONS_PER_S: u32 = 8;
/// Reports of one identity that are looked at, at once and in each second after that: an edge makes
/// one for each update it has taken.
pub const REPORTS_BURST: u32 = 64;
/// See [`REPORTS_BURST`].
pub const REPORTS_PER_S: u32 = 16;
/// How long a follower may take to say where it is.
pub const FIRST_POSITION_TIMEOUT: Duration = Duration::from_secs(5);

// What one scope asked for and is kept for others leaves it room for the largest update.
const _: () = assert!(CACHE_BYTES_MAX + UPDATE_BYTES_MAX <= SCOPE_BYTES_MAX);
const _: () = assert!(SCOPE_BYTES_MAX < u32::MAX as usize, "permits are counted in 32 bits");
const _: () = assert!(ANSWERS_BYTES_MAX <= 3_200 << 20);
const _: () = assert!(TAKE_WITHIN.as_secs() > SWEEP_PERIOD.as_secs());
