//! Helpers that the tests of this crate share.

pub mod served;
pub mod solo;
