//! Fenced roles: grants a role to one holder at a time, with a fencing token by which resources refuse a former
//! holder.

use bytes::Bytes;
use satrap_proto::v1;
use satrap_ring_core::fencing::{GrantRole, ReleaseRole};
use satrap_ring_core::fencing_token::FencingToken;
use satrap_ring_core::kv::request::LeaseId;
use satrap_ring_core::{Refusal, Request, Response};
use satrap_runtime::rng;
use tonic::Status;

use super::read::{served, wait};
use super::{answered, header_now};
use crate::api::{Api, mismatch};
use crate::calls::Failure;
use crate::grpc;
use crate::kv::{Answer, decode};
use crate::limits::ROLE_NAME_BYTES_MAX;
use crate::peer::Credentials;

/// Makes the caller the holder of a role. If another client holds it, the response says so; that is no error.
///
/// # Errors
///
/// The permission that the caller lacks, or why the ring failed.
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
        match api.propose_message(credentials, bytes, Request::GrantRole(grant)).await {
            Ok(answer) => {
                let Response::RoleGranted { token, lease, ttl_s, .. } = answer.response else {
                    return Err(mismatch(&answer.response));
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
            Err(Failure::Refused(Refusal::RoleHeld { holder, lease, remaining_ms })) => {
                let held = api.read(|keyspace| Ok(keyspace.roles().get(&role).map(|r| r.token)));
                let token = held?;
                break v1::GrantRoleResponse {
                    header: Some(header_now(api)),
                    granted: false,
                    token: Some(proto(token.unwrap_or_default())),
                    holder,
                    lease,
                    ttl_ms: remaining_ms,
                };
            }
            // The lease id that this member chose is in use.
            Err(Failure::Refused(Refusal::LeaseExists)) => {}
            Err(failure) => return Err(failure.into()),
        }
    };
    Ok(grpc::frame(&response))
}

/// Renews a role for another TTL.
///
/// # Errors
///
/// `FailedPrecondition` if the token no longer holds the role.
pub async fn renew_role(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::RenewRoleRequest = decode(message)?;
    let token = core(wanted.token);
    // A lease belongs to one grant of one role only, so the renewal cannot reach another holder. If the lease ended
    // meanwhile, the renewal fails.
    let role = status(api, credentials, &wanted.role)?;
    let lease = match role.held {
        Some(held) if role.token == token => held.lease,
        _ => return Err(Failure::from(Refusal::StaleToken { current: role.token }).into()),
    };
    let renewal = Request::LeaseRenew { id: lease };
    match api.propose_message(credentials, bytes, renewal).await {
        Ok(answer) => {
            let Response::LeaseRenewed { ttl_s, .. } = answer.response else {
                return Err(mismatch(&answer.response));
            };
            let ttl_ms = ttl_s.unsigned_abs().saturating_mul(1000);
            let header = Some(answered(api, &answer));
            Ok(grpc::frame(&v1::RenewRoleResponse { header, ttl_ms }))
        }
        Err(Failure::Refused(Refusal::LeaseNotFound)) => {
            Err(Failure::from(Refusal::StaleToken { current: role.token }).into())
        }
        Err(failure) => Err(failure.into()),
    }
}

/// Releases a role.
///
/// # Errors
///
/// As [`renew_role`].
pub async fn release_role(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::ReleaseRoleRequest = decode(message)?;
    check_name(&wanted.role, "role")?;
    let release = ReleaseRole { role: wanted.role, token: core(wanted.token) };
    let answer = api.propose_message(credentials, bytes, Request::ReleaseRole(release)).await?;
    Ok(grpc::frame(&v1::ReleaseRoleResponse { header: Some(answered(api, &answer)) }))
}

/// The holder of a role.
///
/// # Errors
///
/// The permission that the caller lacks, or why the ring failed.
pub async fn role_status(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let wanted: v1::RoleStatusRequest = decode(message)?;
    let point = wait(api, wanted.mode).await?;
    let found = status(api, credentials, &wanted.role)?;
    let response = v1::RoleStatusResponse {
        header: Some(v1::StoreHeader { raft_term: point.term, ..header_now(api) }),
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
    let caller = api.identify(credentials)?;
    let found = api.read(|keyspace| keyspace.role_status(&caller, role, keyspace.now()))?;
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
            "the name of the {what} has {len} bytes, expected 1 to {ROLE_NAME_BYTES_MAX}; use another name"
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
