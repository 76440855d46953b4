//! x
pub mod guard;
pub mod token;
