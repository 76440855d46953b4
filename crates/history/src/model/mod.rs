//! Clean histories from a model, and wrong ones from a model with one fault.
//!
//! A checker that never complains is worth nothing, and one that complains of a correct store is
//! worth less. So both are measured: [`generate`] runs concurrent clients, watchers, lease keepers
//! and lock holders against a correct store in virtual time, with answers that get lost and effects
//! that come late; given a [`Bug`], the store or what it tells goes wrong in that one way.

mod bug;
mod clients;
mod locks;
mod store;
mod watchers;

pub use bug::Bug;

use crate::{Recording, random::Random};
use clients::Simulation;

/// How large a generated recording is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients on shared keys.
    pub clients: u32,
    /// Clients that keep leases.
    pub keepers: u32,
    /// Operations of the clients on shared keys, in total.
    pub operations: usize,
    /// Of a thousand operations so many have an unknown outcome.
    pub unknown_per_mille: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { clients: 8, keepers: 2, operations: 1_500, unknown_per_mille: 20 }
    }
}

/// A recording of the model.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The recording.
    pub recording: Recording,
    /// Whether the bug had an occasion; a recording without one is a clean one.
    pub fired: bool,
}

/// Runs the model once. The same arguments give the same recording.
#[must_use]
pub fn generate(seed: u64, shape: &Shape, bug: Option<Bug>) -> Generated {
    let mut random = Random::new(seed);
    let mut simulation = Simulation::new(&mut random, *shape, bug);
    simulation.run(&mut random);
    let mut generated = simulation.finish(&mut random);
    locks::record(&mut random, bug, &mut generated);
    watchers::break_one(&mut random, bug, &mut generated);
    generated
}
