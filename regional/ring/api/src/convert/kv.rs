//! Converts ranges, puts and deletions, their responses, and the events of watches.

use bytes::Bytes;
use satrap_proto::{etcdserverpb as pb, mvccpb};
use satrap_ring_core::Refusal;
use satrap_ring_core::kv::request::{
    Bounds, DeleteRangeRequest, KeyRange, KeysOnly, PutRequest, RangeRequest, SortOrder, SortTarget,
};
use satrap_ring_core::kv::response::{
    DeleteRangeResponse, Event, KeyValue, PutResponse, RangeResponse,
};

/// Converts a range request, and validates it.
///
/// # Errors
///
/// The fault of the request in itself.
pub fn range_request(range: pb::RangeRequest) -> Result<RangeRequest, Refusal> {
    let (order, target) = (range.sort_order, range.sort_target);
    if range.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let order = match pb::range_request::SortOrder::try_from(order) {
        Ok(pb::range_request::SortOrder::None) => SortOrder::None,
        Ok(pb::range_request::SortOrder::Ascend) => SortOrder::Ascend,
        Ok(pb::range_request::SortOrder::Descend) => SortOrder::Descend,
        Err(_) => return Err(Refusal::InvalidSortOption),
    };
    let target = match pb::range_request::SortTarget::try_from(target) {
        Ok(pb::range_request::SortTarget::Key) => SortTarget::Key,
        Ok(pb::range_request::SortTarget::Version) => SortTarget::Version,
        Ok(pb::range_request::SortTarget::Create) => SortTarget::Create,
        Ok(pb::range_request::SortTarget::Mod) => SortTarget::Mod,
        Ok(pb::range_request::SortTarget::Value) => SortTarget::Value,
        Err(_) => return Err(Refusal::InvalidSortOption),
    };
    Ok(RangeRequest {
        range: KeyRange { start: range.key, end: range.range_end },
        limit: range.limit,
        revision: range.revision,
        order,
        target,
        keys_only: range.keys_only,
        count_only: range.count_only,
        modified: Bounds { min: range.min_mod_revision, max: range.max_mod_revision },
        created: Bounds { min: range.min_create_revision, max: range.max_create_revision },
    })
}

/// Converts a put, and validates it.
///
/// # Errors
///
/// The fault of the request in itself.
pub fn put_request(put: pb::PutRequest) -> Result<PutRequest, Refusal> {
    if put.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(PutRequest {
        key: put.key,
        value: put.value,
        lease: put.lease,
        prev_kv: put.prev_kv,
        ignore_value: put.ignore_value,
        ignore_lease: put.ignore_lease,
    })
}

/// Converts a deletion, and validates it.
///
/// # Errors
///
/// The fault of the request in itself.
pub fn delete_range_request(delete: pb::DeleteRangeRequest) -> Result<DeleteRangeRequest, Refusal> {
    if delete.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let range = KeyRange { start: delete.key, end: delete.range_end };
    Ok(DeleteRangeRequest { range, prev_kv: delete.prev_kv })
}

/// Converts one version of a key.
#[must_use]
pub fn key_value(kv: &KeyValue, keys_only: KeysOnly) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key_bytes(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: match keys_only {
            KeysOnly::Yes | KeysOnly::WithLease => Bytes::new(),
            KeysOnly::No => kv.value_bytes(),
        },
        lease: match keys_only {
            KeysOnly::Yes => 0,
            KeysOnly::WithLease | KeysOnly::No => kv.lease,
        },
    }
}

/// Converts an event of a watch. `prev` is the version before it, if the client asked for that.
#[must_use]
pub fn event(event: &Event, prev: Option<&KeyValue>) -> mvccpb::Event {
    let (kind, kv) = if event.is_deletion() {
        // As in etcd, the event of a deletion has no other fields.
        let (key, mod_revision) = (event.key_bytes(), event.mod_revision);
        let kv = mvccpb::KeyValue { key, mod_revision, ..Default::default() };
        (mvccpb::event::EventType::Delete, kv)
    } else {
        (mvccpb::event::EventType::Put, key_value(event, KeysOnly::No))
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv: prev.map(|prev| key_value(prev, KeysOnly::No)),
    }
}

/// Converts the response to a range request.
#[must_use]
pub fn range_response(
    header: Option<pb::ResponseHeader>,
    range: &RangeResponse,
    keys_only: KeysOnly,
) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: range.kvs.iter().map(|kv| key_value(kv, keys_only)).collect(),
        more: range.more,
        count: range.count,
    }
}

/// Converts the response to a put.
#[must_use]
pub fn put_response(header: Option<pb::ResponseHeader>, put: &PutResponse) -> pb::PutResponse {
    let prev_kv = put.prev.as_ref().map(|prev| key_value(prev, KeysOnly::No));
    pb::PutResponse { header, prev_kv }
}

/// Converts the response to a deletion.
#[must_use]
pub fn delete_range_response(
    header: Option<pb::ResponseHeader>,
    delete: &DeleteRangeResponse,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header,
        deleted: delete.deleted,
        prev_kvs: delete.prev.iter().map(|prev| key_value(prev, KeysOnly::No)).collect(),
    }
}
