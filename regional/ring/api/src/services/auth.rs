//! Serves etcd's `Auth` service: users, roles, permissions and tokens.
//!
//! Each change is a request in the log, which the core judges when it is applied. Passwords and the text of tokens stay
//! in this module: the log holds only hashes of passwords and digests of tokens.

use std::sync::Arc;

use satrap_proto::authpb;
use satrap_proto::etcdserverpb::{self as pb, ResponseHeader, auth_server};
use satrap_ring_core::auth::{AuthRequest, Permission, PermissionKind, TokenDigest};
use satrap_ring_core::kv::request::KeyRange;
use satrap_ring_core::{Caller, Keyspace, Refusal, Request};
use satrap_runtime::rng;
use tonic::Status;

use super::Settings;
use super::password::Passwords;
use crate::api::Api;
use crate::calls::Failure;
use crate::peer::Credentials;
use crate::status::refused;

/// Twice the 128 bits that suffice against guessing.
const TOKEN_BYTES: usize = 32;

/// etcd's `Auth` service.
#[derive(Clone, Debug)]
pub struct AuthService {
    api: Arc<Api>,
    passwords: Passwords,
    token_ttl_s: u64,
}

impl AuthService {
    /// The service of this member.
    #[must_use]
    pub fn new(api: Arc<Api>, settings: Settings) -> Self {
        let passwords = Passwords::new(settings.password_cost);
        Self { api, passwords, token_ttl_s: settings.token_ttl_s }
    }

    /// Proposes the change of a request.
    async fn change<T>(
        &self,
        request: tonic::Request<T>,
        change: impl FnOnce(T) -> Result<AuthRequest, Refusal>,
    ) -> Result<Option<ResponseHeader>, Status> {
        let caller = self.api.caller(&request)?;
        let change = change(request.into_inner()).map_err(|refusal| refused(&refusal))?;
        self.apply(caller, change).await
    }

    async fn apply(
        &self,
        caller: Caller,
        change: AuthRequest,
    ) -> Result<Option<ResponseHeader>, Status> {
        Ok(Some(self.api.propose(caller, Request::Auth(change)).await?.header))
    }

    /// Reads users or roles, linearizably.
    async fn read<T, R>(
        &self,
        request: tonic::Request<T>,
        read: impl FnOnce(&Keyspace, &Caller, &T) -> Result<R, Refusal>,
    ) -> Result<(R, Option<ResponseHeader>), Status> {
        self.api.caller(&request)?;
        self.api.linearizable().await?;
        // Once more, because the caller's rights may have changed during the wait.
        let caller = self.api.identify(&Credentials::of(&request))?;
        let answer =
            self.api.backend.inspect(|keyspace| read(keyspace, &caller, request.get_ref()));
        let answer = answer.map_err(Failure::from)?;
        Ok((answer, Some(self.api.backend.header_now())))
    }

    /// Issues a token for a password. If a user changes meanwhile, the password is checked again.
    async fn authenticate(
        &self,
        name: &str,
        password: &str,
    ) -> Result<pb::AuthenticateResponse, Failure> {
        loop {
            self.api.backend.linearizable().await?;
            let stored = self.api.backend.inspect(|keyspace| {
                let found = keyspace.auth().password_hash(name);
                found.map(|(hash, revision)| (hash.to_owned(), revision))
            });
            let (hash, checked_revision) = match stored {
                Ok((hash, revision)) => (Some(hash), revision),
                // The answer must take as long as for a wrong password, or its time would tell which users exist.
                Err(Refusal::AuthFailed) => (None, 0),
                Err(refusal) => return Err(refusal.into()),
            };
            if !self.passwords.verify(password.to_owned(), hash).await? {
                return Err(Refusal::AuthFailed.into());
            }
            let token = new_token();
            let grant = AuthRequest::Authenticate {
                user: name.to_owned(),
                token: TokenDigest::of(&token),
                ttl_s: self.token_ttl_s,
                checked_revision,
            };
            match self.api.propose(Caller::default(), Request::Auth(grant)).await {
                Ok(answer) => {
                    let header = Some(answer.header);
                    return Ok(pb::AuthenticateResponse { header, token });
                }
                Err(Failure::Refused(Refusal::AuthOldRevision)) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Hashes a password for storage.
    async fn hash(&self, password: String) -> Result<String, Status> {
        Ok(self.passwords.hash(password).await?)
    }
}

fn new_token() -> String {
    let mut bytes = [0; TOKEN_BYTES];
    rng::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn permission(permission: authpb::Permission) -> Result<Permission, Refusal> {
    let kind = match authpb::permission::Type::try_from(permission.perm_type) {
        Ok(authpb::permission::Type::Read) => PermissionKind::Read,
        Ok(authpb::permission::Type::Write) => PermissionKind::Write,
        Ok(authpb::permission::Type::Readwrite) => PermissionKind::ReadWrite,
        Err(_) => return Err(Refusal::InvalidAuthMgmt),
    };
    Ok(Permission { kind, range: KeyRange { start: permission.key, end: permission.range_end } })
}

fn permission_to_pb(permission: Permission) -> authpb::Permission {
    let kind = match permission.kind {
        PermissionKind::Read => authpb::permission::Type::Read,
        PermissionKind::Write => authpb::permission::Type::Write,
        PermissionKind::ReadWrite => authpb::permission::Type::Readwrite,
    };
    let KeyRange { start: key, end: range_end } = permission.range;
    authpb::Permission { perm_type: kind.into(), key, range_end }
}

type Response<T> = Result<tonic::Response<T>, Status>;

#[tonic::async_trait]
impl auth_server::Auth for AuthService {
    async fn auth_enable(
        &self,
        request: tonic::Request<pb::AuthEnableRequest>,
    ) -> Response<pb::AuthEnableResponse> {
        let header = self.change(request, |_| Ok(AuthRequest::Enable)).await?;
        Ok(pb::AuthEnableResponse { header }.into())
    }

    async fn auth_disable(
        &self,
        request: tonic::Request<pb::AuthDisableRequest>,
    ) -> Response<pb::AuthDisableResponse> {
        let header = self.change(request, |_| Ok(AuthRequest::Disable)).await?;
        Ok(pb::AuthDisableResponse { header }.into())
    }

    async fn auth_status(
        &self,
        request: tonic::Request<pb::AuthStatusRequest>,
    ) -> Response<pb::AuthStatusResponse> {
        let read = |keyspace: &Keyspace, _: &Caller, _: &_| {
            Ok((keyspace.auth().enabled(), keyspace.auth().revision()))
        };
        let ((enabled, auth_revision), header) = self.read(request, read).await?;
        Ok(pb::AuthStatusResponse { header, enabled, auth_revision }.into())
    }

    async fn authenticate(
        &self,
        request: tonic::Request<pb::AuthenticateRequest>,
    ) -> Response<pb::AuthenticateResponse> {
        self.api.admit(request.metadata().as_ref())?;
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let password = zeroize::Zeroizing::new(password);
        Ok(self.authenticate(&name, &password).await?.into())
    }

    async fn user_add(
        &self,
        request: tonic::Request<pb::AuthUserAddRequest>,
    ) -> Response<pb::AuthUserAddResponse> {
        let caller = self.api.caller(&request)?;
        // Before the hash, because only an administrator may make this member compute one.
        self.api.check_admin(&caller)?;
        let pb::AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        let password = match options.is_some_and(|options| options.no_password) {
            true => None,
            false => Some(self.hash(password).await?),
        };
        let header = self.apply(caller, AuthRequest::UserAdd { name, password }).await?;
        Ok(pb::AuthUserAddResponse { header }.into())
    }

    async fn user_get(
        &self,
        request: tonic::Request<pb::AuthUserGetRequest>,
    ) -> Response<pb::AuthUserGetResponse> {
        let read = |keyspace: &Keyspace, caller: &Caller, asked: &pb::AuthUserGetRequest| {
            keyspace.auth().user_roles(caller, &asked.name).map(<[String]>::to_vec)
        };
        let (roles, header) = self.read(request, read).await?;
        Ok(pb::AuthUserGetResponse { header, roles }.into())
    }

    async fn user_list(
        &self,
        request: tonic::Request<pb::AuthUserListRequest>,
    ) -> Response<pb::AuthUserListResponse> {
        let read = |keyspace: &Keyspace, caller: &Caller, _: &_| {
            keyspace.auth().check_admin(caller)?;
            Ok(keyspace.auth().users().map(str::to_owned).collect())
        };
        let (users, header) = self.read(request, read).await?;
        Ok(pb::AuthUserListResponse { header, users }.into())
    }

    async fn user_delete(
        &self,
        request: tonic::Request<pb::AuthUserDeleteRequest>,
    ) -> Response<pb::AuthUserDeleteResponse> {
        let change =
            |asked: pb::AuthUserDeleteRequest| Ok(AuthRequest::UserDelete { name: asked.name });
        let header = self.change(request, change).await?;
        Ok(pb::AuthUserDeleteResponse { header }.into())
    }

    async fn user_change_password(
        &self,
        request: tonic::Request<pb::AuthUserChangePasswordRequest>,
    ) -> Response<pb::AuthUserChangePasswordResponse> {
        let caller = self.api.caller(&request)?;
        self.api.check_admin(&caller)?;
        let pb::AuthUserChangePasswordRequest { name, password, .. } = request.into_inner();
        // As in etcd, the empty password locks the user out: no guess matches an empty hash.
        let password = match password.is_empty() {
            true => String::new(),
            false => self.hash(password).await?,
        };
        let header = self.apply(caller, AuthRequest::UserChangePassword { name, password }).await?;
        Ok(pb::AuthUserChangePasswordResponse { header }.into())
    }

    async fn user_grant_role(
        &self,
        request: tonic::Request<pb::AuthUserGrantRoleRequest>,
    ) -> Response<pb::AuthUserGrantRoleResponse> {
        let change = |asked: pb::AuthUserGrantRoleRequest| {
            Ok(AuthRequest::UserGrantRole { user: asked.user, role: asked.role })
        };
        let header = self.change(request, change).await?;
        Ok(pb::AuthUserGrantRoleResponse { header }.into())
    }

    async fn user_revoke_role(
        &self,
        request: tonic::Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Response<pb::AuthUserRevokeRoleResponse> {
        let change = |asked: pb::AuthUserRevokeRoleRequest| {
            Ok(AuthRequest::UserRevokeRole { name: asked.name, role: asked.role })
        };
        let header = self.change(request, change).await?;
        Ok(pb::AuthUserRevokeRoleResponse { header }.into())
    }

    async fn role_add(
        &self,
        request: tonic::Request<pb::AuthRoleAddRequest>,
    ) -> Response<pb::AuthRoleAddResponse> {
        let change = |asked: pb::AuthRoleAddRequest| Ok(AuthRequest::RoleAdd { name: asked.name });
        let header = self.change(request, change).await?;
        Ok(pb::AuthRoleAddResponse { header }.into())
    }

    async fn role_get(
        &self,
        request: tonic::Request<pb::AuthRoleGetRequest>,
    ) -> Response<pb::AuthRoleGetResponse> {
        let read = |keyspace: &Keyspace, caller: &Caller, asked: &pb::AuthRoleGetRequest| {
            keyspace.auth().role_permissions(caller, &asked.role)
        };
        let (permissions, header) = self.read(request, read).await?;
        let perm = permissions.into_iter().map(permission_to_pb).collect();
        Ok(pb::AuthRoleGetResponse { header, perm }.into())
    }

    async fn role_list(
        &self,
        request: tonic::Request<pb::AuthRoleListRequest>,
    ) -> Response<pb::AuthRoleListResponse> {
        let read = |keyspace: &Keyspace, caller: &Caller, _: &_| {
            keyspace.auth().check_admin(caller)?;
            Ok(keyspace.auth().roles().map(str::to_owned).collect())
        };
        let (roles, header) = self.read(request, read).await?;
        Ok(pb::AuthRoleListResponse { header, roles }.into())
    }

    async fn role_delete(
        &self,
        request: tonic::Request<pb::AuthRoleDeleteRequest>,
    ) -> Response<pb::AuthRoleDeleteResponse> {
        let change =
            |asked: pb::AuthRoleDeleteRequest| Ok(AuthRequest::RoleDelete { role: asked.role });
        let header = self.change(request, change).await?;
        Ok(pb::AuthRoleDeleteResponse { header }.into())
    }

    async fn role_grant_permission(
        &self,
        request: tonic::Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Response<pb::AuthRoleGrantPermissionResponse> {
        let change = |asked: pb::AuthRoleGrantPermissionRequest| {
            let permission = asked.perm.map(permission).transpose()?;
            Ok(AuthRequest::RoleGrantPermission { name: asked.name, permission })
        };
        let header = self.change(request, change).await?;
        Ok(pb::AuthRoleGrantPermissionResponse { header }.into())
    }

    async fn role_revoke_permission(
        &self,
        request: tonic::Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Response<pb::AuthRoleRevokePermissionResponse> {
        let change = |asked: pb::AuthRoleRevokePermissionRequest| {
            let range = KeyRange { start: asked.key, end: asked.range_end };
            Ok(AuthRequest::RoleRevokePermission { role: asked.role, range })
        };
        let header = self.change(request, change).await?;
        Ok(pb::AuthRoleRevokePermissionResponse { header }.into())
    }
}
