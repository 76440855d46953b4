//! Members of the ring, as etcd's clients list and change them.
//!
//! Who may do it and whether the addresses are any is decided here; whether the ring can afford it is
//! decided by the ring, which alone knows who is alive.

use satrap_proto::etcdserverpb::{self as pb, ResponseHeader, cluster_server};
use satrap_regional_core::{Caller, Refusal};
use tonic::Status;

use super::admin;
use super::gate::{Gate, mismatch};
use crate::backend::{AdminReply, AdminRequest, Failure, Member, Unavailable};
use crate::status::{refused, unavailable};

/// etcd's `Cluster` service.
#[derive(Clone, Debug)]
pub struct ClusterService {
    gate: Gate,
}

impl ClusterService {
    /// For callers that pass this gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }

    /// What every answer here starts with; etcd names no revision, for no key is concerned.
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: 0, ..self.gate.backend().header_now() })
    }

    /// Those in the ring, and those that are expected. The latter as of now: what this member sees
    /// of the ring may be a moment older than an invitation that was already answered.
    fn members(&self) -> Vec<Member> {
        let backend = self.gate.backend();
        let mut members = backend.status().members.clone();
        members.retain(|member| !member.name.is_empty());
        let expected = backend.read(|keyspace| {
            let invited = keyspace.members().invited();
            let unseen = invited.filter(|(id, _)| members.iter().all(|member| member.id != *id));
            let expected = unseen.map(|(id, invitation)| Member {
                id,
                peer_urls: invitation.peer_urls.clone(),
                is_learner: invitation.learner,
                ..Member::default()
            });
            expected.collect::<Vec<_>>()
        });
        members.extend(expected);
        members.sort_by_key(|member| member.id);
        members
    }

    /// Expects a member. If it is not known whether the ring does, looks for the invitation: the
    /// leader may have answered before this member applied it.
    async fn invite(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(Member, Vec<Member>), Status> {
        let add = AdminRequest::AddMember { peer_urls: peer_urls.clone(), is_learner };
        match self.gate.backend().admin(add).await {
            Ok(AdminReply::Added(member, members)) => Ok((member, members)),
            Ok(other) => Err(mismatch(&other)),
            Err(Failure::Unavailable(Unavailable::Timeout)) => {
                self.gate.fresh().await?;
                let members = self.members();
                let mut expected = members.iter().filter(|member| member.name.is_empty());
                let added = expected.find(|member| member.peer_urls == peer_urls).cloned();
                Ok((added.ok_or_else(|| unavailable(Unavailable::Timeout))?, members))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn members_after(
        &self,
        caller: &Caller,
        request: AdminRequest,
    ) -> Result<Vec<pb::Member>, Status> {
        self.gate.admin(caller)?;
        match self.gate.backend().admin(request.clone()).await? {
            AdminReply::Members(_) => {}
            other => return Err(mismatch(&other)),
        }
        // The leader may have done it before this member applied it. It is done also if that cannot
        // be waited for, and a member that removed itself must not wait.
        if request != AdminRequest::RemoveMember(self.gate.backend().identity().member_id) {
            let _ = self.gate.fresh().await;
        }
        Ok(to_pb(changed(self.members(), request)))
    }
}

/// The members with what was changed, whatever this member sees of the ring yet.
fn changed(mut members: Vec<Member>, by: AdminRequest) -> Vec<Member> {
    match by {
        AdminRequest::RemoveMember(gone) => members.retain(|member| member.id != gone),
        AdminRequest::PromoteMember(voter) => {
            let promoted = members.iter_mut().filter(|member| member.id == voter);
            promoted.for_each(|member| member.is_learner = false);
        }
        AdminRequest::UpdateMember { id, peer_urls } => {
            let updated = members.iter_mut().find(|member| member.id == id);
            updated.into_iter().for_each(|member| member.peer_urls.clone_from(&peer_urls));
        }
        _ => {}
    }
    members
}

fn member_to_pb(member: Member) -> pb::Member {
    let Member { id, name, peer_urls, client_urls, is_learner } = member;
    pb::Member { id, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner }
}

fn to_pb(members: Vec<Member>) -> Vec<pb::Member> {
    members.into_iter().map(member_to_pb).collect()
}

#[tonic::async_trait]
impl cluster_server::Cluster for ClusterService {
    async fn member_add(
        &self,
        request: tonic::Request<pb::MemberAddRequest>,
    ) -> Result<tonic::Response<pb::MemberAddResponse>, Status> {
        self.gate.pass(&request)?;
        // As in etcd, bad addresses are told to anybody.
        let peer_urls = admin::peer_urls(&request.get_ref().peer_ur_ls)
            .ok_or_else(|| refused(&Refusal::MemberBadUrls))?;
        let caller = self.gate.identify(&request)?;
        self.gate.admin(&caller)?;
        let (member, members) = self.invite(peer_urls, request.get_ref().is_learner).await?;
        let (member, members) = (Some(member_to_pb(member)), to_pb(members));
        Ok(pb::MemberAddResponse { header: self.header(), member, members }.into())
    }

    async fn member_remove(
        &self,
        request: tonic::Request<pb::MemberRemoveRequest>,
    ) -> Result<tonic::Response<pb::MemberRemoveResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        let remove = AdminRequest::RemoveMember(request.into_inner().id);
        let members = self.members_after(&caller, remove).await?;
        Ok(pb::MemberRemoveResponse { header: self.header(), members }.into())
    }

    async fn member_update(
        &self,
        request: tonic::Request<pb::MemberUpdateRequest>,
    ) -> Result<tonic::Response<pb::MemberUpdateResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        self.gate.admin(&caller)?;
        let known = self.members().iter().any(|member| member.id == id);
        // etcd takes any text here and breaks its own member by it.
        let peer_urls = match admin::peer_urls(&peer_ur_ls) {
            Some(urls) => urls,
            None if known => return Err(refused(&Refusal::MemberBadUrls)),
            None => return Err(refused(&Refusal::MemberNotFound)),
        };
        let update = AdminRequest::UpdateMember { id, peer_urls };
        let members = self.members_after(&caller, update).await?;
        Ok(pb::MemberUpdateResponse { header: self.header(), members }.into())
    }

    async fn member_list(
        &self,
        request: tonic::Request<pb::MemberListRequest>,
    ) -> Result<tonic::Response<pb::MemberListResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        if request.get_ref().linearizable {
            self.gate.fresh().await?;
        }
        self.gate.somebody(&caller)?;
        let members = to_pb(self.members());
        Ok(pb::MemberListResponse { header: self.header(), members }.into())
    }

    async fn member_promote(
        &self,
        request: tonic::Request<pb::MemberPromoteRequest>,
    ) -> Result<tonic::Response<pb::MemberPromoteResponse>, Status> {
        let caller = self.gate.caller(&request)?;
        let promote = AdminRequest::PromoteMember(request.into_inner().id);
        let members = self.members_after(&caller, promote).await?;
        Ok(pb::MemberPromoteResponse { header: self.header(), members }.into())
    }
}
