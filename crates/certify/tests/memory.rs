//! Measures the promises of the limits about memory. One test, so that nothing else allocates.

use std::{fs, sync::Arc};

use satrap_certify::{
    Key,
    limits::{BUNDLE_ENTRIES_MAX, ENTRY_HELD_BYTES, REALM_ENTRIES_MAX},
};
use satrap_effort::leaves_out;
use satrap_merkle::BundleTree;

/// Resident memory of this process, from `/proc/self/status`; `None` where there is none.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Entries as small as they can be, which cost the most beyond what they hold: a realm of them,
/// published in steps as a realm is.
#[test]
fn an_entry_takes_no_more_memory_than_the_limits_say() {
    const STEP: usize = 1_024;
    let before = match resident_bytes() {
        Some(before) => before,
        None if leaves_out("VmRSS in /proc/self/status") => return,
        None => panic!("/proc/self/status shows no VmRSS"),
    };
    let mut trees = vec![BundleTree::default(); REALM_ENTRIES_MAX / BUNDLE_ENTRIES_MAX];
    for tree in &mut trees {
        for step in 0..BUNDLE_ENTRIES_MAX / STEP {
            let entry = |i: usize| {
                // Far apart, so that the keys of each step fall between those of all others.
                let key = format!("{:05}", i * (BUNDLE_ENTRIES_MAX / STEP) + step);
                let key = Key::new(key.as_bytes()).expect("five digits are a key");
                (key, Arc::<[u8]>::from(&b"v"[..]))
            };
            let puts: Vec<_> = (0..STEP).map(entry).collect();
            *tree = tree.batch(&puts, &[]).expect("the keys ascend").apply();
        }
        assert_eq!(tree.len(), BUNDLE_ENTRIES_MAX);
    }
    let content: u64 = trees.iter().map(BundleTree::bytes).sum();
    let after = resident_bytes().expect("it was there before");
    let held = after.saturating_sub(before + content) / REALM_ENTRIES_MAX as u64;
    let limit = ENTRY_HELD_BYTES as u64;
    println!("{held} bytes per entry besides key and value; the limit says {limit}");
    assert!(held <= limit, "{held} bytes per entry, {limit} are counted");
    assert!(held > limit / 2, "{held} bytes per entry: the limit of {limit} is far off");
}
