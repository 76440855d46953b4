//! Parses what clients of `etcdserverpb.Watch` ask.

use bytes::Bytes;
use prost::Message;
use satrap_proto::etcdserverpb::watch_create_request::FilterType;
use satrap_proto::etcdserverpb::watch_request::RequestUnion;
use satrap_proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use satrap_regional_core::kv::request::KeyRange;
use satrap_regional_core::watch::Open;
use tonic::Status;

/// What a client asks.
pub(super) enum Command {
    Open(Open),
    Cancel(i64),
    Progress,
    /// Nothing we know; ignored, as in etcd.
    Unknown,
}

/// # Errors
///
/// `Internal` if it is no watch request, as the generic stack words it.
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
