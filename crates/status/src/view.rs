//! The state of a realm as data. Field names are stable: scripts and pages read them as JSON.

use serde::{Deserialize, Serialize};

/// A realm, as its servers described it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealmView {
    /// Its name.
    pub chain_id: String,
    /// The highest height any validator claims.
    pub height: u64,
    /// Certified state older than this is late, in milliseconds: blocks and reports come more often.
    pub late_after_ms: u64,
    /// Validators whose signatures are in that block, as the validator with that block reports.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidatorView {
    /// Its name.
    pub name: String,
    /// URL that was asked.
    pub url: String,
    /// Why it did not answer.
    pub error: Option<String>,
    /// Its newest decided block.
    pub height: u64,
    /// Milliseconds since the certified time of that block.
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
    /// Changes in its mempool.
    pub waiting_changes: u64,
    /// Why its signer fails, while it does: it casts no votes then.
    pub signer_failure: Option<String>,
}

/// One region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionView {
    /// Its name.
    pub name: String,
    /// The leader's name; empty if no member knows one.
    pub leader: String,
    /// The leader's term.
    pub term: u64,
    /// The highest verified checkpoint of any member.
    pub height: u64,
    /// Milliseconds since the certified time of that.
    pub age_ms: u64,
    /// Whether its leader follows a validator.
    pub upstream_connected: bool,
    /// Its ring.
    pub members: Vec<MemberView>,
    /// How many messages its members refused, of validators and of edges, by rule.
    pub refusals: Vec<(String, u64)>,
    /// How many edges at most are missing in [`RealmView::edges`], or have no report there, because a
    /// status reply of the region had no room for theirs.
    pub reports_left_out: u64,
    /// Alarms that are raised in its ring.
    pub alarms: Vec<AlarmView>,
    /// Recoveries that discarded acknowledged writes, oldest first.
    pub recoveries: Vec<RecoveryView>,
}

/// One alarm of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmView {
    /// `NOSPACE` or `CORRUPT`.
    pub kind: String,
    /// The member that it is about.
    pub member: String,
}

/// A recovery that discarded acknowledged writes of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The reason that the operator gave.
    pub reason: String,
}

/// One member of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// URL that was asked.
    pub url: String,
    /// Why it did not answer.
    pub error: Option<String>,
    /// Its newest verified checkpoint.
    pub height: u64,
    /// Milliseconds since the certified time of that.
    pub age_ms: u64,
    /// Log entries applied.
    pub applied_index: u64,
    /// Log entries behind the leader, as the leader sees it.
    pub lag: u64,
    /// Whether it is configured but not a member of the ring.
    pub outside: bool,
    /// Its own faults; alarms are in [`RegionView::alarms`].
    pub errors: Vec<String>,
    /// Its own scheduled snapshots, if it makes any.
    pub snapshots: Option<SnapshotView>,
}

/// How the scheduled snapshots of a member are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// The newest one, on that member.
    pub newest: Option<SavedView>,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A complete snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedView {
    /// Its file.
    pub file: String,
    /// The revision it holds, with all before it.
    pub revision: i64,
    /// Milliseconds since it was made.
    pub age_ms: u64,
}

/// One bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeView {
    /// Its region.
    pub region: String,
    /// Its name.
    pub name: String,
    /// Why no report of it verifies, or that there is none.
    pub error: Option<String>,
    /// Whether there is none because its region had no room for it in its status reply.
    pub left_out: bool,
    /// Milliseconds since its newest report, by its own clock.
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
    /// Whether some member reports a stream from it.
    pub connected: bool,
}

/// One version that an edge runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningView {
    /// The bundle.
    pub bundle: String,
    /// The version.
    pub version: u64,
    /// Its root.
    pub root: String,
}

/// Proof of misbehavior.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceView {
    /// Name of the validator that did it.
    pub validator: String,
    /// The height at which it did.
    pub height: u64,
    /// The kind of misbehavior.
    pub kind: String,
}
