//! The `Control` service for operators: forwards their changes to validators, and reports the status
//! of the region.
//!
//! A member does not judge a change. The validators do, and the member returns their answer
//! unchanged. It asks the next validator only if one could not answer, or is behind the state that the
//! change expects.
//!
//! The validators charge what a member forwards to its region (CHARGE-1 and CHARGE-2 of [`satrap_identity::charges`]),
//! so a member charges each operator first: one that floods spends its own budget, not its region's.

mod merge;

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, future::join_all};
use prost::Message as _;
use satrap_certify::Timestamp;
use satrap_identity::{
    charges::{
        Calls, Charges, Payer, PeerPermits, SUBMIT_FLAT_BYTES, SUBMIT_REFUSED_BYTES, take_permit,
    },
    mtls::{self, ConnectError, Credentials, PeerRule},
    pki::{PeerIdentity, PkiError, Role, SpiffeId},
};
use satrap_proto::fault::{self, Fault};
use satrap_proto::v1::{
    BundleStatus, GovernanceReply, GovernanceRequest, LightBlockReply, LightBlocksRequest,
    MemberInfo, RecoveryInfo, RegionStatus, RingAlarm, StatusReply, StatusRequest, SubmitReply,
    SubmitRequest, control_client::ControlClient, control_server, status_reply::Tier,
};
use satrap_region_core::CertifiedReplica;
use satrap_ring_core::{
    alarm::AlarmKind,
    recovery::{RecoveryKind, RecoveryRecord},
};
use satrap_ring_raft::{Ring, snapshots::Watched};
use satrap_runtime::clock;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{
    config::{Config, Endpoint},
    limits::{
        READS, STATUS_BYTES_MAX, STATUS_TIMEOUT, SUBMIT_BYTES_MAX, SUBMIT_RATE, SUBMIT_TIMEOUT,
        SUBMITS_AT_ONCE,
    },
    refusals::Refusals,
    reports::Reports,
    source::Source,
    status,
};

/// One validator's share of [`SUBMIT_TIMEOUT`], so that one that hangs leaves time for another.
const ATTEMPT_TIMEOUT: Duration = SUBMIT_TIMEOUT.checked_div(2).expect("two is not zero");

/// Serves `satrap.v1.Control`.
#[derive(Clone)]
pub struct ControlService(Arc<Inner>);

struct Inner {
    ring: Ring,
    region: String,
    members: Vec<(Endpoint, Option<Channel>)>,
    validators: Vec<(Endpoint, Channel)>,
    /// The validator that answered last.
    preferred: AtomicUsize,
    upstream_streams: Arc<AtomicUsize>,
    reports: Reports,
    refusals: Refusals,
    snapshots: Option<Watched>,
    submissions: Charges,
    forwarding: PeerPermits,
    reads: Calls,
}

/// An address or name in the configuration is not one.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address.
    #[error(transparent)]
    Address(#[from] ConnectError),
    /// The name.
    #[error(transparent)]
    Name(#[from] PkiError),
}

/// The parts of the status that do not come from the ring.
pub struct Sources {
    /// The number of live streams from sources.
    pub upstream_streams: Arc<AtomicUsize>,
    /// The reports of edges.
    pub reports: Reports,
    /// Refusals by rule.
    pub refusals: Refusals,
    /// The state of scheduled snapshots, if any are made.
    pub snapshots: Option<Watched>,
}

/// The caller, if it is an operator or a member.
fn caller<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = request.extensions().get::<PeerIdentity>();
    let peer = peer.ok_or_else(|| status::denied("no authenticated peer"))?;
    match peer.id.role() {
        Role::Operator { .. } | Role::Member { .. } => Ok(peer.clone()),
        _ => Err(status::denied(&format!("{} is neither operator nor member", peer.id))),
    }
}

impl ControlService {
    /// A service for the members and validators of `config`.
    ///
    /// # Errors
    ///
    /// [`ControlError`] if an address or name is not one.
    pub fn new(
        ring: Ring,
        config: &Config,
        credentials: &Credentials,
        sources: Sources,
    ) -> Result<Self, ControlError> {
        let chain = config.genesis.realm().chain_id();
        let region = config.region.to_string();
        let member = |endpoint: &Endpoint| {
            if endpoint.name == config.name {
                return Ok((endpoint.clone(), None));
            }
            let role = Role::Member { region: region.clone(), name: endpoint.name.to_string() };
            let rule = PeerRule::Exactly(SpiffeId::new(chain, role)?);
            let channel = mtls::connect_lazy(&endpoint.url, credentials, rule)?;
            Ok((endpoint.clone(), Some(channel)))
        };
        let validator = |endpoint: &Endpoint| {
            let rule = Source::validator(chain, endpoint)?.rule();
            Ok((endpoint.clone(), mtls::connect_lazy(&endpoint.url, credentials, rule)?))
        };
        let members = config.members.iter().map(member).collect::<Result<_, ControlError>>()?;
        let validators =
            config.validators.iter().map(validator).collect::<Result<_, ControlError>>()?;
        let Sources { upstream_streams, reports, refusals, snapshots } = sources;
        let preferred = AtomicUsize::new(0);
        Ok(Self(Arc::new(Inner {
            ring,
            region,
            members,
            validators,
            preferred,
            upstream_streams,
            reports,
            refusals,
            snapshots,
            submissions: Charges::new("submissions", SUBMIT_RATE),
            forwarding: PeerPermits::default(),
            reads: Calls::new("calls of Status and Governance", READS),
        })))
    }

    /// Asks validators in turn until one answers for itself.
    async fn forward<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        ask: impl Fn(ControlClient<Channel>) -> F,
    ) -> Result<Response<T>, Status> {
        let inner = &*self.0;
        let first = inner.preferred.load(Ordering::Relaxed);
        let deadline = clock::monotonic() + SUBMIT_TIMEOUT;
        let (mut last, mut behind) = (String::new(), None);
        for turn in 0..inner.validators.len() {
            let index = (first + turn) % inner.validators.len();
            let left = deadline.saturating_sub(clock::monotonic()).min(ATTEMPT_TIMEOUT);
            let (endpoint, channel) = &inner.validators[index];
            if left.is_zero() {
                last =
                    format!("`{}`: no time was left to ask it; before it: {last}", endpoint.name);
                break;
            }
            let client = ControlClient::new(channel.clone());
            let answer = timeout(left, ask(client)).await.unwrap_or_else(|_| {
                Err(status::refused(Code::DeadlineExceeded, &format!("no answer in {left:?}")))
            });
            let fault = answer.as_ref().err().map(Fault::of);
            match (answer, fault) {
                // A validator that does not hold the caller's state yet cannot judge for those that do.
                (Err(status), Some(fault)) if fault.is_behind() => {
                    behind.get_or_insert(status);
                }
                // Nor can one that has not looked.
                (Err(status), Some(fault)) if fault.is_before_judging() && behind.is_some() => {
                    behind = Some(status);
                }
                // A validator that failed may have taken the request: the answer of another one that
                // has not judged it must not read as if none had (CLIENT-4).
                (Err(status), Some(fault))
                    if !fault.is_verdict() && (!fault.is_before_judging() || !last.is_empty()) =>
                {
                    last = format!("`{}`: {}", endpoint.name, fault::describe(&status));
                    tracing::warn!("a validator could not answer: {last}");
                }
                (answer, _) => {
                    inner.preferred.store(index, Ordering::Relaxed);
                    return answer;
                }
            }
        }
        match behind {
            Some(status) if last.is_empty() => Err(status),
            _ => Err(status::undecided(&format!("no validator answered; last {last}"))),
        }
    }

    fn local(&self) -> RegionStatus {
        let inner = &*self.0;
        let (raft, extensions) = (inner.ring.status(), inner.ring.extensions());
        let replica = CertifiedReplica::of(&extensions).served();
        let bundles = replica.heads().values().map(|head| BundleStatus {
            name: head.name.to_string(),
            version: head.version,
            root: head.root.to_vec().into(),
            entries: head.entries,
            bytes: head.bytes,
        });
        let ring: BTreeSet<_> =
            inner.ring.members().into_iter().map(|member| member.name).collect();
        let lag = |name: &str| {
            let mut lags = raft.lag.iter();
            lags.find(|(member, _)| member.as_str() == name).map_or(0, |(_, lag)| *lag)
        };
        let members = inner.members.iter().map(|(endpoint, channel)| MemberInfo {
            name: endpoint.name.to_string(),
            url: endpoint.url.clone(),
            reachable: channel.is_none(),
            lag: lag(endpoint.name.as_str()),
            outside: !ring.is_empty() && !ring.contains(endpoint.name.as_str()),
        });
        // Without contact to a quorum, the leader that this member knows may have been deposed.
        let leader = raft.leader.filter(|_| inner.ring.in_touch());
        let certified = replica.certified_time();
        let age = Timestamp(clock::now()).since(certified);
        let refusals = inner.refusals.counts().into_iter();
        let selected = inner.reports.newest();
        RegionStatus {
            region: inner.region.clone(),
            member: inner.ring.name().to_string(),
            leader: leader.map(|leader| leader.to_string()).unwrap_or_default(),
            term: raft.term,
            log_index: raft.log_index,
            applied_index: raft.applied_index,
            height: replica.height(),
            time_unix_ns: certified.0,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            upstream_connected: inner.upstream_streams.load(Ordering::Relaxed) > 0,
            bundles: bundles.collect(),
            members: members.collect(),
            reports: selected.reports.into_iter().map(|report| report.bytes.into()).collect(),
            reports_left_out: selected.left_out as u64,
            refusals: refusals.map(|(rule, count)| (rule.to_owned(), count)).collect(),
            connected_edges: inner.reports.connected(&inner.region),
            recoveries: inner.ring.read(|keys| keys.recoveries().map(recovery).collect()),
            snapshots: inner.snapshots.as_ref().map(|watched| watched.borrow().to_wire()),
            errors: inner.ring.errors(),
            alarms: inner.ring.alarms().into_iter().map(ring_alarm).collect(),
        }
    }

    /// The statuses of the other members that answer within [`STATUS_TIMEOUT`].
    async fn ask_members(&self) -> Vec<RegionStatus> {
        let ask = |channel: &Channel| {
            let mut client =
                ControlClient::new(channel.clone()).max_decoding_message_size(STATUS_BYTES_MAX);
            async move {
                let asked = client.status(StatusRequest { local_only: true });
                match timeout(STATUS_TIMEOUT, asked).await.ok()?.ok()?.into_inner().tier? {
                    Tier::Region(status) => Some(status),
                    Tier::Validator(_) => None,
                }
            }
        };
        let channels = self.0.members.iter().filter_map(|(_, channel)| channel.as_ref());
        join_all(channels.map(ask)).await.into_iter().flatten().collect()
    }
}

fn ring_alarm((kind, member): (AlarmKind, String)) -> RingAlarm {
    let kind = match kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    };
    RingAlarm { kind: kind.to_owned(), member }
}

fn recovery(record: &RecoveryRecord) -> RecoveryInfo {
    RecoveryInfo {
        kind: kind_name(record.kind).to_owned(),
        epoch: record.epoch,
        kept: record.kept,
        leap: record.leap,
        trusted: record.trusted.clone(),
        lost: record.lost.clone(),
        reason: record.reason.clone(),
        signatures: record.signature.clone().into(),
    }
}

/// The word for people and scripts.
#[must_use]
pub fn kind_name(kind: RecoveryKind) -> &'static str {
    match kind {
        RecoveryKind::Restored => "restored",
        RecoveryKind::Forced => "forced",
    }
}

#[tonic::async_trait]
impl control_server::Control for ControlService {
    type LightBlocksStream = Pin<Box<dyn Stream<Item = Result<LightBlockReply, Status>> + Send>>;

    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitReply>, Status> {
        let peer = caller(&request)?;
        let (request, payer) = (request.into_inner(), Payer::of(&peer));
        let inner = &*self.0;
        let _permit = take_permit(&inner.forwarding, &peer, SUBMITS_AT_ONCE, "submissions")?;
        inner.submissions.charge(&payer, SUBMIT_FLAT_BYTES + request.change.len())?;
        // Each validator that refuses the change charges the region for it, whatever the others say.
        let (judged, sent_on) = (SUBMIT_REFUSED_BYTES, request.change.len());
        let answer = self.forward(|client| {
            let (request, payer) = (request.clone(), &payer);
            async move {
                let mut client = client.max_encoding_message_size(SUBMIT_BYTES_MAX);
                client.submit(request).await.inspect_err(|status| match Fault::of(status) {
                    fault if fault.is_verdict() => inner.submissions.owe(payer, judged),
                    fault if fault.is_behind() => inner.submissions.owe(payer, judged + sent_on),
                    _ => {}
                })
            }
        });
        answer.await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let call = self.0.reads.begin(&caller(&request)?)?;
        let status = if request.into_inner().local_only {
            self.local()
        } else {
            let others = self.ask_members().await;
            merge::merge_status(self.local(), &others)
        };
        let reply = StatusReply { tier: Some(Tier::Region(status)) };
        call.replied(reply.encoded_len());
        Ok(Response::new(reply))
    }

    async fn light_blocks(
        &self,
        request: Request<LightBlocksRequest>,
    ) -> Result<Response<Self::LightBlocksStream>, Status> {
        caller(&request)?;
        let why = "regions keep no blocks; ask a validator";
        Err(status::refused(Code::Unimplemented, &why))
    }

    async fn governance(
        &self,
        request: Request<GovernanceRequest>,
    ) -> Result<Response<GovernanceReply>, Status> {
        let call = self.0.reads.begin(&caller(&request)?)?;
        let ask = |mut client: ControlClient<Channel>| async move {
            client.governance(GovernanceRequest {}).await
        };
        let reply = self.forward(ask).await?;
        call.replied(reply.get_ref().governance.len());
        Ok(reply)
    }
}
