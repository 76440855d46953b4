//! The full mesh: every validator has a stream to every other.
//!
//! Each validator dials all others and sends on its own stream; if only one of a pair can reach the
//! other, the reply direction of that stream carries the other half. The identity of a peer comes
//! from mTLS and nothing else. Frames are best effort: a queue that is full loses the newest frame, and the
//! protocol repeats what matters.
//!
//! # Deliberately absent
//!
//! No gossip: a realm has few validators, and each message reaches all of them in one hop.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use satrap_certify::{Label, Realm};
use satrap_identity::mtls::{self, Credentials, PeerIdentity, PeerRule};
use satrap_proto::v1::{MeshFrame, mesh_client::MeshClient, mesh_frame::Body, mesh_server};
use satrap_runtime::{TaskGroup, clock, rng};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    inbox::Inbox,
    limits::{
        FRAME_BYTES_MAX, OUTBOX_BYTES_MAX, OUTBOX_FRAMES_MAX, OUTBOX_RESERVED_BYTES, PEERS_MAX,
    },
    malachite::Frame,
    status,
};

/// A validator that restarts meets all others at once; on a LAN it should be back within a round.
const REDIAL_MIN: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(1);

/// Where every other validator is dialed.
pub type Targets = BTreeMap<Label, String>;

/// A frame on its way to the network. It gives back its bytes when it is dropped.
struct Queued {
    frame: MeshFrame,
    _bytes: OwnedSemaphorePermit,
}

/// Frames that wait for the network, bounded in number and in bytes.
struct Outbox {
    frames: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
}

impl Outbox {
    fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (frames, queued) = mpsc::channel(OUTBOX_FRAMES_MAX);
        (Self { frames, bytes: Arc::new(Semaphore::new(OUTBOX_BYTES_MAX)) }, queued)
    }

    /// Queues `frame`, or loses it if there is no room. A frame that is sent again anyway, and may
    /// be large, leaves room for votes and proposals.
    fn send(&self, frame: MeshFrame) {
        let bulk = matches!(frame.body, Some(Body::Change(_) | Body::SyncResponse(_)));
        let reserved = if bulk { OUTBOX_RESERVED_BYTES } else { 0 };
        let bytes = frame.encoded_len();
        if bytes + reserved > self.bytes.available_permits() {
            return;
        }
        let Ok(permits) = u32::try_from(bytes) else { return };
        if let Ok(permit) = self.bytes.clone().try_acquire_many_owned(permits) {
            // A queue that is closed is about to be replaced.
            let _ = self.frames.try_send(Queued { frame, _bytes: permit });
        }
    }
}

/// The end of an outbox that the network takes from.
fn frames_of(queued: mpsc::Receiver<Queued>) -> impl Stream<Item = MeshFrame> + Send + 'static {
    ReceiverStream::new(queued).map(|queued| queued.frame)
}

/// One direction of a stream.
struct Side {
    opened: u64,
    outbox: Outbox,
    /// Dropping it ends the task that receives on this stream.
    _cut: oneshot::Sender<Infallible>,
}

#[derive(Default)]
struct Link {
    dialed: Option<Side>,
    accepted: Option<Side>,
}

#[derive(Clone, Copy)]
enum End {
    Dialed,
    Accepted,
}

impl Link {
    fn side(&mut self, end: End) -> &mut Option<Side> {
        match end {
            End::Dialed => &mut self.dialed,
            End::Accepted => &mut self.accepted,
        }
    }

    fn send(&self, frame: MeshFrame) {
        if let Some(side) = self.dialed.as_ref().or(self.accepted.as_ref()) {
            side.outbox.send(frame);
        }
    }
}

#[derive(Default)]
struct Table {
    links: BTreeMap<Label, Link>,
    opened: u64,
}

/// Live streams by peer. Clones share them.
#[derive(Clone, Default)]
pub struct Links(Arc<Mutex<Table>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every critical section is a few moves, so the table is whole even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends to one peer, if it is connected.
    pub fn send(&self, to: &Label, frame: MeshFrame) {
        if let Some(link) = self.lock().links.get(to) {
            link.send(frame);
        }
    }

    /// Sends to every connected validator.
    pub fn broadcast(&self, frame: &MeshFrame) {
        self.lock().links.values().for_each(|link| link.send(frame.clone()));
    }

    /// Ends all streams of a peer.
    pub fn cut(&self, peer: &Label) {
        self.lock().links.remove(peer);
    }

    /// The validators that are connected.
    #[must_use]
    pub fn connected(&self) -> BTreeSet<Label> {
        self.lock().links.keys().cloned().collect()
    }

    /// Registers a stream, in place of an older one of the same direction.
    fn open(&self, peer: &Label, end: End, outbox: Outbox) -> Option<Opened> {
        let mut table = self.lock();
        if !table.links.contains_key(peer) && table.links.len() >= PEERS_MAX {
            return None;
        }
        table.opened += 1;
        let opened = table.opened;
        let (cut, is_cut) = oneshot::channel();
        *table.links.entry(peer.clone()).or_default().side(end) =
            Some(Side { opened, outbox, _cut: cut });
        Some(Opened { links: self.clone(), peer: peer.clone(), end, opened, is_cut })
    }
}

/// A registered stream; dropping it removes the registration.
struct Opened {
    links: Links,
    peer: Label,
    end: End,
    opened: u64,
    is_cut: oneshot::Receiver<Infallible>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut table = self.links.lock();
        let Some(link) = table.links.get_mut(&self.peer) else { return };
        let side = link.side(self.end);
        if side.as_ref().is_some_and(|side| side.opened == self.opened) {
            *side = None;
        }
        if link.dialed.is_none() && link.accepted.is_none() {
            table.links.remove(&self.peer);
        }
    }
}

/// The mesh of one validator.
#[derive(Clone)]
pub struct Mesh {
    /// Own name.
    pub name: Label,
    /// The realm whose frames are parsed.
    pub realm: Realm,
    /// Where frames go.
    pub inbox: Inbox,
    /// Live streams.
    pub links: Links,
    /// Own credentials.
    pub credentials: Credentials,
    /// Owner of the stream tasks.
    pub group: TaskGroup,
}

impl Mesh {
    /// Dials the validators in `targets`, until shutdown.
    ///
    /// # Errors
    ///
    /// None; the signature is that of a task.
    pub async fn dial(self, mut targets: watch::Receiver<Targets>) -> Result<(), Infallible> {
        let mut dialing: BTreeMap<Label, (String, oneshot::Sender<Infallible>)> = BTreeMap::new();
        let shutdown = self.group.shutdown();
        loop {
            let wanted = targets.borrow_and_update().clone();
            // A dropped sender ends its task.
            dialing.retain(|name, (url, _)| wanted.get(name) == Some(url));
            for (name, url) in wanted {
                if name == self.name || dialing.contains_key(&name) {
                    continue;
                }
                let (keep, stop) = oneshot::channel();
                dialing.insert(name.clone(), (url.clone(), keep));
                let task = format!("mesh to {name}");
                self.group.spawn_transient(task, self.clone().dial_one(name, url, stop));
            }
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                changed = targets.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn dial_one(
        self,
        name: Label,
        url: String,
        mut stop: oneshot::Receiver<Infallible>,
    ) -> Result<(), Infallible> {
        let shutdown = self.group.shutdown();
        let mut was_up = true;
        loop {
            let session = async {
                let ended = self.session(&name, &url).await;
                // One line per change, not per attempt.
                match &ended {
                    Ok(()) => tracing::info!(peer = %name, "mesh stream ended"),
                    Err(why) if was_up => {
                        tracing::warn!(
                            peer = %name, %url, why,
                            "cannot reach a validator; see that it runs, and that governance or \
                             `peer_urls` names its URL"
                        );
                    }
                    Err(_) => {}
                }
                was_up = ended.is_ok();
                tokio::time::sleep(redial_pause(rng::u64())).await;
            };
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                _ = &mut stop => return Ok(()),
                () = session => {}
            }
        }
    }

    /// One stream that this side dials, until it ends.
    async fn session(&self, name: &Label, url: &str) -> Result<(), String> {
        let rule = PeerRule::Validator(name.to_string());
        let channel = mtls::connect(url, &self.credentials, rule).await;
        let mut client = MeshClient::new(channel.map_err(|e| e.to_string())?)
            .max_decoding_message_size(FRAME_BYTES_MAX);
        let (outbox, queued) = Outbox::new();
        let incoming = client.exchange(frames_of(queued)).await;
        let incoming = incoming.map_err(|status| status.message().to_owned())?.into_inner();
        let Some(opened) = self.links.open(name, End::Dialed, outbox) else {
            return Err(format!("{PEERS_MAX} peers are connected"));
        };
        tracing::info!(peer = %name, "mesh stream up");
        self.receive(opened, incoming).await;
        Ok(())
    }

    /// Hands frames of a stream to the consensus thread until it ends, is replaced or cut.
    async fn receive(&self, mut opened: Opened, mut incoming: Streaming<MeshFrame>) {
        loop {
            let frame = tokio::select! {
                _ = &mut opened.is_cut => return,
                frame = incoming.message() => frame,
            };
            let Ok(Some(frame)) = frame else { return };
            let bytes = frame.encoded_len();
            match Frame::from_wire(&self.realm, frame) {
                Ok(frame) => {
                    if !self.inbox.frame(&opened.peer, frame, bytes) {
                        tracing::debug!(peer = %opened.peer, "dropped a frame: its queue is full");
                    }
                }
                Err(error) => {
                    let peer = &opened.peer;
                    tracing::warn!(%peer, %error, "ending a stream: a frame does not parse");
                    return;
                }
            }
        }
    }
}

/// Full jitter: uniform over the whole range.
fn redial_pause(random: u64) -> Duration {
    let span = (REDIAL_MAX - REDIAL_MIN).as_nanos();
    let offset = (span * u128::from(random)) >> 64;
    REDIAL_MIN + Duration::from_nanos(u64::try_from(offset).expect("below a second"))
}

#[tonic::async_trait]
impl mesh_server::Mesh for Mesh {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<MeshFrame, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<MeshFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let peer = status::peer(&request, &PeerRule::AnyValidator)?;
        let name = validator_name(&peer).filter(|name| *name != self.name);
        let name = name.ok_or_else(|| status::denied("this is your own mesh"))?;
        let (outbox, queued) = Outbox::new();
        let opened = self.links.open(&name, End::Accepted, outbox);
        let opened = opened.ok_or_else(|| status::busy("too many peers are connected"))?;
        let (mesh, incoming) = (self.clone(), request.into_inner());
        let shutdown = self.group.shutdown();
        self.group.spawn_transient(format!("mesh from {name}"), async move {
            tokio::select! {
                () = shutdown.requested() => {}
                () = mesh.receive(opened, incoming) => {}
            }
            Ok::<(), Infallible>(())
        });
        Ok(Response::new(Box::pin(frames_of(queued).map(Ok))))
    }
}

fn validator_name(peer: &PeerIdentity) -> Option<Label> {
    Label::new(peer.id.name()).ok()
}

/// The wall and monotonic clock at once.
#[must_use]
pub fn now() -> crate::malachite::Now {
    let wall = satrap_certify::Timestamp(clock::now());
    crate::malachite::Now { monotonic: clock::monotonic(), wall }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_fill_their_range() {
        assert_eq!(redial_pause(0), REDIAL_MIN);
        assert!(redial_pause(u64::MAX) <= REDIAL_MAX);
        assert!(redial_pause(u64::MAX) > REDIAL_MAX - Duration::from_micros(1));
    }

    #[test]
    fn a_newer_stream_replaces_an_older_one_and_its_end_does_not_remove_the_newer() {
        let (links, peer) = (Links::default(), Label::new("v1").unwrap());
        let (first, _first_frames) = Outbox::new();
        let mut older = links.open(&peer, End::Accepted, first).unwrap();
        let (second, mut frames) = Outbox::new();
        let newer = links.open(&peer, End::Accepted, second).unwrap();
        assert!(older.is_cut.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Closed));
        drop(older);
        links.send(&peer, MeshFrame::default());
        assert!(frames.try_recv().is_ok());
        drop(newer);
        assert!(links.connected().is_empty());
    }

    /// A frame of exactly `bytes` on the wire.
    fn frame(bytes: usize, body: fn(bytes::Bytes) -> Body) -> MeshFrame {
        let of = |length| MeshFrame { body: Some(body(vec![0; length].into())) };
        let overhead = of(bytes).encoded_len() - bytes;
        let frame = of(bytes - overhead);
        assert_eq!(frame.encoded_len(), bytes);
        frame
    }

    #[test]
    fn bytes_in_an_outbox_at_the_limit_and_over_it_and_given_back() {
        let (outbox, mut received) = Outbox::new();
        let full = OUTBOX_BYTES_MAX / FRAME_BYTES_MAX;
        for _ in 0..full {
            outbox.send(frame(FRAME_BYTES_MAX, Body::Proposal));
        }
        assert_eq!(outbox.bytes.available_permits(), 0, "at the limit");
        outbox.send(frame(200, Body::Vote));
        assert_eq!(received.len(), full, "over it");
        drop(received.try_recv().unwrap());
        outbox.send(frame(FRAME_BYTES_MAX, Body::Proposal));
        assert_eq!(received.len(), full, "the bytes were given back");
    }

    #[test]
    fn changes_leave_room_for_votes_and_proposals() {
        let (outbox, received) = Outbox::new();
        let room = (OUTBOX_BYTES_MAX - OUTBOX_RESERVED_BYTES) / FRAME_BYTES_MAX;
        for _ in 0..=room {
            outbox.send(frame(FRAME_BYTES_MAX, Body::Change));
        }
        assert_eq!(received.len(), room);
        outbox.send(frame(FRAME_BYTES_MAX, Body::Proposal));
        outbox.send(frame(200, Body::Vote));
        assert_eq!(received.len(), room + 2);
    }

    #[test]
    fn a_peer_that_does_not_read_loses_frames_and_blocks_no_other() {
        let (links, peer) = (Links::default(), Label::new("v1").unwrap());
        let (outbox, mut received) = Outbox::new();
        let _opened = links.open(&peer, End::Dialed, outbox).unwrap();
        for _ in 0..=OUTBOX_FRAMES_MAX {
            links.broadcast(&MeshFrame::default());
        }
        for _ in 0..OUTBOX_FRAMES_MAX {
            assert!(received.try_recv().is_ok());
        }
        assert!(received.try_recv().is_err(), "over the limit");
    }
}
