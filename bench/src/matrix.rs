//! One-way delays between five continents, and the least time that a decision takes over them.
//!
//! The delays are half the average round-trip times of the table "Latency Between AWS Global
//! Regions" (2017, as reprinted at acomputerscientistlearnsaws.blogspot.com/2017/04/aws-regions.html),
//! rounded to milliseconds. Today's networks are somewhat faster, so the figures err on the slow side.

use std::time::Duration;

/// Sites, in the order of [`ONE_WAY_MS`].
pub const SITES: [&str; 5] = ["virginia", "ireland", "tokyo", "sao-paulo", "sydney"];

/// One-way delay in milliseconds between two sites.
pub const ONE_WAY_MS: [[u64; 5]; 5] = [
    [0, 40, 73, 60, 115],
    [40, 0, 106, 96, 155],
    [73, 106, 0, 128, 52],
    [60, 96, 128, 0, 161],
    [115, 155, 52, 161, 0],
];

/// One-way delay between two sites.
#[must_use]
pub fn one_way(from: usize, to: usize) -> Duration {
    Duration::from_millis(ONE_WAY_MS[from][to])
}

/// The least time from submission at `entry` until the last region has it, for validators at
/// `validators` (one each, the first one leading) that need `quorum` votes, if computers and disks
/// were free: the change goes to the leader, then proposal, prevote, precommit, then one hop to
/// each region from the validator that decides first for it. The hop to an edge in the same site
/// costs nothing here.
#[must_use]
pub fn floor(entry: usize, leader: usize, validators: &[usize], quorum: usize) -> Duration {
    let nth = |mut times: Vec<Duration>| {
        times.sort();
        times[quorum - 1]
    };
    let proposed = one_way(entry, leader);
    let step = |sent: &[Duration]| -> Vec<Duration> {
        let arrivals = |to: usize| {
            sent.iter().zip(validators).map(|(t, from)| *t + one_way(*from, to)).collect()
        };
        validators.iter().map(|to| nth(arrivals(*to))).collect()
    };
    let prevoted: Vec<_> = validators.iter().map(|v| proposed + one_way(leader, *v)).collect();
    let precommitted = step(&prevoted);
    let decided = step(&precommitted);
    let reached = |region: usize| {
        let hops = decided.iter().zip(validators).map(|(t, v)| *t + one_way(*v, region));
        hops.min().unwrap_or_default()
    };
    (0..SITES.len()).map(reached).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_symmetric_and_the_floor_is_three_delays_and_a_hop() {
        for (i, row) in ONE_WAY_MS.iter().enumerate() {
            assert_eq!(row[i], 0);
            for (j, delay) in row.iter().enumerate() {
                assert_eq!(*delay, ONE_WAY_MS[j][i]);
            }
        }
        // All validators at one site: only the hop to the farthest region is left.
        assert_eq!(floor(0, 0, &[0, 0, 0, 0], 3), Duration::from_millis(115));
    }
}
