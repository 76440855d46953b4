//! Messages as JSON, in the notation of etcd's gateway: names as in the `.proto` files, bytes as
//! base64, 64-bit numbers as strings, and nothing that has its default value.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

use crate::limits::JSON_ELEMENTS_MAX;

/// Reads the one message of a request; nothing at all is a message with defaults.
fn only(kind: MessageDescriptor, body: &[u8]) -> Result<Bytes, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Bytes::new());
    }
    check_elements(body)?;
    let mut reader = serde_json::Deserializer::from_slice(body);
    read(kind, &mut reader).map_err(|error| not_json(&error))
}

/// Refuses a message that would take far more memory once it is read: each `{},` becomes an object.
fn check_elements(body: &[u8]) -> Result<(), Status> {
    let mut place = Lexer::default();
    let elements = body.iter().filter(|byte| {
        let separates = !place.is_string && matches!(byte, b'{' | b'[' | b',');
        place.step(**byte);
        separates
    });
    if elements.count() > JSON_ELEMENTS_MAX {
        return Err(Status::invalid_argument(format!(
            "proto: too many elements, expected at most {JSON_ELEMENTS_MAX} objects, lists and commas; \
             send several requests"
        )));
    }
    Ok(())
}

/// Where in a text of JSON a reader is.
#[derive(Debug, Default)]
struct Lexer {
    /// Braces and brackets that are open.
    depth: usize,
    is_string: bool,
    is_escaped: bool,
}

impl Lexer {
    fn step(&mut self, byte: u8) {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = self.is_string,
            b'"' => self.is_string = !self.is_string,
            _ if self.is_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// Messages one after the other, in pieces as they come. Each byte is looked at once until its message is
/// whole, in however many pieces that comes.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    bytes: Vec<u8>,
    /// Where the first message begins that was not taken yet.
    start: usize,
    /// How far it was searched for its end.
    searched: usize,
    place: Lexer,
}

impl Sequence {
    /// Bytes of messages that were not taken yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Memory that it takes, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends what has come.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(piece);
    }

    /// All of it, as one message.
    pub(super) fn only(&self, kind: MessageDescriptor) -> Result<Bytes, Status> {
        only(kind, &self.bytes)
    }

    /// Takes the first message; `None` if there is only a part of one.
    pub(super) fn next(&mut self, kind: &MessageDescriptor) -> Result<Option<Bytes>, Status> {
        if self.searched == self.start {
            let space = self.bytes[self.start..].iter();
            self.start += space.take_while(|byte| byte.is_ascii_whitespace()).count();
            self.searched = self.start;
        }
        let Some(end) = self.end() else { return Ok(None) };
        let message = &self.bytes[self.start..end];
        self.start = end;
        only(kind.clone(), message).map(Some)
    }

    /// Where the object ends that starts at `start`. Whether it is valid shows when it is read.
    fn end(&mut self) -> Option<usize> {
        for byte in &self.bytes[self.searched..] {
            self.searched += 1;
            self.place.step(*byte);
            if self.place.depth == 0 && !self.place.is_string {
                return Some(self.searched);
            }
        }
        None
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn kind() -> MessageDescriptor {
        let pool = DescriptorPool::decode(satrap_proto::DESCRIPTORS).unwrap();
        pool.get_message_by_name("etcdserverpb.WatchRequest").unwrap()
    }

    /// The messages of a sequence that arrives in pieces of `piece_bytes`, and how many bytes are left.
    fn split(sequence: &str, piece_bytes: usize) -> (Vec<Result<Bytes, String>>, usize) {
        let (kind, mut arrived) = (kind(), Sequence::default());
        let mut messages = Vec::new();
        for piece in sequence.as_bytes().chunks(piece_bytes) {
            arrived.push(piece);
            while let Some(message) = arrived.next(&kind).transpose() {
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
            assert!(messages[1].as_ref().unwrap().is_empty(), "unknown names are passed over");
            assert_eq!(left, r#"{"cancel_request":{"watch_id":"7"}"#.len());
        }
    }

    #[test]
    fn what_is_no_object_is_refused_at_its_first_byte() {
        for sequence in ["x", "}", "1", ",{}", "\"\"", "{]", "{\"a\" 1}"] {
            let (messages, _) = split(sequence, 1_000);
            assert!(messages[0].is_err(), "{sequence}: {messages:?}");
        }
    }

    /// Each piece had all that came before it read again: a megabyte in pieces of a byte took hours.
    #[test]
    fn a_message_in_many_pieces_is_looked_at_once() {
        let key = "A".repeat(400_000);
        let sequence = format!("{{\"create_request\":{{\"key\":\"{key}\"}}}}");
        let (messages, left) = split(&sequence, 1);
        assert_eq!((messages.len(), left), (1, 0));
        assert!(messages[0].as_ref().unwrap().len() > 300_000);
    }

    /// Two megabytes of empty objects would take hundreds as messages.
    #[test]
    fn a_bomb_of_empty_objects_is_not_read() {
        let bomb = |objects| format!("{{\"filters\":[{}]}}", vec!["{}"; objects].join(","));
        for whole in [bomb(JSON_ELEMENTS_MAX / 2), format!("[{}", ",".repeat(JSON_ELEMENTS_MAX))] {
            let refused = only(kind(), whole.as_bytes()).unwrap_err();
            assert!(refused.message().contains("too many elements"), "{refused}");
        }
        let text = format!("{{\"x\":\"{}\"}}", "{,[".repeat(JSON_ELEMENTS_MAX));
        assert_eq!(only(kind(), text.as_bytes()).unwrap(), Bytes::new(), "a string is one element");
        let allowed = bomb(JSON_ELEMENTS_MAX / 2 - 1);
        assert_eq!(only(kind(), allowed.as_bytes()).unwrap(), Bytes::new());
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
