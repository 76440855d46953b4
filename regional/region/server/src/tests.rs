//! Tests against the real disk, the real network and real certificates.

mod apply;
pub mod cluster;
mod founding;
pub mod realm;
mod ring;
mod serving;
mod snapshots;
mod sources;
mod threads;
