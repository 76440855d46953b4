//! Deterministic simulation of all pure cores: one seed, one trace.
//!
//! [`realm`] is a whole global quorum in a struct: real keys, real ledger, real commits, no
//! network. [`lies`] is what a compromised region may answer an edge with. Both are used by the
//! tests here, by the tests of the shells, and by `satrap dev --evil-region`.

pub mod lies;
pub mod realm;

pub use lies::Lie;
pub use realm::SimRealm;
