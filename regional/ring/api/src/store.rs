//! The `Store` service of `satrap.v1`: what a coordination store can offer beyond etcd's API.
//!
//! The same keys, revisions and permissions, asked for in ways that save a round trip, that say what
//! is in the way, or that say how an answer was obtained. As in [`crate::kv`], a call takes the bytes
//! of a request and gives the bytes of an answer.

mod put_stream;
mod quotas;
mod read;
mod roles;

use bytes::Bytes;
use satrap_proto::v1;
use satrap_ring_core::keyspace::{PutIfRevision, PutSequential};
use satrap_ring_core::{Refusal, Request, Response};

pub use put_stream::put_stream;
pub use quotas::{list_quotas, remove_quota, set_quota};
pub use read::{get, list_page};
pub use roles::{grant_role, release_role, renew_role, role_status};

use crate::api::{Answered, Api, mismatch};
use crate::calls::Failure;
use crate::grpc::{self, Room};
use crate::kv::{Answer, decode, written};
use crate::peer::Credentials;

/// Writes a key if its last write is the one the caller knows of.
///
/// # Errors
///
/// The error that etcd returns for a put.
pub async fn put_if_revision(
    api: &Api,
    credentials: &Credentials,
    message: Bytes,
    room: &mut Room,
) -> Answer {
    let bytes = message.len();
    let wanted: v1::PutIfRevisionRequest = decode(message)?;
    if wanted.key.is_empty() {
        return Err(Failure::from(Refusal::EmptyKey).into());
    }
    let request = Request::PutIfRevision(PutIfRevision {
        key: wanted.key,
        expected_revision: wanted.mod_revision,
        value: wanted.value,
        lease: wanted.lease,
        want_value: wanted.want_value,
    });
    let response = match api.propose_message(credentials, bytes, request).await {
        Ok(answer) => v1::PutIfRevisionResponse {
            mod_revision: answer.response.revision(),
            header: Some(answered(api, &answer)),
            written: true,
            value: None,
        },
        Err(Failure::Refused(Refusal::Conflict { at, current, value })) => {
            v1::PutIfRevisionResponse {
                header: Some(v1::StoreHeader { revision: at, ..header_now(api) }),
                written: false,
                mod_revision: current,
                value,
            }
        }
        Err(failure) => return Err(failure.into()),
    };
    written(room.frame(|| response.clone()).await)
}

/// Writes a key whose name the ring chooses.
///
/// # Errors
///
/// The error that etcd returns for a put.
pub async fn put_sequential(api: &Api, credentials: &Credentials, message: Bytes) -> Answer {
    let bytes = message.len();
    let wanted: v1::PutSequentialRequest = decode(message)?;
    let (prefix, value, lease) = (wanted.prefix, wanted.value, wanted.lease);
    let request = Request::PutSequential(PutSequential { prefix, value, lease });
    let answer = api.propose_message(credentials, bytes, request).await?;
    let Response::PutSequential { key, .. } = &answer.response else {
        return Err(mismatch(&answer.response));
    };
    let (header, key) = (Some(answered(api, &answer)), key.clone());
    Ok(grpc::frame(&v1::PutSequentialResponse { header, key }))
}

/// The header of what went through the log.
fn answered(api: &Api, answer: &Answered) -> v1::StoreHeader {
    header(api, answer.response.revision(), answer.term)
}

fn header(api: &Api, revision: i64, raft_term: u64) -> v1::StoreHeader {
    let identity = api.backend.identity();
    let epoch = u64::from(api.backend.inspect(|keyspace| keyspace.epoch()));
    let (cluster_id, member_id) = (identity.cluster_id, identity.member_id);
    v1::StoreHeader { cluster_id, member_id, raft_term, epoch, revision }
}

/// The header of an answer that belongs to no particular revision.
fn header_now(api: &Api) -> v1::StoreHeader {
    let now = api.backend.header_now();
    header(api, now.revision, now.raft_term)
}
