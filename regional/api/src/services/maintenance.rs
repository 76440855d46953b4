//! What operators and their monitoring ask about one member.
//!
//! Most of it needs an administrator, for two reasons: a snapshot or a digest tells about every key,
//! and the rest is work that an attacker could order.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use satrap_proto::etcdserverpb::{self as pb, maintenance_server};
use satrap_regional_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_regional_core::{Refusal, Request, Response};
use sha2::{Digest, Sha256};
use tonic::Status;

use super::gate::{Gate, mismatch};
use super::{ETCD_CLUSTER_VERSION, ETCD_VERSION, admin};
use crate::backend::{AdminReply, AdminRequest, SnapshotStream, Unavailable};
use crate::limits::SNAPSHOT_MESSAGE_BYTES_MAX;
use crate::status::{refused, unavailable};

/// etcd's client takes a file for whole if this much, and a digest, is its size modulo this.
const SNAPSHOT_UNIT_BYTES: u64 = 512;

/// What an empty keyspace hashes to. Any number would do that is not 0, which JSON leaves out.
const HASH_OF_NOTHING: u32 = 0x5a7a_9000;

/// etcd's `Maintenance` service.
#[derive(Clone, Debug)]
pub struct MaintenanceService {
    gate: Gate,
}

impl MaintenanceService {
    /// For callers that pass this gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }

    /// Lets pass who is an administrator.
    fn admin<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        let caller = self.gate.caller(request)?;
        self.gate.admin(&caller)
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.gate.backend().header_now())
    }

    async fn done(&self, request: AdminRequest) -> Result<(), Status> {
        match self.gate.backend().admin(request).await? {
            AdminReply::Done => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    async fn list_alarms(&self, kind: pb::AlarmType) -> Result<pb::AlarmResponse, Status> {
        self.gate.fresh().await?;
        let alarms = self.gate.check(|keyspace| {
            Ok(keyspace.alarms().list(kind_of(kind)).map(alarm_to_pb).collect())
        })?;
        Ok(pb::AlarmResponse { header: self.header(), alarms })
    }

    fn status_errors(&self) -> Vec<String> {
        let ring = self.gate.backend().status();
        let leaderless = (ring.leader == 0).then(|| Unavailable::NoLeader.to_string());
        let alarms = self.gate.backend().read(|keyspace| {
            let alarms = keyspace.alarms().list(None);
            let text = |alarm: AlarmMember| {
                let name = alarm_to_pb(alarm).alarm().as_str_name();
                format!("memberID:{} alarm:{name}", alarm.member)
            };
            alarms.map(text).collect::<Vec<_>>()
        });
        leaderless.into_iter().chain(alarms).chain(ring.errors.iter().cloned()).collect()
    }
}

fn kind_of(kind: pb::AlarmType) -> Option<AlarmKind> {
    match kind {
        pb::AlarmType::None => None,
        pb::AlarmType::Nospace => Some(AlarmKind::NoSpace),
        pb::AlarmType::Corrupt => Some(AlarmKind::Corrupt),
    }
}

fn alarm_to_pb(alarm: AlarmMember) -> pb::AlarmMember {
    let kind = match alarm.kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
    };
    pb::AlarmMember { member_id: alarm.member, alarm: kind.into() }
}

/// etcd's answer to what it does not know; not one of the errors its clients compare with.
fn unknown_method() -> Status {
    Status::unknown("etcdserver: unknown method")
}

fn saturating(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The messages of a snapshot: its chunks, zeros up to a whole unit, and the SHA-256 of all that.
fn snapshot_messages(
    snapshot: SnapshotStream,
) -> impl Stream<Item = Result<pb::SnapshotResponse, Status>> + Send {
    let padded = snapshot.total_bytes.next_multiple_of(SNAPSHOT_UNIT_BYTES);
    let sending =
        Sending { snapshot, remaining: padded, chunk: Bytes::new(), digest: Some(Sha256::new()) };
    stream::unfold(Some(sending), |sending| async {
        let mut sending = sending?;
        match sending.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(sending))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    })
}

struct Sending {
    snapshot: SnapshotStream,
    /// Of the padded snapshot.
    remaining: u64,
    /// Not yet sent.
    chunk: Bytes,
    /// Until it was sent.
    digest: Option<Sha256>,
}

impl Sending {
    async fn next(&mut self) -> Result<Option<pb::SnapshotResponse>, Status> {
        if self.remaining == 0 {
            let digest = self.digest.take().map(|digest| digest.finalize().to_vec().into());
            return Ok(digest.map(|blob| self.message(blob)));
        }
        while self.chunk.is_empty() {
            self.chunk = match self.snapshot.chunks.recv().await {
                Some(chunk) => chunk.map_err(unavailable)?,
                None if self.remaining < SNAPSHOT_UNIT_BYTES => {
                    vec![0; usize::try_from(self.remaining).unwrap_or_default()].into()
                }
                None => return Err(Status::data_loss("satrap: the snapshot ended before its end")),
            };
        }
        let size = self.chunk.len().min(SNAPSHOT_MESSAGE_BYTES_MAX);
        let blob = self.chunk.split_to(size);
        let left = self.remaining.checked_sub(size as u64);
        self.remaining = left.ok_or_else(|| Status::data_loss("satrap: the snapshot grew"))?;
        if let Some(digest) = &mut self.digest {
            digest.update(&blob);
        }
        Ok(Some(self.message(blob)))
    }

    fn message(&self, blob: Bytes) -> pb::SnapshotResponse {
        let version = ETCD_VERSION.to_owned();
        pb::SnapshotResponse { header: None, remaining_bytes: self.remaining, blob, version }
    }
}

/// The messages of one snapshot.
type Snapshots = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

#[tonic::async_trait]
impl maintenance_server::Maintenance for MaintenanceService {
    async fn alarm(
        &self,
        request: tonic::Request<pb::AlarmRequest>,
    ) -> Result<tonic::Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let caller = self.gate.caller(&request)?;
        let pb::AlarmRequest { action, member_id, alarm } = request.into_inner();
        let action = AlarmAction::try_from(action);
        match action {
            Ok(AlarmAction::Get) => self.gate.somebody(&caller)?,
            _ => self.gate.admin(&caller)?,
        }
        let kind = pb::AlarmType::try_from(alarm).map_err(|_| unknown_method())?;
        let target = kind_of(kind).map(|kind| AlarmMember { kind, member: member_id });
        let change = match (action, target) {
            (Ok(AlarmAction::Get), _) => return Ok(self.list_alarms(kind).await?.into()),
            (Ok(AlarmAction::Activate), Some(alarm)) => AlarmRequest::Activate(alarm),
            (Ok(AlarmAction::Deactivate), Some(alarm)) => AlarmRequest::Deactivate(alarm),
            // As in etcd, to change no kind of alarm is no mistake and changes nothing.
            (Ok(_), None) => {
                return Ok(pb::AlarmResponse { header: self.header(), alarms: Vec::new() }.into());
            }
            (Err(_), _) => return Err(unknown_method()),
        };
        match self.gate.propose(caller, Request::Alarm(change)).await? {
            (Response::Alarms { alarms, .. }, header) => {
                let alarms = alarms.into_iter().map(alarm_to_pb).collect();
                Ok(pb::AlarmResponse { header: Some(header), alarms }.into())
            }
            (other, _) => Err(mismatch(&other)),
        }
    }

    async fn status(
        &self,
        request: tonic::Request<pb::StatusRequest>,
    ) -> Result<tonic::Response<pb::StatusResponse>, Status> {
        self.gate.pass_at_learner(&request)?;
        let caller = self.gate.identify(&request)?;
        self.gate.somebody(&caller)?;
        let backend = self.gate.backend();
        let (ring, mark) = (backend.status(), backend.mark());
        let (sizes, quota) = backend
            .read(|keyspace| (keyspace.store().sizes(), keyspace.quotas().total_bytes_max()));
        Ok(pb::StatusResponse {
            header: self.header(),
            version: ETCD_VERSION.to_owned(),
            // In use is what a quota counts, history included; the disk may need less or more. As in
            // etcd it is never nothing: monitoring divides by it.
            db_size: saturating(ring.disk_bytes.max(sizes.resident_bytes)),
            db_size_in_use: saturating(sizes.held_bytes.max(1)),
            db_size_quota: saturating(quota),
            leader: ring.leader,
            raft_index: ring.log_index.max(mark.index),
            raft_term: ring.term,
            raft_applied_index: mark.index,
            errors: self.status_errors(),
            is_learner: self.gate.is_learner(),
            storage_version: ETCD_VERSION.to_owned(),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }
        .into())
    }

    async fn defragment(
        &self,
        request: tonic::Request<pb::DefragmentRequest>,
    ) -> Result<tonic::Response<pb::DefragmentResponse>, Status> {
        self.admin(&request)?;
        self.done(AdminRequest::Defragment).await?;
        Ok(pb::DefragmentResponse { header: None }.into())
    }

    async fn hash(
        &self,
        request: tonic::Request<pb::HashRequest>,
    ) -> Result<tonic::Response<pb::HashResponse>, Status> {
        self.admin(&request)?;
        let (digest, revision) =
            self.gate.backend().read(|keyspace| (keyspace.digest(), keyspace.store().revision()));
        let header = Some(self.gate.backend().header_at(revision));
        let [a, b, c, d, ..] = digest.0;
        Ok(pb::HashResponse { header, hash: u32::from_be_bytes([a, b, c, d]) }.into())
    }

    async fn hash_kv(
        &self,
        request: tonic::Request<pb::HashKvRequest>,
    ) -> Result<tonic::Response<pb::HashKvResponse>, Status> {
        self.admin(&request)?;
        let asked = request.into_inner().revision;
        let (hash, revision) = self.gate.check(|keyspace| {
            Ok((keyspace.store().hash_kv(asked)?, keyspace.store().revision()))
        })?;
        // Truncated: etcd's field has 32 bits, and members compare with members only.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        let short = hash.hash as u32;
        Ok(pb::HashKvResponse {
            header: Some(self.gate.backend().header_at(revision)),
            hash: HASH_OF_NOTHING.wrapping_add(short),
            compact_revision: hash.compacted,
            // As in etcd, which takes what is negative as it is.
            hash_revision: if asked < 0 { asked } else { hash.revision },
        }
        .into())
    }

    type SnapshotStream = Snapshots;

    async fn snapshot(
        &self,
        request: tonic::Request<pb::SnapshotRequest>,
    ) -> Result<tonic::Response<Snapshots>, Status> {
        // As in etcd, a learner may be copied too.
        self.gate.pass_at_learner(&request)?;
        let caller = self.gate.identify(&request)?;
        self.gate.admin(&caller)?;
        match self.gate.backend().admin(AdminRequest::Snapshot).await? {
            AdminReply::Snapshot(snapshot) => {
                Ok(tonic::Response::new(snapshot_messages(snapshot).boxed()))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn move_leader(
        &self,
        request: tonic::Request<pb::MoveLeaderRequest>,
    ) -> Result<tonic::Response<pb::MoveLeaderResponse>, Status> {
        self.admin(&request)?;
        let ring = self.gate.backend().status();
        if ring.leader != self.gate.backend().identity().member_id {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let target = request.into_inner().target_id;
        let known = ring.members.iter().any(|member| member.id == target && !member.is_learner);
        if !known {
            return Err(refused(&Refusal::BadLeaderTransferee));
        }
        self.done(AdminRequest::MoveLeader(target)).await?;
        Ok(pb::MoveLeaderResponse { header: None }.into())
    }

    async fn downgrade(
        &self,
        request: tonic::Request<pb::DowngradeRequest>,
    ) -> Result<tonic::Response<pb::DowngradeResponse>, Status> {
        use pb::downgrade_request::DowngradeAction;
        self.admin(&request)?;
        let pb::DowngradeRequest { action, version } = request.into_inner();
        match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
                // The formats of etcd's versions are not ours, so there is nothing to go back to.
                Err(Status::invalid_argument(match admin::is_version(&version) {
                    true => "etcdserver: invalid downgrade target version",
                    false => "etcdserver: wrong downgrade target version format",
                }))
            }
            // etcd says that there is none in a log line only.
            Ok(DowngradeAction::Cancel) => {
                let version = ETCD_CLUSTER_VERSION.to_owned();
                Ok(pb::DowngradeResponse { header: self.header(), version }.into())
            }
            Err(_) => Err(unknown_method()),
        }
    }
}
