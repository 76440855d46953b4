//! Why an update is refused, by the rule of `docs/spec/verification.md` it breaks.
//!
//! A rejection always blames the sender: the follower's own state is unchanged, and asking another
//! server is the right reaction. The text says what was wrong, what was expected, what to do.

use std::time::Duration;

use satrap_merkle::{Digest, codec::DecodeError};

use crate::{keys::Address, names::BundleName, timestamp::Timestamp};

/// A refused update or report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named in the message right above them")]
pub enum Rejection {
    /// E1
    #[error("bytes are not a canonical encoding: {0}; the sender is broken or hostile")]
    Encoding(#[from] DecodeError),
    /// C1
    #[error(
        "update is for the realm with genesis {}, this one has {}; check the address of the server",
        hex::encode(offered),
        hex::encode(expected)
    )]
    Realm { offered: Digest, expected: Digest },
    /// C2
    #[error("checkpoint {offered} is not newer than verified checkpoint {verified} (rollback)")]
    NotNewer { offered: u64, verified: u64 },
    /// C3
    #[error(
        "two certified checkpoints at height {height} differ: more than a third of the validators \
         signed both; stop and compare the realm's validators"
    )]
    Conflict { height: u64 },
    /// C4
    #[error(
        "checkpoint {height} names validator set {}, which neither follows from the verified one \
         nor was supplied",
        hex::encode(set)
    )]
    UnknownSet { height: u64, set: Digest },
    /// C5
    #[error("commit has {places} places for a set of {set} validators")]
    CommitSize { places: usize, set: usize },
    /// C5
    #[error("validators with power {signed} of {total} signed, {needed} are needed")]
    Quorum { signed: u64, needed: u64, total: u64 },
    /// C6
    #[error("signature {index} (validator {validator}) does not verify over this checkpoint")]
    Signature { index: usize, validator: Address },
    /// C7
    #[error(
        "only power {signed} of the last verified set signed checkpoint {height}, {needed} are \
         needed to skip to it; ask for the steps between"
    )]
    Overlap { height: u64, signed: u64, needed: u64 },
    /// C8
    #[error(
        "last verified checkpoint {height} is {age:?} old, beyond the trusting period {period:?}; \
         provision this process again with a newer trusted checkpoint"
    )]
    TrustExpired { height: u64, age: Duration, period: Duration },
    /// C9
    #[error("checkpoint {height} is {ahead:?} ahead of this clock; check NTP here and there")]
    Future { height: u64, ahead: Duration },
    /// C10
    #[error("checkpoint {height} has time {time}, not after its predecessor's {before}")]
    Time { height: u64, time: Timestamp, before: Timestamp },
    /// C11
    #[error("update has more than {0} steps, or none although nothing is certified here yet")]
    Steps(usize),
    /// C12
    #[error(
        "checkpoint {height} is signed by validator set {}, which was not announced: a change of \
         the set was left out, and a relay needs each of them to serve others",
        hex::encode(set)
    )]
    Unannounced { height: u64, set: Digest },
    /// C13
    #[error("the update brings nothing that is not held at height {0}")]
    NoProgress(u64),
    /// H1
    #[error("history at height {height} does not extend the history verified before: {why}")]
    History { height: u64, why: String },
    /// D1
    #[error("heads are not the certified directory: {0}")]
    Directory(String),
    /// D2
    #[error(
        "it proves neither that bundle `{0}` exists nor that it does not; a certificate of other \
         bundles is like that, and so is a server that holds this one back"
    )]
    Withheld(BundleName),
    /// B1
    #[error("`{bundle}` would fall from version {held} to {offered} (rollback)")]
    Rollback { bundle: BundleName, held: u64, offered: u64 },
    /// B2
    #[error("`{bundle}` version {version} was certified with two different roots")]
    Fork { bundle: BundleName, version: u64 },
    /// B3
    #[error("delta for `{bundle}` starts at version {base}, but version {held} is held here")]
    DeltaBase { bundle: BundleName, base: u64, held: u64 },
    /// B4
    #[error(
        "content of `{bundle}` version {version} has root {}, certified is {}; a value or key was \
         altered, added, withheld or mixed in",
        hex::encode(computed),
        hex::encode(certified)
    )]
    Content { bundle: BundleName, version: u64, computed: Digest, certified: Digest },
    /// B5
    #[error("`{bundle}` version {version} is certified, but its content is withheld")]
    ContentWithheld { bundle: BundleName, version: u64 },
    /// B6
    #[error(
        "content for `{0}` was not asked for, is not certified, is held already, or came twice"
    )]
    Unasked(BundleName),
    /// B7
    #[error("`{bundle}` exceeds a limit: {what}")]
    Limit { bundle: BundleName, what: String },
    /// R1
    #[error("status report: {0}")]
    Report(&'static str),
    /// R2
    #[error(
        "status report: its time {time} is after {latest}, which is the time here and the permitted \
         drift; check NTP here and there"
    )]
    ReportFuture { time: Timestamp, latest: Timestamp },
    /// R2
    #[error(
        "status report: made at {time}, before its process started at {started}; check the clock of \
         the edge"
    )]
    ReportStart { time: Timestamp, started: Timestamp },
}

impl Rejection {
    /// The rule's number in `docs/spec/verification.md`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Encoding(_) => "E1",
            Self::Realm { .. } => "C1",
            Self::NotNewer { .. } => "C2",
            Self::Conflict { .. } => "C3",
            Self::UnknownSet { .. } => "C4",
            Self::CommitSize { .. } | Self::Quorum { .. } => "C5",
            Self::Signature { .. } => "C6",
            Self::Overlap { .. } => "C7",
            Self::TrustExpired { .. } => "C8",
            Self::Future { .. } => "C9",
            Self::Time { .. } => "C10",
            Self::Steps(_) => "C11",
            Self::Unannounced { .. } => "C12",
            Self::NoProgress(_) => "C13",
            Self::History { .. } => "H1",
            Self::Directory(_) => "D1",
            Self::Withheld(_) => "D2",
            Self::Rollback { .. } => "B1",
            Self::Fork { .. } => "B2",
            Self::DeltaBase { .. } => "B3",
            Self::Content { .. } => "B4",
            Self::ContentWithheld { .. } => "B5",
            Self::Unasked(_) => "B6",
            Self::Limit { .. } => "B7",
            Self::Report(_) => "R1",
            Self::ReportFuture { .. } | Self::ReportStart { .. } => "R2",
        }
    }
}
