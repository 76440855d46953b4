//! Chooses the versions that a status report names.
//!
//! An edge remembers versions of every bundle it was ever configured for, which may be thousands. The size of a report is
//! limited, and a server ends the stream of an edge that sends a larger one. So the bundles of the present configuration
//! come first, and others as far as there is room.

use satrap_certify::{BundleName, Digest, limits::REPORT_VERSIONS_MAX};

use crate::accept::Active;

/// At most [`REPORT_VERSIONS_MAX`] of `versions`: those of the bundles in `wanted` before any other.
pub fn named<'v>(
    versions: impl Iterator<Item = (&'v BundleName, &'v Active)>,
    wanted: &[BundleName],
) -> Vec<(BundleName, u64, Digest)> {
    let mut all: Vec<_> = versions.collect();
    all.sort_by_key(|(name, _)| !wanted.contains(name));
    all.truncate(REPORT_VERSIONS_MAX);
    all.into_iter().map(|(name, v)| (name.clone(), v.version, v.root)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use satrap_certify::limits::{FLOORS_MAX, INTEREST_MAX};

    use super::*;

    #[test]
    fn an_edge_that_remembers_many_bundles_names_those_it_asks_for() {
        let name = |n: usize| BundleName::new(&format!("config/{n:05}")).unwrap();
        let active = Active { version: 1, root: [0; 32] };
        let memory: BTreeMap<_, _> = (0..FLOORS_MAX).map(|n| (name(n), active)).collect();
        // The last ones of all.
        let wanted: Vec<_> = (FLOORS_MAX - INTEREST_MAX..FLOORS_MAX).map(name).collect();
        let named = named(memory.iter(), &wanted);
        assert_eq!(named.len(), REPORT_VERSIONS_MAX);
        let names: Vec<_> = named.into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names[..INTEREST_MAX], wanted);
        assert_eq!(names[INTEREST_MAX], name(0));
    }
}
