//! Asks every server at once, and combines the answers into one [`RealmView`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::future::join_all;
use satrap_certify::{BundleName, Digest, Policy, PublicKey, Report, SignedReport, Timestamp};
use satrap_identity::{pki::Role, pki::TrustAnchors};
use satrap_merkle::codec::Canonical as _;
use satrap_operator::client::{Client, Endpoint, SILENT_HEARTBEATS};
use satrap_proto::v1::{
    RecoveryInfo, RegionStatus, SnapshotStatus, StatusReply, ValidatorStatus, status_reply::Tier,
};
use satrap_realm::Description;
use satrap_runtime::clock;

use crate::attention::attention;
use crate::view::{
    AlarmView, BundleView, EdgeView, EvidenceView, MemberView, RealmView, RecoveryView, RegionView,
    RunningView, SavedView, SnapshotView, ValidatorView,
};

/// A process that has not reported for this long does not count as running.
const TWIN_SEEN_WITHIN: Duration = Duration::from_secs(300);

/// The answer of one server.
type Answer = Result<StatusReply, String>;
/// Region and name.
type EdgeKey = (String, String);

/// Asks all servers and verifies what edges reported. A server that does not answer is shown as
/// such, so this cannot fail.
pub async fn gather(client: &Client) -> RealmView {
    let answers = join_all(client.endpoints.iter().map(|endpoint| client.status(endpoint))).await;
    let answers: Vec<(&Endpoint, Answer)> = client.endpoints.iter().zip(answers).collect();
    let now = Timestamp(clock::now());
    let mut realm = RealmView {
        chain_id: client.genesis.realm().chain_id().to_owned(),
        late_after_ms: millis(late_after(&client.genesis.policy)),
        ..RealmView::default()
    };
    for (endpoint, answer) in &answers {
        match answer {
            Ok(StatusReply { tier: Some(Tier::Validator(v)) }) => {
                realm.validators.push(validator(endpoint, v, now));
            }
            Ok(StatusReply { tier: Some(Tier::Region(r)) }) => member(&mut realm, endpoint, r, now),
            Ok(StatusReply { tier: None }) => {
                unreached(client, &mut realm, endpoint, "it answered with nothing");
            }
            Err(why) => unreached(client, &mut realm, endpoint, why),
        }
    }
    let tiers = answers.iter().filter_map(|(_, a)| a.as_ref().ok()?.tier.as_ref());
    let (mut validators, mut regions) = (Vec::new(), Vec::new());
    for tier in tiers {
        match tier {
            Tier::Validator(v) => validators.push(v),
            Tier::Region(r) => regions.push(r),
        }
    }
    if let Some(newest) = validators.iter().max_by_key(|v| v.height) {
        quorum(&mut realm, newest);
    }
    realm.evidence = evidence(&validators);
    let judge = Judge {
        genesis_hash: *client.genesis.realm().genesis_hash(),
        now,
        clock_drift: client.genesis.policy.clock_drift,
        trust: client.credentials.current().trust.clone(),
    };
    realm.edges = edges(client.description.as_ref(), &regions, &judge);
    realm.attention = attention(&realm);
    realm
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The age of certified state, by the clock of this machine, that a healthy realm never reaches.
fn late_after(policy: &Policy) -> Duration {
    policy.heartbeat * SILENT_HEARTBEATS + policy.clock_drift
}

fn validator(endpoint: &Endpoint, v: &ValidatorStatus, now: Timestamp) -> ValidatorView {
    let age = now.since(Timestamp(v.time_unix_ns));
    let own = v.validators.iter().find(|info| info.name == v.name);
    ValidatorView {
        name: v.name.clone(),
        url: endpoint.url.clone(),
        error: None,
        height: v.height,
        age_ms: millis(age),
        round: v.round,
        power: own.map_or(0, |info| info.power),
        jurisdiction: own.map(|info| info.jurisdiction.clone()).unwrap_or_default(),
        peers: v.validators.iter().filter(|p| p.connected && p.name != v.name).count(),
        waiting_changes: v.mempool_changes,
        signer_failure: Some(v.signer_failure.clone()).filter(|failure| !failure.is_empty()),
        // Set by `quorum`, from the newest block of all.
        signed_last: false,
        proposed_last: false,
    }
}

/// Takes the state that all validators share from the one with the highest block.
fn quorum(realm: &mut RealmView, newest: &ValidatorStatus) {
    realm.height = newest.height;
    let signed = newest.validators.iter().filter(|info| info.signed_last);
    realm.signed_last = signed.map(|info| info.name.clone()).collect();
    for view in &mut realm.validators {
        let Some(info) = newest.validators.iter().find(|info| info.name == view.name) else {
            continue;
        };
        (view.signed_last, view.proposed_last) = (info.signed_last, info.proposed_last);
        (view.power, view.jurisdiction) = (info.power, info.jurisdiction.clone());
    }
    let bundle = |b: &satrap_proto::v1::BundleStatus| BundleView {
        name: b.name.clone(),
        version: b.version,
        root: hex::encode(&b.root),
        entries: b.entries,
        bytes: b.bytes,
    };
    realm.bundles = newest.bundles.iter().map(bundle).collect();
}

fn evidence(validators: &[&ValidatorStatus]) -> Vec<EvidenceView> {
    let all = validators.iter().flat_map(|v| &v.evidence);
    let mut seen: Vec<_> = all.map(|e| (e.height, e.validator.clone(), e.kind.clone())).collect();
    seen.sort();
    seen.dedup();
    let view = |(height, validator, kind)| EvidenceView { validator, height, kind };
    seen.into_iter().map(view).collect()
}

/// The region's view, made on first use.
fn region<'a>(realm: &'a mut RealmView, name: &str) -> &'a mut RegionView {
    if let Some(place) = realm.regions.iter().position(|r| r.name == name) {
        return &mut realm.regions[place];
    }
    realm.regions.push(RegionView { name: name.to_owned(), ..RegionView::default() });
    realm.regions.last_mut().expect("pushed just now")
}

fn member(realm: &mut RealmView, endpoint: &Endpoint, r: &RegionStatus, now: Timestamp) {
    let view = region(realm, &r.region);
    // The reply with the newest term names the newest leader.
    if !r.leader.is_empty() && r.term >= view.term {
        (view.leader, view.term) = (r.leader.clone(), r.term);
    }
    let is_leader = r.leader == r.member;
    if is_leader || !view.members.iter().any(|m| m.name == view.leader) {
        view.upstream_connected = r.upstream_connected;
    }
    if r.height >= view.height {
        (view.height, view.age_ms) = (r.height, r.age_ms);
    }
    view.refusals = r.refusals.iter().map(|(rule, n)| (rule.clone(), *n)).collect();
    view.refusals.sort();
    // Each member tells of the whole region, and none knows more than all the reports together.
    view.reports_left_out = view.reports_left_out.max(r.reports_left_out);
    // Every member tells the alarms of its ring; a member that lags may tell other ones.
    for told in &r.alarms {
        let alarm = AlarmView { kind: told.kind.clone(), member: told.member.clone() };
        if !view.alarms.contains(&alarm) {
            view.alarms.push(alarm);
        }
    }
    // A member that lags knows fewer.
    if r.recoveries.len() > view.recoveries.len() {
        view.recoveries = r.recoveries.iter().map(recovery).collect();
    }
    let told = |name: &str| {
        let told = r.members.iter().find(|m| m.name == name);
        told.map_or((0, false), |m| (m.lag, m.outside))
    };
    let (lag, outside) = told(&r.member);
    view.members.push(MemberView {
        name: r.member.clone(),
        url: endpoint.url.clone(),
        error: None,
        height: r.height,
        age_ms: r.age_ms,
        applied_index: r.applied_index,
        lag,
        outside,
        errors: r.errors.clone(),
        snapshots: r.snapshots.as_ref().map(|told| snapshots(told, now)),
    });
    if is_leader {
        for member in &mut view.members {
            (member.lag, member.outside) = told(&member.name);
        }
    }
}

fn recovery(told: &RecoveryInfo) -> RecoveryView {
    RecoveryView {
        kind: told.kind.clone(),
        epoch: told.epoch,
        kept: told.kept,
        leap: told.leap,
        trusted: told.trusted.clone(),
        lost: told.lost.clone(),
        reason: told.reason.clone(),
    }
}

fn snapshots(told: &SnapshotStatus, now: Timestamp) -> SnapshotView {
    let newest = (!told.file.is_empty()).then(|| SavedView {
        file: told.file.clone(),
        revision: told.revision,
        age_ms: millis(now.since(Timestamp(told.time_unix_ns))),
    });
    SnapshotView { newest, error: (!told.error.is_empty()).then(|| told.error.clone()) }
}

/// Adds a server that did not answer to its region or to the validators.
fn unreached(client: &Client, realm: &mut RealmView, endpoint: &Endpoint, why: &str) {
    let (url, error) = (endpoint.url.clone(), Some(why.to_owned()));
    let described = client.description.as_ref();
    let regions = described.map(|d| d.regions.as_slice()).unwrap_or_default();
    let place = regions.iter().find_map(|r| {
        let member = r.members.iter().find(|m| m.client_url == url)?;
        Some((r.name.clone(), member.name.clone()))
    });
    match place {
        Some((name, member)) => {
            let view = MemberView { name: member, url, error, ..MemberView::default() };
            region(realm, &name).members.push(view);
        }
        None => {
            let name = endpoint.label.strip_prefix("validator ").unwrap_or(&endpoint.label);
            let name = name.to_owned();
            realm.validators.push(ValidatorView { name, url, error, ..ValidatorView::default() });
        }
    }
}

/// Decides which report to believe.
struct Judge {
    genesis_hash: Digest,
    trust: TrustAnchors,
    now: Timestamp,
    clock_drift: Duration,
}

impl Judge {
    /// Verifies a report's certificate, name, signature and times.
    fn report<'r>(&self, signed: &'r SignedReport) -> Result<&'r Report, String> {
        let peer = self.trust.verify(&signed.certificate, self.now.0).map_err(|e| e.to_string())?;
        let (public, latest) = (PublicKey(peer.public_key), self.now.plus(self.clock_drift));
        let report =
            signed.verify(&self.genesis_hash, &public, latest).map_err(|e| e.to_string())?;
        let named = Role::Edge { region: report.region.to_string(), name: report.edge.to_string() };
        if *peer.id.role() != named {
            return Err(format!("its certificate names {}", peer.id));
        }
        Ok(report)
    }

    /// Whether two processes with one identity are at work: each was seen after the other started.
    fn overlap(&self, newest: &Report, other: &Report) -> bool {
        let later = newest.started.max(other.started);
        let is_lately = self.now.since(other.time) < TWIN_SEEN_WITHIN;
        newest.started != other.started && other.time > later && is_lately
    }

    fn view(&self, report: &Report) -> EdgeView {
        let age = self.now.since(report.time);
        let version = |(bundle, version, root): &(BundleName, u64, Digest)| RunningView {
            bundle: bundle.to_string(),
            version: *version,
            root: hex::encode(root),
        };
        EdgeView {
            region: report.region.to_string(),
            name: report.edge.to_string(),
            error: None,
            left_out: false,
            report_age_ms: millis(age),
            height: report.height,
            running: report.running.iter().map(version).collect(),
            failed: report.failed.iter().map(version).collect(),
            has_twin: false,
            refusals: report.refusals.clone(),
            connected: false,
        }
    }
}

/// Every edge that is described or reported.
fn edges(
    description: Option<&Description>,
    regions: &[&RegionStatus],
    judge: &Judge,
) -> Vec<EdgeView> {
    let mut verified: BTreeMap<EdgeKey, Vec<Report>> = BTreeMap::new();
    let mut doubtful: BTreeMap<EdgeKey, String> = BTreeMap::new();
    for bytes in regions.iter().flat_map(|r| &r.reports) {
        let Ok(signed) = SignedReport::from_canonical(bytes) else {
            let unknown = ("?".to_owned(), "?".to_owned());
            doubtful.insert(unknown, "a member relayed bytes that are no report".into());
            continue;
        };
        let claimed = &signed.report;
        let key = (claimed.region.to_string(), claimed.edge.to_string());
        match judge.report(&signed) {
            Ok(report) => verified.entry(key).or_default().push(report.clone()),
            Err(why) => drop(doubtful.insert(key, format!("unverifiable report: {why}"))),
        }
    }
    let mut views: BTreeMap<EdgeKey, EdgeView> = verified
        .into_iter()
        .filter_map(|(key, reports)| {
            let newest = reports.iter().max_by_key(|report| report.time)?;
            let has_twin = reports.iter().any(|other| judge.overlap(newest, other));
            Some((key, EdgeView { has_twin, ..judge.view(newest) }))
        })
        .collect();
    for (edge, why) in doubtful {
        views.entry(edge.clone()).or_insert_with(|| unreported(&edge, why));
    }
    let connected = connected(regions);
    let described = description.iter().flat_map(|d| &d.edges);
    for edge in described.filter_map(|e| Some((e.region.clone()?, e.name.clone()))) {
        let view = || absent(&edge, connected.contains(&edge), regions);
        views.entry(edge.clone()).or_insert_with(view);
    }
    for (_, view) in views.iter_mut().filter(|(edge, _)| connected.contains(edge)) {
        view.connected = true;
    }
    views.into_values().collect()
}

fn unreported((region, name): &EdgeKey, error: String) -> EdgeView {
    let (region, name) = (region.clone(), name.clone());
    EdgeView { region, name, error: Some(error), ..EdgeView::default() }
}

/// An edge of which no member showed a report.
fn absent(edge: &EdgeKey, is_connected: bool, regions: &[&RegionStatus]) -> EdgeView {
    let of_region = regions.iter().filter(|r| r.region == edge.0);
    let left_out = of_region.map(|r| r.reports_left_out).max().unwrap_or(0);
    let why = match (is_connected, left_out) {
        (false, _) => "no report yet",
        (true, 0) => {
            "it is connected, and no member has a report of it; one that refuses its reports says so \
             in its log"
        }
        (true, _) => "its region had no room for its report",
    };
    EdgeView { left_out: is_connected && left_out > 0, ..unreported(edge, why.to_owned()) }
}

/// The edges that some member has a stream from.
fn connected(regions: &[&RegionStatus]) -> BTreeSet<EdgeKey> {
    let mut keys = BTreeSet::new();
    for region in regions {
        for name in &region.connected_edges {
            let full = name.split_once('/').map(|(r, n)| (r.to_owned(), n.to_owned()));
            keys.insert(full.unwrap_or_else(|| (region.region.clone(), name.clone())));
        }
    }
    keys
}

#[cfg(test)]
mod tests;
