//! Parses the requests of `etcdserverpb.Watch`.

use bytes::Bytes;
use prost::Message;
use satrap_proto::etcdserverpb::watch_create_request::FilterType;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use satrap_ring_core::kv::request::KeyRange;
use satrap_ring_core::watch::Open;
use tonic::Status;

/// A request of a client.
pub(super) enum Command {
    Open(Open),
    Cancel(i64),
    Progress,
    /// A request that this release does not know; ignored, as in etcd.
    Unknown,
}

/// Parses one message.
///
/// # Errors
///
/// `Internal` if the message is no watch request, with the text that gRPC servers in Go give.
pub(super) fn parse(message: Bytes) -> Result<Command, Status> {
    let request = WatchRequest::decode(message)
        .map_err(|error| Status::internal(format!("failed to decode request: {error}")))?;
    Ok(match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => Command::Open(open(create)),
        Some(RequestUnion::CancelRequest(cancel)) => Command::Cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => Command::Progress,
        None => Command::Unknown,
    })
}

fn open(create: WatchCreateRequest) -> Open {
    let filtered = |filter: FilterType| create.filters.contains(&filter.into());
    Open {
        watch_id: create.watch_id,
        no_put: filtered(FilterType::Noput),
        no_delete: filtered(FilterType::Nodelete),
        start: create.start_revision,
        prev_kv: create.prev_kv,
        progress_notify: create.progress_notify,
        fragment: create.fragment,
        range: KeyRange { start: create.key, end: create.range_end },
    }
}
