//! Takes back slow and broken disks, once they have had an effect.
//!
//! Another fault may have kept a member from writing all the time: it was cut off, paused, or its ring
//! had no leader. So these are taken back after all such faults, and the member gets time to notice.

use std::{thread::sleep, time::Duration};

use super::{LOOK_PAUSE, Nemesis};
use crate::RunError;

/// The writes that a slow disk does in a second.
pub(super) const SLOW_WRITES_PER_S: u32 = 15;
/// How often, and for how long each time, a slow disk that had no effect is looked at again.
const SLOW_LOOKS: usize = 5;
const SLOW_LOOK: Duration = Duration::from_secs(1);
/// How often a member is looked at that has not noticed its broken disk. It notices with its next
/// write, of which there are none while the ring refuses them for want of space, and then lets its
/// clients finish for up to ten seconds.
const BROKEN_LOOKS: usize = 200;

impl Nemesis {
    /// Makes a disk fast again; returns whether it held its member back `since` it had done so many writes,
    /// at that time.
    pub(super) fn end_slow_disk(
        &mut self,
        slot: usize,
        since: (u64, u64),
    ) -> Result<bool, RunError> {
        let (mut writes, mut from_ms) = since;
        let mut looks = 0..SLOW_LOOKS;
        let fired = loop {
            let now = self.cluster.disks[slot].writes()?;
            if was_slow(now - writes, self.now_ms() - from_ms) {
                break true;
            }
            if looks.next().is_none() {
                break false;
            }
            (writes, from_ms) = (now, self.now_ms());
            sleep(SLOW_LOOK);
        };
        self.cluster.disks[slot].limit(0)?;
        Ok(fired)
    }

    /// Repairs a disk, and ends the member on it; returns whether the member had ended by itself.
    pub(super) fn end_broken_disk(&mut self, slot: usize) -> Result<bool, RunError> {
        let mut looks = 0..BROKEN_LOOKS;
        let fired = loop {
            if self.cluster.has_ended(slot) {
                break true;
            }
            if looks.next().is_none() {
                break false;
            }
            // One that another fault took down starts on the broken disk.
            self.cluster.run(slot)?;
            sleep(LOOK_PAUSE);
        };
        self.cluster.kill(slot)?;
        self.cluster.disks[slot].repair()?;
        self.cluster.expect_life(slot);
        Ok(fired)
    }
}

/// Whether a member's disk held it back: it did half of the writes that the limit let through, or
/// more. A member that wanted fewer did not notice the limit.
fn was_slow(writes: u64, span_ms: u64) -> bool {
    writes * 1_000 * 2 >= u64::from(SLOW_WRITES_PER_S) * span_ms
}
