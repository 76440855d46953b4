//! Reads heads out of a proven directory (rules D1 and D2).

use std::collections::BTreeMap;

use satrap_merkle::{
    codec::Canonical as _,
    directory::{Presence, ProvenLeaves},
};

use crate::{directory::Head, names::BundleName, rejection::Rejection};

/// D1: every head there is, for a relay.
pub(super) fn all_heads(
    proven: &ProvenLeaves,
    size: u64,
) -> Result<BTreeMap<BundleName, Head>, Rejection> {
    let heads = proven.leaves().map(decode_head);
    let heads: BTreeMap<_, _> =
        heads.map(|head| head.map(|h| (h.name.clone(), h))).collect::<Result<_, _>>()?;
    if heads.len() as u64 != size {
        return Err(Rejection::Directory(format!("{} of {size} heads were sent", heads.len())));
    }
    Ok(heads)
}

/// D2: the heads of `names`, and nothing left open, for an edge.
pub(super) fn wanted_heads(
    proven: &ProvenLeaves,
    names: &[BundleName],
) -> Result<BTreeMap<BundleName, Head>, Rejection> {
    let mut heads = BTreeMap::new();
    for name in names {
        match proven.lookup(name.as_str()) {
            Presence::Present(leaf) => {
                heads.insert(name.clone(), decode_head(leaf)?);
            }
            Presence::Absent => {}
            Presence::Unproven => return Err(Rejection::Withheld(name.clone())),
        }
    }
    Ok(heads)
}

fn decode_head(leaf: &[u8]) -> Result<Head, Rejection> {
    Head::from_canonical(leaf).map_err(|e| Rejection::Directory(e.to_string()))
}
