//! The status of a realm: asks every server, verifies what edges reported, and lists the faults that
//! an operator must act on.
//!
//! The state of a server is that server's word; a contradiction between two of them is a reason to look
//! closer. The state of an edge is more: its reports are signed, and each one is verified here against
//! the CAs this operator trusts, by whichever server it came.
//!
//! Reading order: `view` (the result, as data), `gather` (makes it), `attention` (its faults).
//!
//! # Deliberately absent
//!
//! Rendering: `satrap status` makes a screen of the same data.

mod attention;
mod gather;
mod view;

pub use gather::gather;
pub use view::{
    AlarmView, BundleView, EdgeView, EvidenceView, MemberView, RealmView, RecoveryView, RegionView,
    RunningView, SavedView, SnapshotView, ValidatorView,
};
