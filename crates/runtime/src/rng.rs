//! The one source of randomness: the operating system.
//!
//! # Deliberately absent
//!
//! No seeding and no generator state: tests that need a seed pass their own numbers to the cores.

/// Fills `bytes` with randomness fit for keys and nonces.
///
/// # Panics
///
/// If the operating system has none. A process without randomness cannot keep any promise.
pub fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system provides randomness");
}

/// One uniform number.
#[must_use]
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn draws_differ() {
        let draws: std::collections::BTreeSet<u64> = (0..64).map(|_| super::u64()).collect();
        assert_eq!(draws.len(), 64);
    }
}
