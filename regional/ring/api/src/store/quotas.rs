//! Quotas of the whole keyspace and of prefixes, and their usage.
//!
//! A client must not be able to change its own quota, and the usage of a prefix reveals facts about keys that the
//! caller may not read. So all of these calls are for administrators.

use bytes::Bytes;
use satrap_proto::v1;
use satrap_ring_core::limits::QUOTA_PREFIX_BYTES_MAX;
use satrap_ring_core::quota::{PrefixLimits, QuotaRequest};
use satrap_ring_core::{Keyspace, Request};
use tonic::Status;

use super::read::{served, wait};
use super::{answered, header};
use crate::api::Api;
use crate::calls::Failure;
use crate::grpc::{self, Room};
use crate::kv::{Answer, decode};
use crate::peer::Credentials;
use crate::status::unavailable;

/// Sets the limits of a prefix, or of the whole keyspace.
///
/// # Errors
///
/// The permission that the caller lacks, limits that limit nothing, or why the ring failed.
pub async fn set_quota(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::SetQuotaRequest = decode(message)?;
    let limits = PrefixLimits { bytes_max: wanted.bytes_max, keys_max: wanted.keys_max };
    check(&wanted.prefix)?;
    let request = match (wanted.prefix.is_empty(), limits) {
        (_, PrefixLimits { bytes_max: 0, keys_max: 0 }) => {
            let why = "the quota has no limit; set one, or remove the quota with RemoveQuota";
            return Err(Status::invalid_argument(why));
        }
        (true, PrefixLimits { bytes_max, keys_max: 0 }) => QuotaRequest::Total { bytes_max },
        (true, _) => {
            let why =
                "the quota of the whole keyspace can limit bytes only; give a prefix to limit keys";
            return Err(Status::invalid_argument(why));
        }
        (false, limits) => QuotaRequest::Prefix { prefix: wanted.prefix.clone(), limits },
    };
    let answer = api.propose_message(credentials, bytes, Request::Quota(request)).await?;
    let quota = api.backend.inspect(|keyspace| match wanted.prefix.is_empty() {
        true => total(keyspace),
        false => of_prefix(keyspace, wanted.prefix),
    });
    let (header, quota) = (Some(answered(api, &answer)), Some(quota));
    Ok(grpc::frame(&v1::SetQuotaResponse { header, quota }))
}

/// Removes the quota of a prefix, or sets that of the whole keyspace back to its default.
///
/// # Errors
///
/// `NotFound` if the prefix has none, what the caller lacks, or why the ring could not.
pub async fn remove_quota(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let v1::RemoveQuotaRequest { prefix } = decode(message)?;
    check(&prefix)?;
    let request = match prefix.is_empty() {
        true => QuotaRequest::Total { bytes_max: 0 },
        false => QuotaRequest::Prefix { prefix, limits: PrefixLimits::default() },
    };
    let answer = api.propose_message(credentials, bytes, Request::Quota(request)).await?;
    Ok(grpc::frame(&v1::RemoveQuotaResponse { header: Some(answered(api, &answer)) }))
}

/// Lists all quotas, that of the whole keyspace first.
///
/// # Errors
///
/// The permission that the caller lacks, or why the ring failed.
pub async fn list_quotas(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    room: &mut Room,
) -> Answer {
    let wanted: v1::ListQuotasRequest = decode(message)?;
    let point = wait(api, wanted.mode).await?;
    let caller = api.identify(credentials)?;
    let found = api.backend.inspect(|keyspace| {
        keyspace.auth().check_admin(&caller)?;
        let prefixes = keyspace.quotas().list().map(|(prefix, limits, used)| v1::Quota {
            prefix: prefix.clone(),
            bytes_max: limits.bytes_max,
            keys_max: limits.keys_max,
            bytes: used.bytes,
            keys: used.keys,
        });
        let quotas = std::iter::once(total(keyspace)).chain(prefixes).collect();
        Ok((keyspace.store().revision(), quotas))
    });
    let (revision, quotas) = found.map_err(Failure::Refused)?;
    let response = v1::ListQuotasResponse {
        header: Some(header(api, revision, point.term)),
        served: Some(served(point)),
        quotas,
    };
    room.frame(|| response.clone()).await.map_err(unavailable)
}

/// Checks the length of a prefix: members cannot decode a longer one from the log.
fn check(prefix: &[u8]) -> Result<(), Status> {
    if prefix.len() > QUOTA_PREFIX_BYTES_MAX {
        let why = format!(
            "the prefix of the quota has {} bytes, expected at most {QUOTA_PREFIX_BYTES_MAX}; use a shorter one",
            prefix.len()
        );
        return Err(Status::invalid_argument(why));
    }
    Ok(())
}

fn total(keyspace: &Keyspace) -> v1::Quota {
    v1::Quota {
        prefix: Bytes::new(),
        bytes_max: keyspace.quotas().total_bytes_max(),
        keys_max: 0,
        bytes: keyspace.store().sizes().held_bytes,
        keys: keyspace.store().live_keys(),
    }
}

/// As it is now, which may be without limits if another client was quicker.
fn of_prefix(keyspace: &Keyspace, prefix: Bytes) -> v1::Quota {
    let (limits, used) = keyspace.quotas().get(&prefix).unwrap_or_default();
    v1::Quota {
        prefix,
        bytes_max: limits.bytes_max,
        keys_max: limits.keys_max,
        bytes: used.bytes,
        keys: used.keys,
    }
}
