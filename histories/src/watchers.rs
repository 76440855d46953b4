//! Watchers, and the recorders that write down each member's log.

use std::{sync::Arc, time::Duration};

use satrap_history::{
    Delivered, Delivery, Filter, MemberLog, Revision, Span, Watch, WatchRequest,
    random::Random,
    workload::{LEASED, SHARED, SHARED_KEYS},
};
use satrap_proto::etcdserverpb::{
    self as pb, WatchCreateRequest, WatchProgressRequest, WatchResponse, watch_client::WatchClient,
    watch_create_request::FilterType, watch_request::RequestUnion,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    shared::{Peer, Shared, now_ns},
    wire,
};

const OPEN: Duration = Duration::from_millis(800);
/// How often a stream is looked after when nothing comes.
const LOOK: Duration = Duration::from_millis(300);

/// An open stream with one watch.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: Channel, request: &WatchRequest) -> Option<Self> {
        let (requests, outgoing) = mpsc::channel(4);
        let filters = match request.filter {
            Filter::Nothing => vec![],
            Filter::Puts => vec![FilterType::Noput.into()],
            Filter::Deletes => vec![FilterType::Nodelete.into()],
        };
        let create = WatchCreateRequest {
            key: request.span.key.clone().into_bytes().into(),
            range_end: request.span.end.clone().unwrap_or_default().into_bytes().into(),
            start_revision: request.start,
            progress_notify: true,
            filters,
            prev_kv: request.before,
            fragment: request.fragment,
            ..WatchCreateRequest::default()
        };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(create).await.ok()?;
        let mut client = WatchClient::new(channel);
        let opened = timeout(OPEN, client.watch(ReceiverStream::new(outgoing))).await;
        Some(Self { requests, answers: opened.ok()?.ok()?.into_inner() })
    }

    async fn ask_progress(&self) {
        let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
        // A full queue means that the last question is not yet on its way.
        drop(self.requests.try_send(pb::WatchRequest { request_union: Some(ask) }));
    }
}

/// A response as the checkers see it.
fn delivery(answer: &WatchResponse) -> Delivery {
    let header = answer.header.as_ref().map_or(0, |header| header.revision);
    let what = if answer.canceled {
        let reason = answer.cancel_reason.clone();
        Delivered::Canceled { compacted: answer.compact_revision, reason }
    } else if answer.created {
        Delivered::Created(header)
    } else if answer.events.is_empty() {
        Delivered::Progress(header)
    } else {
        let events = answer.events.iter().filter_map(wire::event).collect();
        Delivered::Events { events, fragment: answer.fragment }
    };
    Delivery { at_ns: now_ns(), what }
}

/// The first watchers watch much, and all of one kind or another; the others one key each, so that
/// many of them fit into the memory of a run.
const MIXED: u32 = 16;

/// The keys and options of watcher number `client`.
fn interest(random: &mut Random, client: u32) -> WatchRequest {
    WatchRequest {
        span: match client % 8 {
            _ if client >= MIXED => {
                Span::key(format!("{SHARED}{}", u64::from(client) % SHARED_KEYS))
            }
            0 => Span { key: "\u{1}".into(), end: Some("~".into()) },
            1 => Span::prefix(LEASED),
            2..5 => Span::prefix(SHARED),
            other => Span::key(format!("{SHARED}{other}")),
        },
        start: 0,
        filter: *random.pick(&[Filter::Nothing, Filter::Nothing, Filter::Puts, Filter::Deletes]),
        before: random.chance(700),
        fragment: random.chance(300),
    }
}

/// Watches on any member until told to stop, resuming where it left off.
pub async fn watch(shared: Arc<Shared>, client: u32, seed: u64) -> Vec<Watch> {
    let mut random = Random::new(seed ^ u64::from(client) << 44);
    let mut request = interest(&mut random, client);
    shared.will_wait();
    let (mut watches, mut kept) = (Vec::new(), None);
    while !shared.should_stop() {
        let called_ns = now_ns();
        let opened = open(&shared, &mut random, kept.take(), &request).await;
        let Some((connected, stream)) = opened else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut watch = Watch {
            client,
            member: connected.0.slot as u64,
            request: request.clone(),
            called_ns,
            deliveries: Vec::new(),
            closed_ns: None,
        };
        follow(&shared, &mut random, stream, &mut watch).await;
        request.start = resume_at(&watch);
        // A compaction ends a watch and not its connection.
        kept = compacted_at(&watch).map(|_| connected);
        watches.push(watch);
    }
    watches
}

/// A member and the connection to it.
type Connected = (Peer, Channel);

/// Opens the next stream of a watcher, on the connection that it kept or on a new one to any member.
async fn open(
    shared: &Shared,
    random: &mut Random,
    kept: Option<Connected>,
    request: &WatchRequest,
) -> Option<(Connected, Stream)> {
    let (_turn, connected) = match kept {
        Some(connected) => (None, connected),
        None => {
            let turn = shared.turns.0.acquire().await.ok()?;
            let peer = shared.any_peer(random)?;
            let channel = shared.dialer.connect(&peer.url).await?;
            (Some(turn), (peer, channel))
        }
    };
    let stream = Stream::open(connected.1.clone(), request).await?;
    Some((connected, stream))
}

/// The compaction that ended a watch, if one did.
fn compacted_at(watch: &Watch) -> Option<Revision> {
    match watch.deliveries.last()?.what {
        Delivered::Canceled { compacted, .. } => Some(compacted).filter(|at| *at > 0),
        _ => None,
    }
}

/// The revision at which the next stream of a watcher goes on.
fn resume_at(watch: &Watch) -> Revision {
    if let Some(compacted) = compacted_at(watch) {
        return compacted;
    }
    match watch.deliveries.last().map(|delivery| &delivery.what) {
        // The rest of the revision is still to come.
        Some(Delivered::Events { events, fragment: true }) => {
            events.last().map_or(0, |last| last.event.revision())
        }
        _ => watch.next_wanted().unwrap_or(watch.request.start),
    }
}

/// Takes what a stream delivers until it ends, or the watcher has seen all, or wants another.
async fn follow(shared: &Shared, random: &mut Random, mut stream: Stream, watch: &mut Watch) {
    loop {
        match timeout(LOOK, stream.answers.message()).await {
            Ok(Ok(Some(answer))) => {
                watch.deliveries.push(delivery(&answer));
                if answer.canceled {
                    watch.closed_ns = Some(now_ns());
                    return;
                }
            }
            Ok(Ok(None) | Err(_)) => {
                watch.closed_ns = Some(now_ns());
                return;
            }
            Err(_) => {}
        }
        let target = shared.target();
        if random.chance(if target.is_some() { 500 } else { 15 }) {
            stream.ask_progress().await;
        }
        let next = watch.next_wanted().unwrap_or(0);
        if shared.should_stop() || target.is_some_and(|target| next > target) {
            // A watcher at the last revision has seen all, and waits for the others.
            shared.has_caught_up();
            while !shared.should_stop() {
                sleep(Duration::from_millis(50)).await;
            }
            return;
        }
        if target.is_none() && random.chance(4) {
            watch.closed_ns = Some(now_ns());
            return;
        }
    }
}

/// Writes down the log of one member until told to stop.
pub async fn record(shared: Arc<Shared>, slot: usize) -> MemberLog {
    let mut log = MemberLog { member: slot as u64, ..MemberLog::default() };
    let mut next = 2;
    while !shared.should_stop() {
        let Some(Peer { url, .. }) = shared.peers().into_iter().find(|peer| peer.slot == slot)
        else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let request = WatchRequest {
            span: Span { key: "\u{1}".into(), end: Some("~".into()) },
            start: next,
            filter: Filter::Nothing,
            before: false,
            fragment: false,
        };
        let channel = shared.dialer.connect(&url).await;
        let opened = match channel {
            Some(channel) => Stream::open(channel, &request).await,
            None => None,
        };
        let Some(mut stream) = opened else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !shared.should_stop() {
            match timeout(LOOK, stream.answers.message()).await {
                Ok(Ok(Some(answer))) if answer.canceled => {
                    next = next.max(answer.compact_revision);
                    break;
                }
                Ok(Ok(Some(answer))) => {
                    for event in answer.events.iter().filter_map(wire::event) {
                        let revision = event.event.revision();
                        log.entries.entry(revision).or_default().push(event.event);
                        next = revision + 1;
                    }
                    shared.record(slot, next - 1);
                }
                Ok(Ok(None) | Err(_)) => break,
                Err(_) => {}
            }
        }
    }
    log
}
