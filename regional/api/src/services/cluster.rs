//! Members of the ring, as etcd's clients list and change them.
//!
//! Who may do it and whether the addresses are any is decided here; whether the ring can afford it is
//! decided by the ring, which alone knows who is alive.

use satrap_proto::etcdserverpb::{self as pb, ResponseHeader, cluster_server};
use satrap_regional_core::{Caller, Refusal};
use tonic::Status;

use super::admin;
use super::gate::{Gate, mismatch};
use crate::backend::{AdminReply, AdminRequest, Member};
use crate::status::refused;

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

    async fn change(&self, caller: &Caller, request: AdminRequest) -> Result<AdminReply, Status> {
        self.gate.admin(caller)?;
        Ok(self.gate.backend().admin(request).await?)
    }

    async fn members_after(
        &self,
        caller: &Caller,
        request: AdminRequest,
    ) -> Result<Vec<pb::Member>, Status> {
        match self.change(caller, request).await? {
            AdminReply::Members(members) => Ok(to_pb(members)),
            other => Err(mismatch(&other)),
        }
    }
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
        let is_learner = request.into_inner().is_learner;
        let add = AdminRequest::AddMember { peer_urls, is_learner };
        match self.change(&caller, add).await? {
            AdminReply::Added(member, members) => Ok(pb::MemberAddResponse {
                header: self.header(),
                member: Some(member_to_pb(member)),
                members: to_pb(members),
            }
            .into()),
            other => Err(mismatch(&other)),
        }
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
        let known = self.gate.backend().status().members.iter().any(|member| member.id == id);
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
        let members = to_pb(self.gate.backend().status().members.clone());
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
