//! Encodes the hub's messages as gRPC frames of `etcdserverpb.Watch`.
//!
//! The events of a batch are encoded once and shared by all watches that get them. Only the head of a response, with
//! the watch id, is encoded for each watch. Concatenated protobuf messages merge, so head and events together are one
//! response.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use satrap_proto::etcdserverpb as pb;
use satrap_ring_core::Refusal;
use satrap_ring_core::watch::{Batch, Message, Progress, Reason};
use tonic::{Code, Status};

use crate::backend::Backend;
use crate::convert::kv::event;
use crate::grpc::put_prefix;
use crate::refusal;
use crate::status::refused;

/// The watch id in responses that concern no single watch, as in etcd.
const NO_WATCH: i64 = -1;
/// The number of encoded batches that are kept. Messages of one batch follow each other closely.
const BODIES_MAX: usize = 4;

/// Encodes the messages of one step of the hub.
pub(super) struct Frames {
    header: pb::ResponseHeader,
    fragment_bytes: usize,
    bodies: Vec<Body>,
}

/// The encoded events of a batch.
struct Body {
    batch: Arc<Batch>,
    /// Field 11 of the response, once for each event.
    bytes: Bytes,
    /// The end of each event in `bytes`.
    ends: Vec<usize>,
    /// The last whole frame, with its watch id and revision.
    frame: Option<(i64, i64, Bytes)>,
}

impl Frames {
    /// A response of `fragment_bytes` or more is split for clients that asked for fragments.
    pub(super) fn new(backend: &Backend, fragment_bytes: usize) -> Self {
        Self { header: backend.header_now(), fragment_bytes, bodies: Vec::new() }
    }

    /// The frames of one message, usually one.
    pub(super) fn encode(&mut self, message: &Message, frames: &mut Vec<Bytes>) {
        if let Message::Events { watch_id, revision, batch, fragment } = message {
            self.events((*watch_id, *revision), batch, *fragment, frames);
            return;
        }
        let mut response = pb::WatchResponse { watch_id: NO_WATCH, ..Default::default() };
        let revision = match message {
            Message::Created { watch_id, revision } => {
                response.watch_id = *watch_id;
                response.created = true;
                *revision
            }
            Message::Refused { reason, revision } => {
                response.created = true;
                response.canceled = true;
                response.cancel_reason = reason_text(reason);
                *revision
            }
            Message::Canceled { watch_id, revision } => {
                response.watch_id = *watch_id;
                response.canceled = true;
                *revision
            }
            Message::Denied { watch_id, refusal, revision } => {
                response.watch_id = *watch_id;
                response.canceled = true;
                response.cancel_reason = as_error(&refused(refusal));
                *revision
            }
            Message::Compacted { watch_id, compacted } => {
                response.watch_id = *watch_id;
                response.canceled = true;
                response.compact_revision = *compacted;
                0
            }
            Message::Progress { of, revision } => {
                if let Progress::Watch(watch_id) = of {
                    response.watch_id = *watch_id;
                }
                *revision
            }
            Message::Events { .. } => unreachable!("handled above"),
        };
        response.header = Some(pb::ResponseHeader { revision, ..self.header });
        frames.push(crate::grpc::frame(&response));
    }

    fn events(
        &mut self,
        (watch_id, revision): (i64, i64),
        batch: &Arc<Batch>,
        fragment: bool,
        frames: &mut Vec<Bytes>,
    ) {
        let header = pb::ResponseHeader { revision, ..self.header };
        let fragment_bytes = self.fragment_bytes;
        let body = self.body(batch);
        if let Some((_, _, frame)) =
            body.frame.as_ref().filter(|f| (f.0, f.1) == (watch_id, revision))
        {
            frames.push(frame.clone());
            return;
        }
        let head = pb::WatchResponse { header: Some(header), watch_id, ..Default::default() };
        let head_bytes = head.encoded_len();
        let whole = head_bytes + body.bytes.len();
        if !fragment || whole < fragment_bytes || body.ends.len() < 2 {
            let frame = join(&head, &body.bytes);
            body.frame = Some((watch_id, revision, frame.clone()));
            frames.push(frame);
            return;
        }
        split(&head, body, fragment_bytes, frames);
    }

    fn body(&mut self, batch: &Arc<Batch>) -> &mut Body {
        if let Some(at) = self.bodies.iter().position(|body| Arc::ptr_eq(&body.batch, batch)) {
            return &mut self.bodies[at];
        }
        if self.bodies.len() == BODIES_MAX {
            self.bodies.remove(0);
        }
        self.bodies.push(Body::of(batch));
        self.bodies.last_mut().expect("just pushed")
    }
}

impl Body {
    fn of(batch: &Arc<Batch>) -> Self {
        let mut bytes = BytesMut::new();
        let mut ends = Vec::with_capacity(batch.events.len());
        for told in &batch.events {
            let event = event(&told.event, told.before.as_deref());
            prost::encoding::message::encode(11, &event, &mut bytes);
            ends.push(bytes.len());
        }
        Self { batch: batch.clone(), bytes: bytes.freeze(), ends, frame: None }
    }
}

/// Splits a response as etcd does: each fragment has as many events as fit, and at least one. All but the last have
/// the field `fragment` set.
fn split(head: &pb::WatchResponse, body: &Body, bytes: usize, frames: &mut Vec<Bytes>) {
    let marked = pb::WatchResponse { fragment: true, ..head.clone() };
    let room = bytes.saturating_sub(marked.encoded_len());
    let (mut from, mut at) = (0, 0);
    while at < body.ends.len() {
        let first = at;
        while at < body.ends.len() && (at == first || body.ends[at] - from < room) {
            at += 1;
        }
        let part = body.bytes.slice(from..body.ends[at - 1]);
        frames.push(join(if at == body.ends.len() { head } else { &marked }, &part));
        from = body.ends[at - 1];
    }
}

fn join(head: &pb::WatchResponse, body: &Bytes) -> Bytes {
    let len = head.encoded_len() + body.len();
    let mut frame = BytesMut::with_capacity(5 + len);
    put_prefix(&mut frame, len);
    head.encode(&mut frame).expect("the buffer grows");
    frame.put_slice(body);
    frame.freeze()
}

/// The reason that a watch was refused, in etcd's words.
fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::NegativeStart => refusal::text(&Refusal::Compacted { compacted: 0 }),
        Reason::EmptyRange => "mvcc: watcher range is empty".to_owned(),
        Reason::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream".to_owned(),
        Reason::Denied(refusal) => as_error(&refused(refusal)),
        Reason::TooMany => refusal::text(&Refusal::TooManyRequests),
    }
}

/// A status as grpc-go prints it, because etcd sends that text in `cancel_reason`.
fn as_error(status: &Status) -> String {
    let name = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {name} desc = {}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients decide by the text.
    #[test]
    fn refusals_read_as_in_etcd() {
        let denied = |refusal| reason_text(&Reason::Denied(refusal));
        assert_eq!(
            denied(Refusal::PermissionDenied),
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
        assert_eq!(
            denied(Refusal::InvalidAuthToken),
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        );
        assert_eq!(
            denied(Refusal::UserEmpty),
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        );
        assert_eq!(
            reason_text(&Reason::NegativeStart),
            "etcdserver: mvcc: required revision has been compacted"
        );
    }
}
