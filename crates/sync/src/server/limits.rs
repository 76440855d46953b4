//! Bounds on the memory that followers cost a server, and on how often they may ask.

use std::time::Duration;

use satrap_certify::limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX};
use satrap_pressure::Rate;

use satrap_identity::mtls::FOREIGN_SCOPES;

/// Bytes of encoded updates that one edge was sent and has not read, on all its streams: room for one of the largest.
pub const EDGE_ANSWER_BYTES_MAX: usize = EDGE_UPDATE_BYTES_MAX;
/// As [`EDGE_ANSWER_BYTES_MAX`], for members, validators and operators.
pub const RELAY_ANSWER_BYTES_MAX: usize = UPDATE_BYTES_MAX;
/// Bytes of encoded updates for all names that one CA can sign, a region or the operators. No such scope can use the room
/// of another.
pub const SCOPE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Bytes of encoded updates for all scopes that a listener keeps room for, and its own: 3.1 GiB if all of them are hostile
/// at the same time.
pub const ANSWERS_BYTES_MAX: usize = (FOREIGN_SCOPES + 1) * SCOPE_BYTES_MAX;
/// How long a follower may take to read one update; 8 MiB then need 2.2 Mbit/s.
pub const TAKE_WITHIN: Duration = Duration::from_secs(30);
/// How often the server looks for updates that were not read in time.
pub const SWEEP_PERIOD: Duration = Duration::from_secs(5);
/// Encoded updates kept for followers that will ask from the same position.
pub const CACHE_ENTRIES_MAX: usize = 256;
/// Cached updates that one identity was the first to ask for.
pub const CACHE_ENTRIES_PER_IDENTITY_MAX: usize = 4;
/// Bytes of cached updates.
pub const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Positions that one identity may send. An honest follower sends one per stream, and a relay one more when another
/// server was faster.
pub const POSITIONS: Rate = Rate { burst: 64, per_s: 8 };
/// Reports of one identity that are verified: an edge makes one for each update it has taken.
pub const REPORTS: Rate = Rate { burst: 64, per_s: 16 };
/// Positions of all names that one CA can sign, unless the server is there for them: a neighbor's
/// edges may all come at once. Answering so many takes about a second, and then a fifteenth of a core.
pub const SCOPE_POSITIONS: Rate = Rate { burst: 1_024, per_s: 64 };
/// Reports of the same names that are verified.
pub const SCOPE_REPORTS: Rate = Rate { burst: 1_024, per_s: 256 };
/// Identities whose positions and reports are counted; more than can have streams at one time.
pub const IDENTITIES_MAX: usize = 32_768;
/// Scopes whose positions and reports are counted: more than there can be trusted CAs.
pub const SCOPES_MAX: usize = 2_048;
/// How long a follower may take to send its first position.
pub const FIRST_POSITION_TIMEOUT: Duration = Duration::from_secs(5);

// The cached updates of one scope leave it room for the largest update.
const _: () = assert!(CACHE_BYTES_MAX + UPDATE_BYTES_MAX <= SCOPE_BYTES_MAX);
const _: () = assert!(SCOPE_BYTES_MAX < u32::MAX as usize, "permits are counted in 32 bits");
const _: () = assert!(ANSWERS_BYTES_MAX <= 3_200 << 20);
const _: () = assert!(TAKE_WITHIN.as_secs() > SWEEP_PERIOD.as_secs());
