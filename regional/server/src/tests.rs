//! Tests against the real disk, the real network and real certificates.

pub mod realm;
mod storage;
