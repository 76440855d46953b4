//! Tests against the real disk, the real network and real certificates.

pub mod cluster;
mod founding;
pub mod realm;
mod ring;
mod serving;
mod storage;
