//! Fenced roles: who may act, and the token that proves it to whoever must not obey a former holder.

use bytes::Bytes;
use satrap_host::rng;
use satrap_proto::v1;
use satrap_regional_core::fencing::{FencingToken, GrantRole, ReleaseRole};
use satrap_regional_core::kv::request::LeaseId;
use satrap_regional_core::{Refusal, Request, Response};
use tonic::Status;

use super::read::{served, wait};
use super::{answered, header, header_now};
use crate::api::Api;
use crate::backend::Failure;
use crate::grpc;
use crate::kv::{Answer, decode, propose, try_propose};
use crate::limits::ROLE_NAME_BYTES_MAX;
use crate::peer::Credentials;

/// Makes the caller the holder of a role. That somebody else is, is an answer and not an error.
///
/// # Errors
///
/// What the caller lacks, or why the ring could not.
pub async fn grant_role(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::GrantRoleRequest = decode(message)?;
    check_name(&wanted.role, "role")?;
    check_name(&wanted.holder, "holder")?;
    let (role, holder, ttl_s) = (wanted.role, wanted.holder, wanted.ttl_s);
    let response = loop {
        let grant = GrantRole {
            role: role.clone(),
            holder: holder.clone(),
            ttl_s,
            lease: rng::u64().cast_signed() & i64::MAX,
        };
        match try_propose(api, credentials, bytes, Request::GrantRole(grant)).await? {
            Ok(answer) => {
                let Response::RoleGranted { token, lease, ttl_s, .. } = answer.response else {
                    return Err(answer.mismatch());
                };
                break v1::GrantRoleResponse {
                    header: Some(answered(api, &answer)),
                    granted: true,
                    token: Some(proto(token)),
                    holder,
                    lease,
                    ttl_ms: ttl_s.unsigned_abs().saturating_mul(1000),
                };
            }
            Err(Refusal::RoleHeld { holder, lease, remaining_ms }) => {
                let token =
                    api.backend.read(|keyspace| keyspace.roles().get(&role).map(|r| r.token));
                break v1::GrantRoleResponse {
                    header: Some(header_now(api)),
                    granted: false,
                    token: Some(proto(token.unwrap_or_default())),
                    holder,
                    lease,
                    ttl_ms: remaining_ms,
                };
            }
            // Our number for the lease happened to be in use.
            Err(Refusal::LeaseExists) => {}
            Err(refusal) => return Err(Failure::from(refusal).into()),
        }
    };
    Ok(grpc::frame(&response))
}

/// Keeps a role for another time to live.
///
/// # Errors
///
/// `FailedPrecondition` if the token no longer holds the role.
pub async fn renew_role(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::RenewRoleRequest = decode(message)?;
    let token = core(wanted.token);
    // The lease belongs to one grant of one role for ever, so what is read here cannot become true
    // of another holder before the renewal is applied. If it ended meanwhile, the renewal fails.
    let role = status(api, credentials, &wanted.role)?;
    let lease = match role.held {
        Some(held) if role.token == token => held.lease,
        _ => return Err(Failure::from(Refusal::StaleToken { current: role.token }).into()),
    };
    let renewal = Request::LeaseRenew { id: lease };
    match try_propose(api, credentials, bytes, renewal).await? {
        Ok(answer) => {
            let Response::LeaseRenewed { ttl_s, .. } = answer.response else {
                return Err(answer.mismatch());
            };
            let ttl_ms = ttl_s.unsigned_abs().saturating_mul(1000);
            let header = Some(answered(api, &answer));
            Ok(grpc::frame(&v1::RenewRoleResponse { header, ttl_ms }))
        }
        Err(Refusal::LeaseNotFound) => {
            Err(Failure::from(Refusal::StaleToken { current: role.token }).into())
        }
        Err(refusal) => Err(Failure::from(refusal).into()),
    }
}

/// Gives a role back.
///
/// # Errors
///
/// As [`renew_role`].
pub async fn release_role(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::ReleaseRoleRequest = decode(message)?;
    check_name(&wanted.role, "role")?;
    let release = ReleaseRole { role: wanted.role, token: core(wanted.token) };
    let answer = propose(api, credentials, bytes, Request::ReleaseRole(release)).await?;
    Ok(grpc::frame(&v1::ReleaseRoleResponse { header: Some(answered(api, &answer)) }))
}

/// Who holds a role.
///
/// # Errors
///
/// What the caller lacks, or why the ring could not.
pub async fn role_status(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let wanted: v1::RoleStatusRequest = decode(message)?;
    let point = wait(api, wanted.mode).await?;
    let found = status(api, credentials, &wanted.role)?;
    let response = v1::RoleStatusResponse {
        header: Some(header(api, api.backend.mark().revision, point.term)),
        served: Some(served(point)),
        token: Some(proto(found.token)),
        lease: found.held.as_ref().map_or(0, |held| held.lease),
        ttl_ms: found.held.as_ref().map_or(0, |held| held.remaining_ms),
        holder: found.held.map_or_else(String::new, |held| held.holder),
    };
    Ok(grpc::frame(&response))
}

/// A role as of now.
struct Role {
    token: FencingToken,
    held: Option<Held>,
}

struct Held {
    holder: String,
    lease: LeaseId,
    remaining_ms: u64,
}

fn status(api: &Api, credentials: &Credentials, role: &str) -> Result<Role, Status> {
    check_name(role, "role")?;
    let caller = credentials.caller(&api.backend)?;
    let found =
        api.backend.read_keys(|keyspace| keyspace.role_status(&caller, role, keyspace.now()));
    let found = found.map_err(Failure::from)?;
    let held = found.holder.map(|held| Held {
        holder: held.name,
        lease: held.lease,
        remaining_ms: held.remaining_ms,
    });
    Ok(Role { token: found.token, held })
}

fn check_name(name: &str, what: &str) -> Result<(), Status> {
    match name.len() {
        1..=ROLE_NAME_BYTES_MAX => Ok(()),
        len => Err(Status::invalid_argument(format!(
            "the name of the {what} has {len} bytes; it needs 1 to {ROLE_NAME_BYTES_MAX}"
        ))),
    }
}

fn proto(token: FencingToken) -> v1::FencingToken {
    v1::FencingToken { epoch: token.epoch, counter: token.counter }
}

fn core(token: Option<v1::FencingToken>) -> FencingToken {
    let token = token.unwrap_or_default();
    FencingToken { epoch: token.epoch, counter: token.counter }
}
