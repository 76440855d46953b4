//! Changing a key that others change as well: read, compute, write if the key has not changed since.
//!
//! A refused write carries what was in the way, so a conflict costs one request, not two. The new
//! value is always computed again from what is there now; to write the old result under the new
//! revision would undo the other's change.

use std::time::Duration;

use bytes::Bytes;
use satrap_pressure::FullJitter;
use satrap_proto::v1;
use satrap_runtime::rng;

use crate::error::Error;
use crate::ring::{Ring, answer};

/// First delay after a conflict is drawn up to this.
const RETRY_BASE: Duration = Duration::from_millis(100);
/// A key on which this many conflicts follow each other is the wrong place for this data.
const CONFLICTS_MAX: u32 = 64;

/// The result of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Of the key's last write: ours, or the one that we left alone; zero if there is no key.
    pub mod_revision: i64,
    /// Whether we wrote.
    pub written: bool,
    /// Writers that were faster.
    pub conflicts: u32,
}

/// Writes what `change` makes of the present value, or leaves the key alone if it makes nothing.
/// `change` sees nothing if the key does not exist, and may be called many times.
///
/// # Errors
///
/// Why the ring refused, or [`Error::Contended`]. When a write was not answered it is not repeated,
/// for it may have been done: the caller knows whether its change can be made twice.
pub async fn update(
    ring: &Ring,
    key: impl Into<Bytes>,
    mut change: impl FnMut(Option<&[u8]>) -> Option<Bytes>,
) -> Result<Updated, Error> {
    let key = key.into();
    let get = v1::GetRequest { key: key.clone(), ..Default::default() };
    let found = answer(ring.store().get(get)).await?.kv;
    let (mut present, mut mod_revision) =
        found.map_or((None, 0), |kv| (Some(kv.value), kv.mod_revision));
    let mut backoff = FullJitter::new(RETRY_BASE, Duration::ZERO);
    for conflicts in 0..CONFLICTS_MAX {
        let Some(value) = change(present.as_deref()) else {
            return Ok(Updated { mod_revision, written: false, conflicts });
        };
        let key = key.clone();
        let put = v1::PutIfRevisionRequest { key, value, mod_revision, lease: 0, want_value: true };
        let answer = answer(ring.store().put_if_revision(put)).await?;
        if answer.written {
            return Ok(Updated { mod_revision: answer.mod_revision, written: true, conflicts });
        }
        (present, mod_revision) = (answer.value, answer.mod_revision);
        tokio::time::sleep(backoff.next_delay(rng::u64())).await;
    }
    Err(Error::Contended(CONFLICTS_MAX))
}
