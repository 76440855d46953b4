//! Serves etcd's `Cluster` service: lists, invites, removes, updates and promotes members of the ring.
//!
//! This service checks permissions and addresses. The ring decides whether a change is safe, because only it knows which
//! members are alive.

use std::sync::Arc;

use satrap_proto::etcdserverpb::{self as pb, ResponseHeader, cluster_server};
use satrap_ring_core::{Caller, Refusal};
use tonic::Status;

use super::admin;
use crate::api::{Api, mismatch};
use crate::calls::{AdminReply, AdminRequest, Failure, Unavailable};
use crate::members::Member;
use crate::peer::Credentials;
use crate::status::{refused, unavailable};

/// etcd's `Cluster` service.
#[derive(Clone, Debug)]
pub struct ClusterService {
    api: Arc<Api>,
}

impl ClusterService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>) -> Self {
        Self { api }
    }

    /// The header of every answer here, without a revision, as in etcd.
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: 0, ..self.api.backend.header_now() })
    }

    /// The members of the ring, and those that are invited and have not joined. The invitations come from the applied
    /// state, because this member's view of the ring may be older than an invitation that was acknowledged.
    fn members(&self) -> Vec<Member> {
        let backend = &self.api.backend;
        let mut members = backend.status().members.clone();
        members.retain(|member| !member.name.is_empty());
        let invited = backend.inspect(|keyspace| {
            let invited = keyspace.members().invited();
            let unseen = invited.filter(|(id, _)| members.iter().all(|member| member.id != *id));
            let invited = unseen.map(|(id, invitation)| Member {
                id,
                peer_urls: invitation.peer_urls.clone(),
                is_learner: invitation.learner,
                ..Member::default()
            });
            invited.collect::<Vec<_>>()
        });
        members.extend(invited);
        members.sort_by_key(|member| member.id);
        members
    }

    /// Invites a member. If the call times out, looks for the invitation in the applied state: the leader may have
    /// committed it although its answer did not arrive.
    async fn invite(
        &self,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(Member, Vec<Member>), Status> {
        let add = AdminRequest::AddMember { peer_urls: peer_urls.clone(), is_learner };
        match self.api.backend.admin(add).await {
            Ok(AdminReply::Added(member, members)) => Ok((member, members)),
            Ok(other) => Err(mismatch(&other)),
            Err(Failure::Unavailable(Unavailable::Timeout)) => {
                self.api.linearizable().await?;
                let members = self.members();
                let mut invited = members.iter().filter(|member| member.name.is_empty());
                let added = invited.find(|member| member.peer_urls == peer_urls).cloned();
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
        self.api.check_admin(caller)?;
        match self.api.backend.admin(request.clone()).await? {
            AdminReply::Members(_) => {}
            other => return Err(mismatch(&other)),
        }
        // Wait until this member has applied the change too. A failed wait is no failure of the change, and a member
        // that removed itself must not wait: it may never apply the change.
        if request != AdminRequest::RemoveMember(self.api.backend.identity().member_id) {
            let _ = self.api.linearizable().await;
        }
        Ok(to_pb(changed(self.members(), request)))
    }
}

/// The members after this change, even if this member's view of the ring is older.
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
        self.api.admit(request.metadata().as_ref())?;
        // As in etcd, bad addresses are refused before permissions are checked.
        let peer_urls = admin::peer_urls(&request.get_ref().peer_ur_ls)
            .ok_or_else(|| refused(&Refusal::MemberBadUrls))?;
        let caller = self.api.identify(&Credentials::of(&request))?;
        self.api.check_admin(&caller)?;
        let (member, members) = self.invite(peer_urls, request.get_ref().is_learner).await?;
        let (member, members) = (Some(member_to_pb(member)), to_pb(members));
        Ok(pb::MemberAddResponse { header: self.header(), member, members }.into())
    }

    async fn member_remove(
        &self,
        request: tonic::Request<pb::MemberRemoveRequest>,
    ) -> Result<tonic::Response<pb::MemberRemoveResponse>, Status> {
        let caller = self.api.caller(&request)?;
        let remove = AdminRequest::RemoveMember(request.into_inner().id);
        let members = self.members_after(&caller, remove).await?;
        Ok(pb::MemberRemoveResponse { header: self.header(), members }.into())
    }

    async fn member_update(
        &self,
        request: tonic::Request<pb::MemberUpdateRequest>,
    ) -> Result<tonic::Response<pb::MemberUpdateResponse>, Status> {
        let caller = self.api.caller(&request)?;
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        self.api.check_admin(&caller)?;
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
        let caller = self.api.caller(&request)?;
        if request.get_ref().linearizable {
            self.api.linearizable().await?;
        }
        self.api.check_named(&caller)?;
        let members = to_pb(self.members());
        Ok(pb::MemberListResponse { header: self.header(), members }.into())
    }

    async fn member_promote(
        &self,
        request: tonic::Request<pb::MemberPromoteRequest>,
    ) -> Result<tonic::Response<pb::MemberPromoteResponse>, Status> {
        let caller = self.api.caller(&request)?;
        let promote = AdminRequest::PromoteMember(request.into_inner().id);
        let members = self.members_after(&caller, promote).await?;
        Ok(pb::MemberPromoteResponse { header: self.header(), members }.into())
    }
}
