//! The picture of a realm that `status` shows, as `--json` prints it.

use std::fmt;

use satrap_certify::Timestamp;
use satrap_proto::v1::{RecoveryInfo, SnapshotStatus};
use serde::Serialize;

use crate::output::{one_line, span};

/// One picture of a realm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Realm {
    /// Its name.
    pub chain_id: String,
    /// The highest height any validator claims.
    pub height: u64,
    /// Certified state older than this is late: blocks, and what edges report, come more often.
    pub late_after_ms: u64,
    /// Names of the validators whose signatures are in that block, by the word of that validator.
    pub signed_last: Vec<String>,
    /// The global quorum.
    pub validators: Vec<ValidatorView>,
    /// The regional rings.
    pub regions: Vec<RegionView>,
    /// Bundles, as the validator with the highest height reports them.
    pub bundles: Vec<BundleView>,
    /// Edges, each from its newest report that verifies.
    pub edges: Vec<EdgeView>,
    /// The faults that an operator must act on, worst first.
    pub attention: Vec<String>,
    /// Proof that a validator broke the protocol.
    pub evidence: Vec<EvidenceView>,
}

/// One validator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ValidatorView {
    /// Its name.
    pub name: String,
    /// Where it was asked.
    pub url: String,
    /// Why it was not reached.
    pub error: Option<String>,
    /// Its newest decided block.
    pub height: u64,
    /// Since the certified time of that block.
    pub age_ms: u64,
    /// The round that decided it; above 0 when a proposer failed.
    pub round: u32,
    /// Voting power, 0 if it is not in the set.
    pub power: u64,
    /// Legal area.
    pub jurisdiction: String,
    /// Whether the newest block has its signature.
    pub signed_last: bool,
    /// Whether it proposed the newest block.
    pub proposed_last: bool,
    /// How many other validators it is connected to.
    pub peers: usize,
    /// Changes that wait there for a block.
    pub waiting_changes: u64,
}

/// One region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegionView {
    /// Its name.
    pub name: String,
    /// The leader's name; empty if no member knows one.
    pub leader: String,
    /// The leader's term.
    pub term: u64,
    /// The highest verified checkpoint of any member.
    pub height: u64,
    /// Since the certified time of that.
    pub age_ms: u64,
    /// Whether its leader follows a validator.
    pub upstream_connected: bool,
    /// Its ring.
    pub members: Vec<MemberView>,
    /// How many messages its members refused, of validators and of edges, by rule.
    pub refusals: Vec<(String, u64)>,
    /// How many edges at most are missing in [`Realm::edges`], or have no report there, because a
    /// status reply of the region had no room for theirs.
    pub reports_left_out: u64,
    /// Alarms that are raised in its ring.
    pub alarms: Vec<AlarmView>,
    /// Every time the history of its keys was cut, oldest first.
    pub recoveries: Vec<RecoveryView>,
}

/// One alarm of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AlarmView {
    /// `NOSPACE` or `CORRUPT`.
    pub kind: String,
    /// The member that it is about.
    pub member: String,
}

/// One cut in the history of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecoveryView {
    /// `restored` from a snapshot, or `forced` after the loss of a quorum.
    pub kind: String,
    /// Minutes since the beginning of 2025, UTC, when it was made.
    pub epoch: u32,
    /// Writes after this revision that were acknowledged may be lost.
    pub kept: i64,
    /// The history goes on above this revision.
    pub leap: i64,
    /// Members whose state counts.
    pub trusted: Vec<String>,
    /// Members whose state was given up.
    pub lost: Vec<String>,
    /// In the words of the operator who did it.
    pub reason: String,
}

impl RecoveryView {
    /// As a member tells it.
    #[must_use]
    pub fn of(told: &RecoveryInfo) -> Self {
        Self {
            kind: told.kind.clone(),
            epoch: told.epoch,
            kept: told.kept,
            leap: told.leap,
            trusted: told.trusted.clone(),
            lost: told.lost.clone(),
            reason: told.reason.clone(),
        }
    }
}

impl fmt::Display for RecoveryView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, epoch, kept, leap, trusted, lost, reason } = self;
        write!(f, "{kind}, epoch {epoch}: writes after revision {kept} may be lost, ")?;
        write!(f, "revisions go on above {leap}")?;
        if !trusted.is_empty() {
            write!(f, "; trusted {}; lost {}", trusted.join(", "), lost.join(", "))?;
        }
        // The reason is free text.
        write!(f, " ({})", one_line(reason))
    }
}

/// One member of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Where it was asked.
    pub url: String,
    /// Why it was not reached.
    pub error: Option<String>,
    /// Its newest verified checkpoint.
    pub height: u64,
    /// Since the certified time of that.
    pub age_ms: u64,
    /// Log entries applied.
    pub applied_index: u64,
    /// Log entries behind the leader, as the leader sees it.
    pub lag: u64,
    /// Whether the ring does not have it, although the configuration does.
    pub outside: bool,
    /// Its own faults; alarms are in [`RegionView::alarms`].
    pub errors: Vec<String>,
    /// Its own scheduled snapshots, if it makes any.
    pub snapshots: Option<SnapshotView>,
}

/// How the scheduled snapshots of a member are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SnapshotView {
    /// The newest one, on that member.
    pub newest: Option<SavedView>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A snapshot that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SavedView {
    /// Its file.
    pub file: String,
    /// Everything up to here is in it.
    pub revision: i64,
    /// Since it was made.
    pub age_ms: u64,
}

impl SnapshotView {
    /// As a member tells it.
    #[must_use]
    pub fn of(told: &SnapshotStatus, now: Timestamp) -> Self {
        let age = now.since(Timestamp(told.time_unix_ns)).as_millis();
        let newest = (!told.file.is_empty()).then(|| SavedView {
            file: told.file.clone(),
            revision: told.revision,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        });
        Self { newest, error: (!told.error.is_empty()).then(|| told.error.clone()) }
    }
}

impl fmt::Display for SnapshotView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.error {
            write!(f, "NO SNAPSHOT ({error}); ")?;
        }
        match &self.newest {
            Some(SavedView { file, revision, age_ms }) => {
                write!(f, "saved revision {revision} {} ago in {file}", span(*age_ms))
            }
            None => f.write_str("saved nothing yet"),
        }
    }
}

/// One bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BundleView {
    /// Its name.
    pub name: String,
    /// Current version.
    pub version: u64,
    /// Its root.
    pub root: String,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// One edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EdgeView {
    /// Its region.
    pub region: String,
    /// Its name.
    pub name: String,
    /// The reason why no report of it can be believed, or that there is none.
    pub error: Option<String>,
    /// Whether there is none because its region had no room for it in its status reply.
    pub left_out: bool,
    /// Since its newest report, by its own clock.
    pub report_age_ms: u64,
    /// Its newest verified checkpoint.
    pub height: u64,
    /// The versions that its workload runs.
    pub running: Vec<RunningView>,
    /// Versions that failed there: a hook refused them, or their content cannot be files.
    pub failed: Vec<RunningView>,
    /// Whether two processes report with its identity at a time.
    pub has_twin: bool,
    /// How many offers it refused since it started, by rule.
    pub refusals: Vec<(String, u64)>,
    /// Whether some member has a stream from it, by that member's word.
    pub connected: bool,
}

/// One version that an edge runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunningView {
    /// Which bundle.
    pub bundle: String,
    /// Which version.
    pub version: u64,
    /// Its root.
    pub root: String,
}

/// Proof of misbehavior.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EvidenceView {
    /// Name of the validator that did it.
    pub validator: String,
    /// At which height.
    pub height: u64,
    /// The kind of misbehavior.
    pub kind: String,
}
