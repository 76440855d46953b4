//! The states that a region's ring replicates for it, and the operators who may cut its history.
//!
//! The ring (`satrap-ring-core`) is a coordination store that knows nothing of realms. A region
//! registers its own states with it: [`state_setup`] lists them. A further state of a region is one
//! file here with an [`Extension`](satrap_ring_core::Extension), and one line in that list.
//!
//! # Deliberately absent
//!
//! IO, clocks and randomness. Following validators and serving edges: `satrap-region-server`.

mod replica;

pub use replica::{ADOPT, Adopt, CertifiedReplica};
use satrap_certify::{Genesis, Label, Operator};
use satrap_merkle::codec::{Canonical as _, Writer};
use satrap_ring_core::{Extensions, Signatories, StateSetup};

/// The initial state of a region's ring; the same on every member.
#[must_use]
pub fn state_setup(genesis: &Genesis) -> StateSetup {
    let extensions = Extensions::new([CertifiedReplica::registration(genesis)]);
    StateSetup { extensions, signatories: signatories(genesis) }
}

/// A forced recovery needs as many operators of the genesis as a change of governance.
fn signatories(genesis: &Genesis) -> Signatories {
    let operators = genesis.governance.operators.values();
    let key = |operator: &Operator| (operator.public.0, operator.principal.to_string());
    let needed = usize::try_from(genesis.governance.approvals).unwrap_or(usize::MAX).max(1);
    Signatories { keys: operators.map(key).collect(), needed }
}

/// Names the ring of a region in its data directories, snapshots and messages: the digest of genesis
/// and region.
#[must_use]
pub fn ring_id(genesis: &Genesis, region: &Label) -> [u8; 32] {
    let mut w = Writer::tagged("satrap/ring/v1");
    w.array(genesis.realm().genesis_hash());
    region.encode(&mut w);
    blake3::hash(&w.finish()).into()
}
