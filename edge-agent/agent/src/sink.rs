//! The contract between an edge and the workload that its content is for.
//!
//! An edge verifies and stores; a [`Sink`] hands what was verified to one kind of workload. Files
//! and links are one kind ([`crate::activate::FileSink`]); a proxy that is fed over its own protocol
//! is another.
//!
//! # Input of a sink
//!
//! Only versions that the validators certified, with exactly the content that their root commits to,
//! after that content is durable here (ACCEPT-1, ACCEPT-2). At most one activation is in flight (ACCEPT-4), and within
//! one bundle versions only increase (ACCEPT-3).
//!
//! # Obligations of a sink
//!
//! - **Atomic**: a reader sees the whole version from before or the whole new one (ACTIVATE-1).
//! - **Rolled back**: when an activation fails, the workload runs the version from before again when
//!   the future ends, or nothing if there was none (ACTIVATE-2).
//! - **Blamed**: an error says whether the version is at fault, which is then not tried again (ACCEPT-5),
//!   or the host, in which case the same version is tried again with a later update.
//! - **Resumable**: dropping the future ends the activation where it is, as a crash would. The edge
//!   activates the version again after its next start, and the workload meanwhile reads a whole
//!   version that is not older than the active one (ACTIVATE-6).
//! - **Honest**: [`Sink::on_disk`] and [`Sink::found`] look at what the workload reads, and do not
//!   repeat what the sink was told.

use std::{fmt::Debug, path::PathBuf, pin::Pin, sync::Arc};

use satrap_certify::BundleName;
use satrap_edge_core::{Active, Candidate};
use satrap_merkle::BundleTree;

use crate::links::OnDisk;

/// A certified version that the workload is to run.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The certified version, with its bundle and content.
    pub candidate: Candidate,
    /// The version that is recorded as active, to go back to.
    pub before: Option<Active>,
}

/// Why a workload does not run a version. The message says what is wrong and, if a person can mend
/// it, how.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// This version cannot run here.
    #[error("{0}")]
    Version(String),
    /// The host is at fault, a full disk for example.
    #[error("{0}")]
    Host(String),
}

/// An activation in flight.
pub type Activating = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send>>;

/// Hands verified content to a workload. The module's documentation is the contract.
pub trait Sink: Debug + Send + Sync {
    /// Makes the workload run a version in place of the one before it. May take as long as the
    /// workload does: the edge goes on meanwhile.
    fn activate(self: Arc<Self>, activation: Activation) -> Activating;

    /// Checks at the start of the edge that the workload has the active version, all of it, and
    /// repairs what it has not. Without `content`, what is there is taken as it is.
    ///
    /// # Errors
    ///
    /// [`SinkError::Host`] if it cannot be repaired.
    fn ensure(
        &self,
        bundle: &BundleName,
        active: Active,
        content: Option<&BundleTree>,
    ) -> Result<(), SinkError>;

    /// As [`Sink::ensure`], with every update: repairs what is missing, and does not compare content.
    ///
    /// # Errors
    ///
    /// [`SinkError::Host`] if it cannot be repaired.
    fn keep(
        &self,
        bundle: &BundleName,
        active: Active,
        content: Option<&BundleTree>,
    ) -> Result<(), SinkError>;

    /// Whether the workload reads the active version at this moment.
    fn on_disk(&self, bundle: &BundleName, active: Active) -> OnDisk;

    /// The version that the workload reads, whatever the edge's database says, if it is whole (KEPT-6).
    fn found(&self, bundle: &BundleName) -> Option<Active>;

    /// The content of a version as the workload reads it; `None` unless it has the version's root.
    fn read_back(&self, bundle: &BundleName, version: Active) -> Option<BundleTree>;

    /// Where the workload reads a bundle.
    fn link(&self, bundle: &BundleName) -> PathBuf;
}
