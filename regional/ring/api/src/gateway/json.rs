//! Converts request messages from JSON to protobuf and responses from protobuf to JSON, in the notation of etcd's gRPC
//! gateway: field names as in the `.proto` files, bytes as base64, 64-bit integers as strings; fields with their default
//! value are omitted.
//!
//! Also splits the body of a streaming call into messages ([`Sequence`]), and refuses a message with too many elements
//! before it is parsed.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

use crate::limits::JSON_ELEMENTS_MAX;

/// Decodes one message; an empty body is a message whose fields all have their defaults.
fn decode_one(descriptor: MessageDescriptor, body: &[u8]) -> Result<Bytes, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Bytes::new());
    }
    check_elements(body)?;
    let mut reader = serde_json::Deserializer::from_slice(body);
    decode(descriptor, &mut reader).map_err(|error| invalid_request(&error))
}

/// Refuses a message that would take far more memory when decoded: each `{},` becomes an object.
fn check_elements(body: &[u8]) -> Result<(), Status> {
    let mut lexer = Lexer::default();
    let elements = body.iter().filter(|byte| {
        let counts = !lexer.in_string && matches!(byte, b'{' | b'[' | b',');
        lexer.step(**byte);
        counts
    });
    if elements.count() > JSON_ELEMENTS_MAX {
        return Err(Status::invalid_argument(format!(
            "proto: too many JSON elements, expected at most {JSON_ELEMENTS_MAX} objects, arrays and \
             commas; send several requests"
        )));
    }
    Ok(())
}

/// Tracks nesting and strings while JSON is scanned.
#[derive(Debug, Default)]
struct Lexer {
    /// Braces and brackets that are open.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
}

impl Lexer {
    fn step(&mut self, byte: u8) {
        match byte {
            _ if self.after_backslash => self.after_backslash = false,
            b'\\' => self.after_backslash = self.in_string,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// Splits a body into messages as its pieces arrive. Each byte is scanned once, however many pieces a message arrives
/// in.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    bytes: Vec<u8>,
    /// The start of the first message that was not taken yet.
    start: usize,
    /// How far that message was searched for its end.
    searched: usize,
    lexer: Lexer,
}

impl Sequence {
    /// Bytes of messages that were not taken yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The size of the buffer, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends the next piece of the body.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(piece);
    }

    /// Decodes the whole body as one message.
    pub(super) fn decode_one(&self, descriptor: MessageDescriptor) -> Result<Bytes, Status> {
        decode_one(descriptor, &self.bytes)
    }

    /// Takes the first message; `None` if only a part of it has arrived.
    pub(super) fn next(&mut self, descriptor: &MessageDescriptor) -> Result<Option<Bytes>, Status> {
        if self.searched == self.start {
            let space = self.bytes[self.start..].iter();
            self.start += space.take_while(|byte| byte.is_ascii_whitespace()).count();
            self.searched = self.start;
        }
        let Some(end) = self.end() else { return Ok(None) };
        let message = &self.bytes[self.start..end];
        self.start = end;
        decode_one(descriptor.clone(), message).map(Some)
    }

    /// The end of the object that starts at `start`. The object is validated only when it is decoded.
    fn end(&mut self) -> Option<usize> {
        for byte in &self.bytes[self.searched..] {
            self.searched += 1;
            self.lexer.step(*byte);
            if self.lexer.depth == 0 && !self.lexer.in_string {
                return Some(self.searched);
            }
        }
        None
    }
}

fn decode<'a>(
    descriptor: MessageDescriptor,
    reader: &mut serde_json::Deserializer<serde_json::de::SliceRead<'a>>,
) -> Result<Bytes, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor, &mut *reader, &options)?;
    reader.end()?;
    Ok(message.encode_to_vec().into())
}

/// Converts a response message to JSON.
pub(super) fn encode(descriptor: MessageDescriptor, message: Bytes) -> Result<Bytes, Status> {
    let mut json = BytesMut::new();
    append(descriptor, message, &mut json)?;
    Ok(json.freeze())
}

/// Converts a message of a streamed response to a line of JSON.
pub(super) fn encode_line(descriptor: MessageDescriptor, message: Bytes) -> Result<Bytes, Status> {
    let mut json = BytesMut::from(&b"{\"result\":"[..]);
    append(descriptor, message, &mut json)?;
    json.put_slice(b"}\n");
    Ok(json.freeze())
}

fn append(
    descriptor: MessageDescriptor,
    message: Bytes,
    json: &mut BytesMut,
) -> Result<(), Status> {
    let message = DynamicMessage::decode(descriptor, message)
        .map_err(|error| Status::internal(format!("cannot decode the response: {error}")))?;
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    let mut writer = serde_json::Serializer::new(json.writer());
    message
        .serialize_with_options(&mut writer, &options)
        .map_err(|error| Status::internal(format!("cannot encode the response as JSON: {error}")))
}

/// The JSON body of a failed call: gRPC code and message.
pub(super) fn error(status: &Status) -> Bytes {
    let error = serde_json::json!({ "code": status.code() as i32, "message": status.message() });
    error.to_string().into()
}

/// The same as the last line of a streamed response.
pub(super) fn error_line(status: &Status) -> Bytes {
    let error = serde_json::json!({
        "error": { "code": status.code() as i32, "message": status.message() }
    });
    format!("{error}\n").into()
}

fn invalid_request(error: &serde_json::Error) -> Status {
    Status::invalid_argument(format!("proto: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn watch_request() -> MessageDescriptor {
        let pool = DescriptorPool::decode(satrap_proto::DESCRIPTORS).unwrap();
        pool.get_message_by_name("etcdserverpb.WatchRequest").unwrap()
    }

    /// The messages of a sequence that arrives in pieces of `piece_bytes`, and how many bytes are left.
    fn split(sequence: &str, piece_bytes: usize) -> (Vec<Result<Bytes, String>>, usize) {
        let (descriptor, mut arrived) = (watch_request(), Sequence::default());
        let mut messages = Vec::new();
        for piece in sequence.as_bytes().chunks(piece_bytes) {
            arrived.push(piece);
            while let Some(message) = arrived.next(&descriptor).transpose() {
                messages.push(message.map_err(|status| status.message().to_owned()));
            }
        }
        (messages, arrived.len())
    }

    #[test]
    fn braces_in_strings_end_no_message() {
        let sequence = r#" {"create_request":{"key":"YQ==","x":"}\\\"]}"}} {"y":[{"z":"{"}]}
            {"progress_request":{}}{"cancel_request":{"watch_id":"7"}"#;
        for piece_bytes in [1, 2, 3, 7, 1_000] {
            let (messages, left) = split(sequence, piece_bytes);
            assert_eq!(messages.len(), 3, "{messages:?}");
            assert!(messages[0].as_ref().unwrap().len() > 3);
            assert!(messages[1].as_ref().unwrap().is_empty(), "unknown fields are ignored");
            assert_eq!(left, r#"{"cancel_request":{"watch_id":"7"}"#.len());
        }
    }

    #[test]
    fn a_message_that_is_not_a_json_object_is_refused() {
        for sequence in ["x", "}", "1", ",{}", "\"\"", "{]", "{\"a\" 1}"] {
            let (messages, _) = split(sequence, 1_000);
            assert!(messages[0].is_err(), "{sequence}: {messages:?}");
        }
    }

    /// Regression: every piece caused all earlier bytes to be parsed again, so 1 MB in one-byte pieces took hours.
    #[test]
    fn a_message_in_many_pieces_is_scanned_once() {
        let key = "A".repeat(400_000);
        let sequence = format!("{{\"create_request\":{{\"key\":\"{key}\"}}}}");
        let (messages, left) = split(&sequence, 1);
        assert_eq!((messages.len(), left), (1, 0));
        assert!(messages[0].as_ref().unwrap().len() > 300_000);
    }

    /// Two megabytes of empty JSON objects would decode to hundreds of megabytes.
    #[test]
    fn a_bomb_of_empty_objects_is_not_decoded() {
        let bomb = |objects| format!("{{\"filters\":[{}]}}", vec!["{}"; objects].join(","));
        for whole in [bomb(JSON_ELEMENTS_MAX / 2), format!("[{}", ",".repeat(JSON_ELEMENTS_MAX))] {
            let refused = decode_one(watch_request(), whole.as_bytes()).unwrap_err();
            assert!(refused.message().contains("too many JSON elements"), "{refused}");
        }
        let text = format!("{{\"x\":\"{}\"}}", "{,[".repeat(JSON_ELEMENTS_MAX));
        assert_eq!(
            decode_one(watch_request(), text.as_bytes()).unwrap(),
            Bytes::new(),
            "the bytes of a string are not counted"
        );
        let allowed = bomb(JSON_ELEMENTS_MAX / 2 - 1);
        assert_eq!(decode_one(watch_request(), allowed.as_bytes()).unwrap(), Bytes::new());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(sequence in "[{}\\[\\]\"\\\\:, a1]{0,40}", piece_bytes in 1_usize..9) {
            let (mut whole, mut pieces) = (split(&sequence, 1_000), split(&sequence, piece_bytes));
            // A body ends with its first error.
            for (messages, left) in [&mut whole, &mut pieces] {
                if let Some(error) = messages.iter().position(Result::is_err) {
                    messages.truncate(error + 1);
                    *left = 0;
                }
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
