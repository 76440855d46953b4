//! Serves `satrap.v1.StoreWatch` streams: one watch each, and a resync for a client whose mirror is older than the last
//! compaction, or of another epoch.
//!
//! ```text
//!   Fresh ── open ──▶ Live ◀─────────── mirror complete ──────────┐
//!     │                 │ the next revision is compacted          │
//!     └── too old ──▶ Queued ──▶ Reading (in slices) ──▶ Asking ──┘
//! ```
//!
//! A resync sends only the keys that differ: client and member compare digests of ever smaller parts of the range
//! ([`satrap_merkle::keyset`]). The member reads the range at one revision and keeps its rows by reference, so a
//! compaction during the resync takes none of them away. If a compaction passes that revision before the watch goes on,
//! the client resyncs again, from a mirror that is less old.

use bytes::Bytes;
use prost::Message as _;
use satrap_merkle::keyset::{Answer, Entry, Keyset, Node, Source, Summary};
use satrap_proto::v1 as pb;
use satrap_proto::v1::store_watch_request::Step as Asked;
use satrap_proto::v1::store_watch_response::Step;
use satrap_ring_core::kv::request::KeysOnly;
use satrap_ring_core::kv::request::{KeyRange, Revision};
use satrap_ring_core::kv::response::Event;
use satrap_ring_core::kv::{Budget, Progress as Scanned, RangeRequest, Scan};
use satrap_ring_core::watch::{Message, Open, Reason, View};
use satrap_ring_core::{Caller, Keyspace, Refusal};
use tonic::Status;

use crate::api::Api;
use crate::backend::Backend;
use crate::convert::kv::{event, key_value};
use crate::grpc::frame;
use crate::limits::{READ_BYTES_AT_ONCE, READ_KEYS_AT_ONCE};
use crate::peer::Credentials;
use crate::status::refused;

/// The most bytes of keys and values in one message of a resync, except that the last key may exceed it.
const PUT_BYTES_MAX: usize = 1 << 20;

/// The state of one stream.
#[derive(Debug)]
pub(super) struct StoreWatch {
    phase: Phase,
    /// The range of the request; set by its first message.
    range: KeyRange,
    prev_kv: bool,
    /// Whether the client wants to resync rather than an error.
    resync: bool,
    /// Whether the client knows that its stream is open.
    announced: bool,
}

#[derive(Debug)]
enum Phase {
    /// Waits for the client's request.
    Fresh,
    /// The hub's events go to the client.
    Live,
    /// Waits until fewer mirrors resync.
    Queued { epoch_differs: bool },
    /// Reads the keys of the range.
    Reading(Box<Reading>),
    /// Asks the client for digests and sends the keys that differ.
    Asking(Box<Asking>),
}

#[derive(Debug)]
struct Reading {
    /// `None` once the whole range was read.
    scan: Option<Scan>,
    revision: Revision,
    set: Keyset,
    events: Vec<Event>,
    /// The client's first answer, which may arrive before the member has read the range.
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Asking {
    source: Source,
    events: Vec<Event>,
    revision: Revision,
    /// Indexes into `events` of the keys to send.
    put: std::vec::IntoIter<usize>,
    answer: Option<Answer>,
    done: bool,
}

/// The next action of the watch loop for a stream.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Open this watch.
    Watch(Caller, Box<Open>),
    /// Queue the stream for a resync.
    Resync,
    /// Call [`StoreWatch::work`].
    Work,
}

/// The outcome of one slice of a resync.
pub(super) enum Work {
    /// Call [`StoreWatch::work`] again.
    More,
    /// Wait for the client's answer.
    Wait,
    /// The mirror is complete; open this watch.
    Done(Caller, Box<Open>),
}

impl StoreWatch {
    pub(super) fn new() -> Box<Self> {
        let range = KeyRange { start: Bytes::new(), end: Bytes::new() };
        let phase = Phase::Fresh;
        Box::new(Self { phase, range, prev_kv: false, resync: false, announced: false })
    }

    /// Handles a message of the client.
    ///
    /// # Errors
    ///
    /// The status that ends the stream.
    pub(super) fn receive(
        &mut self,
        api: &Api,
        credentials: &Credentials,
        message: Bytes,
    ) -> Result<Next, Status> {
        let request = pb::StoreWatchRequest::decode(message)
            .map_err(|error| Status::internal(format!("failed to decode request: {error}")))?;
        match request.step {
            Some(Asked::Open(open)) => self.open(api, api.identify(credentials)?, open),
            Some(Asked::Answer(answer)) => {
                let answer = parse_answer(answer).ok_or_else(unexpected_answer)?;
                match &mut self.phase {
                    Phase::Reading(reading) if reading.answer.is_none() => {
                        reading.answer = Some(answer);
                        Ok(Next::Nothing)
                    }
                    Phase::Asking(asking) if asking.answer.is_none() => {
                        asking.answer = Some(answer);
                        Ok(Next::Work)
                    }
                    _ => Err(unexpected_answer()),
                }
            }
            None => Ok(Next::Nothing),
        }
    }

    fn open(&mut self, api: &Api, caller: Caller, open: pb::WatchOpen) -> Result<Next, Status> {
        if !matches!(self.phase, Phase::Fresh) {
            return Err(Status::invalid_argument("satrap: the watch is open already"));
        }
        self.range = KeyRange { start: open.key, end: open.range_end };
        if self.range.start.is_empty() {
            self.range.start = Bytes::from_static(&[0]);
        }
        (self.prev_kv, self.resync) = (open.prev_kv, open.resync);
        let start = open.start_revision;
        let (compacted, epoch) =
            api.backend.inspect(|keyspace| (keyspace.compacted(), keyspace.epoch()));
        let epoch_differs = open.epoch != 0 && open.epoch != u64::from(epoch);
        if start != 0 && (start < compacted || epoch_differs) {
            return self.require_resync(compacted, epoch_differs);
        }
        self.phase = Phase::Live;
        Ok(Next::Watch(caller, self.watch(start)))
    }

    fn watch(&self, start: Revision) -> Box<Open> {
        Box::new(Open {
            watch_id: 0,
            range: self.range.clone(),
            start,
            no_put: false,
            no_delete: false,
            prev_kv: self.prev_kv,
            progress_notify: true,
            fragment: false,
        })
    }

    /// Queues the stream for a resync, because its next revision is compacted or of another epoch. A client that did
    /// not ask for resyncs gets an error.
    fn require_resync(&mut self, compacted: Revision, epoch_differs: bool) -> Result<Next, Status> {
        if !self.resync {
            return Err(refused(&Refusal::Compacted { compacted }));
        }
        self.phase = Phase::Queued { epoch_differs };
        Ok(Next::Resync)
    }

    /// Encodes a message of the hub for the client.
    ///
    /// # Errors
    ///
    /// The status that ends the stream.
    pub(super) fn forward(
        &mut self,
        backend: &Backend,
        message: &Message,
        frames: &mut Vec<Bytes>,
    ) -> Result<Next, Status> {
        match message {
            Message::Created { revision, .. } if !self.announced => {
                self.announced = true;
                let step = Step::Opened(pb::WatchOpened {});
                frames.push(response(backend, *revision, step));
            }
            Message::Events { batch, .. } => {
                let events = &batch.events;
                let through = events.last().map_or(0, |last| last.event.mod_revision);
                let events = events.iter().map(|t| event(&t.event, t.before.as_deref())).collect();
                let step = pb::WatchEvents { events, complete_through: through };
                frames.push(response(backend, through, Step::Events(step)));
            }
            Message::Progress { revision, .. } => {
                let step = pb::WatchEvents { events: Vec::new(), complete_through: *revision };
                frames.push(response(backend, *revision, Step::Events(step)));
            }
            Message::Compacted { compacted, .. } => return self.require_resync(*compacted, false),
            Message::Denied { refusal, .. } => return Err(refused(refusal)),
            Message::Refused { reason, .. } => return Err(refusal_of(reason)),
            // The watch loop cancels the watch of the stream when it opens the next one.
            Message::Canceled { .. } | Message::Created { .. } => {}
        }
        Ok(Next::Nothing)
    }

    /// Begins a resync: returns the message that announces it, and starts to read the range.
    ///
    /// # Errors
    ///
    /// The status that ends the stream.
    pub(super) fn begin(&mut self, api: &Api, credentials: &Credentials) -> Result<Bytes, Status> {
        let Phase::Queued { epoch_differs } = self.phase else { return Err(unexpected_answer()) };
        let reading = self.read_from_now(api, credentials)?;
        self.announced = true;
        let current_revision = reading.revision;
        self.phase = Phase::Reading(Box::new(reading));
        let compacted = api.backend.inspect(Keyspace::compacted);
        let compact_revision = if epoch_differs { 0 } else { compacted };
        let step = pb::ResyncRequired { compact_revision, current_revision };
        Ok(response(&api.backend, current_revision, Step::Resync(step)))
    }

    fn read_from_now(&self, api: &Api, credentials: &Credentials) -> Result<Reading, Status> {
        let caller = api.identify(credentials)?;
        let scan = api.backend.read(|keyspace| {
            keyspace.may_open(&caller, &self.range)?;
            Scan::begin(keyspace.store(), &whole(&self.range))
        });
        let scan = scan.map_err(|refusal| refused(&refusal))?;
        let revision = scan.revision();
        let (set, events, answer) = (Keyset::new(), Vec::new(), None);
        Ok(Reading { scan: Some(scan), revision, set, events, answer })
    }

    /// Runs one slice of a resync.
    ///
    /// # Errors
    ///
    /// The status that ends the stream.
    pub(super) fn work(
        &mut self,
        api: &Api,
        credentials: &Credentials,
        frames: &mut Vec<Bytes>,
    ) -> Result<Work, Status> {
        // Fails if this member is corrupt: then the rows that it has read are wrong as well.
        api.read(|_| Ok(()))?;
        match &mut self.phase {
            Phase::Reading(reading) => {
                if reading.scan.is_some() && !reading.slice(api) {
                    let answer = reading.answer.take();
                    let again = self.read_from_now(api, credentials)?;
                    self.phase = Phase::Reading(Box::new(Reading { answer, ..again }));
                    return Ok(Work::More);
                }
                if reading.scan.is_some() || reading.set.sort_some() {
                    return Ok(Work::More);
                }
                self.phase = Phase::Asking(Box::new(Asking {
                    source: Source::new(std::mem::take(&mut reading.set)),
                    events: std::mem::take(&mut reading.events),
                    revision: reading.revision,
                    put: Vec::new().into_iter(),
                    answer: reading.answer.take(),
                    done: false,
                }));
                Ok(Work::More)
            }
            Phase::Asking(asking) => {
                if !asking.slice(api, frames)? {
                    return Ok(if asking.answer.is_some() { Work::More } else { Work::Wait });
                }
                let start = asking.revision + 1;
                self.phase = Phase::Live;
                Ok(Work::Done(api.identify(credentials)?, self.watch(start)))
            }
            Phase::Fresh | Phase::Live | Phase::Queued { .. } => Ok(Work::Wait),
        }
    }
}

impl Reading {
    /// Reads the next keys; false if the revision was compacted meanwhile.
    fn slice(&mut self, api: &Api) -> bool {
        let Some(scan) = &mut self.scan else { return true };
        let budget = Budget { keys: READ_KEYS_AT_ONCE, bytes: READ_BYTES_AT_ONCE };
        let Ok(scanned) = api.backend.read(|keyspace| scan.step(keyspace.store(), budget)) else {
            return false;
        };
        let found = match scanned {
            Scanned::More => scan.take(),
            Scanned::Done => self.scan.take().map_or_else(Vec::new, |scan| scan.finish().kvs),
        };
        for event in &found {
            self.set.add(event.key(), event.mod_revision);
        }
        self.events.extend(found);
        true
    }
}

impl Asking {
    /// Sends the next keys, or judges the client's answer; true when the mirror is complete.
    fn slice(&mut self, api: &Api, frames: &mut Vec<Bytes>) -> Result<bool, Status> {
        if self.put.len() == 0 && !self.done {
            let Some(answer) = self.answer.take() else { return Ok(false) };
            let verdict = self.source.judge(answer).map_err(|_| unexpected_answer())?;
            self.done = verdict.done;
            let nodes = |nodes: &[Node]| nodes.iter().map(node).collect();
            let step = Step::Verdict(pb::ResyncVerdict {
                descend: nodes(&verdict.descend),
                list: nodes(&verdict.list),
                clear: nodes(&verdict.clear),
                gone: verdict.gone.iter().map(|hash| Bytes::copy_from_slice(hash)).collect(),
            });
            frames.push(response(&api.backend, self.revision, step));
            self.put = verdict.put.into_iter();
        }
        let mut bytes = 0;
        let mut kvs = Vec::new();
        while bytes < PUT_BYTES_MAX
            && let Some(place) = self.put.next()
        {
            let kv = &self.events[place];
            bytes += kv.key_and_value().len();
            kvs.push(key_value(kv, KeysOnly::No));
        }
        if !kvs.is_empty() {
            frames.push(response(&api.backend, self.revision, Step::Put(pb::ResyncPut { kvs })));
        }
        if self.put.len() == 0 && self.done {
            let step = Step::Done(pb::ResyncDone { revision: self.revision });
            frames.push(response(&api.backend, self.revision, step));
            return Ok(true);
        }
        Ok(false)
    }
}

fn whole(range: &KeyRange) -> RangeRequest {
    RangeRequest {
        range: range.clone(),
        limit: 0,
        revision: 0,
        order: Default::default(),
        target: Default::default(),
        keys_only: false,
        count_only: false,
        modified: Default::default(),
        created: Default::default(),
    }
}

fn response(backend: &Backend, revision: Revision, step: Step) -> Bytes {
    let header = backend.header_now();
    let header = pb::StoreHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        raft_term: header.raft_term,
        epoch: backend.inspect(Keyspace::epoch).into(),
        revision,
    };
    frame(&pb::StoreWatchResponse { header: Some(header), step: Some(step) })
}

fn node(node: &Node) -> pb::MirrorNode {
    pb::MirrorNode { prefix: node.prefix(), level: node.level() }
}

/// `None` if the answer is malformed.
fn parse_answer(answer: pb::MirrorAnswer) -> Option<Answer> {
    let node = |node: Option<pb::MirrorNode>| {
        let node = node.unwrap_or_default();
        Node::new(node.prefix, node.level)
    };
    let summaries = answer.summaries.into_iter().map(|summary| {
        let digest = summary.digest[..].try_into().ok()?;
        Some(Summary { node: node(summary.node)?, keys: summary.keys, digest })
    });
    let lists = answer.lists.into_iter().map(|list| {
        let entries = list.entries.into_iter().map(|entry| {
            let hash = entry.key_hash[..].try_into().ok()?;
            Some(Entry { hash, revision: entry.mod_revision })
        });
        Some((node(list.node)?, entries.collect::<Option<_>>()?))
    });
    Some(Answer {
        summaries: summaries.collect::<Option<_>>()?,
        lists: lists.collect::<Option<_>>()?,
    })
}

fn unexpected_answer() -> Status {
    Status::invalid_argument("satrap: the mirror's answer does not match the last question")
}

fn refusal_of(reason: &Reason) -> Status {
    match reason {
        Reason::Denied(refusal) => refused(refusal),
        Reason::NegativeStart | Reason::EmptyRange | Reason::DuplicateId => {
            Status::invalid_argument(
                "satrap: the range is empty, or the start revision is negative; correct the request",
            )
        }
        Reason::TooMany => refused(&Refusal::TooManyRequests),
    }
}
