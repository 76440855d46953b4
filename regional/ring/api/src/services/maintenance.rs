//! Serves etcd's `Maintenance` service: alarms, status, defragmentation, hashes, snapshots and transfer of leadership.
//!
//! Only administrators may make most of these calls: a snapshot or a hash reveals every key, and other calls cost this
//! member much work. Status and the list of alarms are for every authenticated caller.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use satrap_proto::etcdserverpb::{self as pb, maintenance_server};
use satrap_ring_core::alarm::{AlarmKind, AlarmMember, AlarmRequest};
use satrap_ring_core::{Refusal, Request, Response};
use sha2::{Digest, Sha256};
use tonic::Status;

use super::{ETCD_CLUSTER_VERSION, ETCD_VERSION, admin};
use crate::api::{Answered, Api, mismatch};
use crate::calls::{AdminReply, AdminRequest, Failure, SnapshotStream, Unavailable};
use crate::limits::SNAPSHOT_MESSAGE_BYTES_MAX;
use crate::peer::Credentials;
use crate::status::{refused, unavailable};

/// etcd's client accepts a snapshot file as complete if its size is a multiple of this, plus the bytes of a SHA-256.
const SNAPSHOT_UNIT_BYTES: u64 = 512;

/// The hash of an empty keyspace. Not 0, because JSON leaves out a field that is 0.
const HASH_OF_NOTHING: u32 = 0x5a7a_9000;

/// etcd's `Maintenance` service.
#[derive(Clone, Debug)]
pub struct MaintenanceService {
    api: Arc<Api>,
}

impl MaintenanceService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>) -> Self {
        Self { api }
    }

    /// Fails unless the caller is an administrator.
    fn admin<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        let caller = self.api.caller(request)?;
        Ok(self.api.check_admin(&caller)?)
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.api.backend.header_now())
    }

    async fn done(&self, request: AdminRequest) -> Result<(), Status> {
        match self.api.backend.admin(request).await? {
            AdminReply::Done => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    async fn list_alarms(&self, kind: pb::AlarmType) -> Result<pb::AlarmResponse, Status> {
        self.api.linearizable().await?;
        let alarms = self
            .api
            .backend
            .inspect(|keyspace| keyspace.alarms().list(kind_of(kind)).map(alarm_to_pb).collect());
        Ok(pb::AlarmResponse { header: self.header(), alarms })
    }

    fn status_errors(&self) -> Vec<String> {
        let ring = self.api.backend.status();
        let leaderless = (ring.leader == 0).then(|| Unavailable::NoLeader.to_string());
        let alarms = self.api.backend.inspect(|keyspace| {
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

/// etcd's answer to an unknown kind of alarm or action.
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
    /// Bytes of the padded snapshot that are still to be sent.
    remaining: u64,
    /// The rest of the chunk that is being sent.
    chunk: Bytes,
    /// The digest of all bytes so far; `None` once it was sent.
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
                None => return Err(wrong_size("fewer")),
            };
        }
        let size = self.chunk.len().min(SNAPSHOT_MESSAGE_BYTES_MAX);
        let blob = self.chunk.split_to(size);
        let left = self.remaining.checked_sub(size as u64);
        self.remaining = left.ok_or_else(|| wrong_size("more"))?;
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

fn wrong_size(comparison: &str) -> Status {
    Status::data_loss(format!(
        "satrap: the snapshot has {comparison} bytes than were announced; save it again"
    ))
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
        let caller = self.api.caller(&request)?;
        let pb::AlarmRequest { action, member_id, alarm } = request.into_inner();
        let action = AlarmAction::try_from(action);
        match action {
            Ok(AlarmAction::Get) => self.api.check_named(&caller)?,
            _ => self.api.check_admin(&caller)?,
        }
        let kind = pb::AlarmType::try_from(alarm).map_err(|_| unknown_method())?;
        let target = kind_of(kind).map(|kind| AlarmMember { kind, member: member_id });
        let change = match (action, target) {
            (Ok(AlarmAction::Get), _) => return Ok(self.list_alarms(kind).await?.into()),
            (Ok(AlarmAction::Activate), Some(alarm)) => AlarmRequest::Activate(alarm),
            (Ok(AlarmAction::Deactivate), Some(alarm)) => AlarmRequest::Deactivate(alarm),
            // As in etcd, a change without a kind of alarm succeeds and changes nothing.
            (Ok(_), None) => {
                return Ok(pb::AlarmResponse { header: self.header(), alarms: Vec::new() }.into());
            }
            (Err(_), _) => return Err(unknown_method()),
        };
        match self.api.propose(caller, Request::Alarm(change)).await? {
            Answered { response: Response::Alarms { alarms, .. }, header, .. } => {
                let alarms = alarms.into_iter().map(alarm_to_pb).collect();
                Ok(pb::AlarmResponse { header: Some(header), alarms }.into())
            }
            other => Err(mismatch(&other.response)),
        }
    }

    async fn status(
        &self,
        request: tonic::Request<pb::StatusRequest>,
    ) -> Result<tonic::Response<pb::StatusResponse>, Status> {
        self.api.check_leader(request.metadata().as_ref())?;
        let caller = self.api.identify(&Credentials::of(&request))?;
        self.api.check_named(&caller)?;
        let backend = &self.api.backend;
        let (ring, mark) = (backend.status(), backend.mark());
        let (sizes, quota) = backend
            .inspect(|keyspace| (keyspace.store().sizes(), keyspace.quotas().total_bytes_max()));
        Ok(pb::StatusResponse {
            header: self.header(),
            version: ETCD_VERSION.to_owned(),
            // The size in use is the number that the quota limits, history included; the size on disk may be smaller or
            // larger. As in etcd it is never 0, because monitoring divides by it.
            db_size: saturating(ring.disk_bytes.max(sizes.resident_bytes)),
            db_size_in_use: saturating(sizes.held_bytes.max(1)),
            db_size_quota: saturating(quota),
            leader: ring.leader,
            raft_index: ring.log_index.max(mark.index),
            raft_term: ring.term,
            raft_applied_index: mark.index,
            errors: self.status_errors(),
            is_learner: self.api.is_learner(),
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
            self.api.backend.inspect(|keyspace| (keyspace.digest(), keyspace.store().revision()));
        let header = Some(self.api.backend.header_at(revision));
        let [a, b, c, d, ..] = digest.0;
        Ok(pb::HashResponse { header, hash: u32::from_be_bytes([a, b, c, d]) }.into())
    }

    async fn hash_kv(
        &self,
        request: tonic::Request<pb::HashKvRequest>,
    ) -> Result<tonic::Response<pb::HashKvResponse>, Status> {
        self.admin(&request)?;
        let asked = request.into_inner().revision;
        let hashed = self.api.backend.inspect(|keyspace| {
            Ok((keyspace.store().hash_kv(asked)?, keyspace.store().revision()))
        });
        let (hash, revision) = hashed.map_err(Failure::Refused)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "etcd's field has 32 bits, and a hash is compared with those of other members only"
        )]
        let short = hash.hash as u32;
        Ok(pb::HashKvResponse {
            header: Some(self.api.backend.header_at(revision)),
            hash: HASH_OF_NOTHING.wrapping_add(short),
            compact_revision: hash.compacted,
            // As in etcd, which returns a negative revision unchanged.
            hash_revision: if asked < 0 { asked } else { hash.revision },
        }
        .into())
    }

    type SnapshotStream = Snapshots;

    async fn snapshot(
        &self,
        request: tonic::Request<pb::SnapshotRequest>,
    ) -> Result<tonic::Response<Snapshots>, Status> {
        // As in etcd, a learner serves snapshots too, so there is no check for a voter.
        self.api.check_leader(request.metadata().as_ref())?;
        let caller = self.api.identify(&Credentials::of(&request))?;
        self.api.check_admin(&caller)?;
        match self.api.backend.admin(AdminRequest::Snapshot).await? {
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
        let ring = self.api.backend.status();
        if ring.leader != self.api.backend.identity().member_id {
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
                // Satrap has no formats of earlier etcd versions that it could go back to.
                Err(Status::invalid_argument(match admin::is_version(&version) {
                    true => "etcdserver: invalid downgrade target version",
                    false => "etcdserver: wrong downgrade target version format",
                }))
            }
            // As in etcd, cancelling succeeds although no downgrade is under way.
            Ok(DowngradeAction::Cancel) => {
                let version = ETCD_CLUSTER_VERSION.to_owned();
                Ok(pb::DowngradeResponse { header: self.header(), version }.into())
            }
            Err(_) => Err(unknown_method()),
        }
    }
}
