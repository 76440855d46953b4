//! Messages as JSON, in the notation of etcd's gateway: names as in the `.proto` files, bytes as
//! base64, 64-bit numbers as strings, and nothing that has its default value.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::error::Category;
use tonic::Status;

/// Reads the one message of a request; nothing at all is a message with defaults.
pub(super) fn only(kind: MessageDescriptor, body: &[u8]) -> Result<Bytes, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Bytes::new());
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    read(kind, &mut reader).map_err(|error| not_json(&error))
}

/// Takes one message off the start of `pending`; `None` if there is only a part of one.
pub(super) fn next(
    kind: MessageDescriptor,
    pending: &mut BytesMut,
) -> Result<Option<Bytes>, Status> {
    let start = pending.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    drop(pending.split_to(start));
    if pending.is_empty() {
        return Ok(None);
    }
    // Where a message ends is known only after its syntax was read, whatever its kind is.
    let mut values =
        serde_json::Deserializer::from_slice(pending).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {}
        Some(Err(error)) if error.classify() == Category::Eof => return Ok(None),
        Some(Err(error)) => return Err(not_json(&error)),
        None => return Ok(None),
    }
    let message = pending.split_to(values.byte_offset());
    only(kind, &message).map(Some)
}

fn read<'a>(
    kind: MessageDescriptor,
    reader: &mut serde_json::Deserializer<serde_json::de::SliceRead<'a>>,
) -> Result<Bytes, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(kind, &mut *reader, &options)?;
    reader.end()?;
    Ok(message.encode_to_vec().into())
}

/// What a serialized message of this kind says.
pub(super) fn write(kind: MessageDescriptor, message: Bytes) -> Result<Bytes, Status> {
    let mut json = BytesMut::new();
    append(kind, message, &mut json)?;
    Ok(json.freeze())
}

/// The same as a line of a stream.
pub(super) fn write_line(kind: MessageDescriptor, message: Bytes) -> Result<Bytes, Status> {
    let mut json = BytesMut::from(&b"{\"result\":"[..]);
    append(kind, message, &mut json)?;
    json.put_slice(b"}\n");
    Ok(json.freeze())
}

fn append(kind: MessageDescriptor, message: Bytes, json: &mut BytesMut) -> Result<(), Status> {
    let message = DynamicMessage::decode(kind, message)
        .map_err(|error| Status::internal(format!("cannot read an answer: {error}")))?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    let mut writer = serde_json::Serializer::new(json.writer());
    message
        .serialize_with_options(&mut writer, &options)
        .map_err(|error| Status::internal(format!("cannot write an answer: {error}")))
}

/// Why a call failed.
pub(super) fn error(status: &Status) -> Bytes {
    let error = serde_json::json!({ "code": status.code() as i32, "message": status.message() });
    error.to_string().into()
}

/// The same as the last line of a stream.
pub(super) fn error_line(status: &Status) -> Bytes {
    let error = serde_json::json!({
        "error": { "code": status.code() as i32, "message": status.message() }
    });
    format!("{error}\n").into()
}

fn not_json(error: &serde_json::Error) -> Status {
    Status::invalid_argument(format!("proto: {error}"))
}
