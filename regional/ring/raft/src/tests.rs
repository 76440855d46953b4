//! Tests on the real disk.

mod recovery;
pub mod register;
mod storage;
