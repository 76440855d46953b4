//! The attacks there are, each on everything that its principal can reach.
//!
//! A worker pauses between two tries, because an attack that takes all of this machine's processor
//! time would only measure itself; the pauses are what a few machines can send.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all, stream};
use http::Request;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use satrap_certify::limits::CHANGE_BYTES_MAX;
use satrap_certify::{Action, BundleName, Change, Interest, Key, Position, Publish, SignedChange};
use satrap_identity::mtls::{Credentials, PeerRule, connect};
use satrap_merkle::{BundleTree, codec::Canonical as _};
use satrap_operator::keys;
use satrap_proto::v1::{
    FollowRequest, GovernanceRequest, LightBlocksRequest, MeshFrame, MeshStatus, StatusRequest,
    SubmitRequest, SyncRequest, control_client::ControlClient, follow_request,
    mesh_client::MeshClient, mesh_frame, sync_client::SyncClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

use super::attack::{Attack, Attacker, Endless, Tally};

/// Before a worker tries again what it was refused.
const PAUSE: Duration = Duration::from_millis(100);
/// Before a socket that was cut comes back.
const SOCKET_PAUSE: Duration = Duration::from_millis(500);
/// After this a worker gives a call up that is not answered, and makes another.
const PATIENCE: Duration = Duration::from_secs(2);
const SOCKETS_PER_SERVER: usize = 400;
const CONNECTIONS_PER_SERVER: usize = 24;
const STREAMS_PER_SERVER: usize = 96;
const POSITION_STREAMS_PER_SERVER: usize = 8;
const CALLERS_PER_SERVER: usize = 8;
const SUBMITTERS_PER_SERVER: usize = 4;
const REQUESTS_PER_CONNECTION: usize = 32;
/// Keys of a large change that differ in their last bytes only.
const LARGE_CHANGE_KEYS: usize = 1_500;
const SHARED_PREFIX_BYTES: usize = 180;
/// A TLS record that announces a ClientHello of 512 bytes, and its first bytes.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// Sockets that say nothing.
pub const IDLE_SOCKETS: Attack = Attack { name: "idle sockets", run: |a, t| sockets(a, t, b"") };
/// Sockets that begin a handshake and leave it.
pub const HALF_HELLOS: Attack =
    Attack { name: "half handshakes", run: |a, t| sockets(a, t, HALF_A_HELLO) };
/// Authenticated connections that are only held.
pub const CONNECTIONS: Attack = Attack {
    name: "connections",
    run: |a, t| everywhere(a, t, CONNECTIONS_PER_SERVER, hold_connection),
};
/// Streams that follow everything and are only held.
pub const STREAMS: Attack = Attack {
    name: "follow streams",
    run: |a, t| everywhere(a, t, STREAMS_PER_SERVER, hold_stream),
};
/// Positions with made-up heights and roots, whose answers are not read.
pub const POSITIONS: Attack = Attack {
    name: "made-up positions",
    run: |a, t| everywhere(a, t, POSITION_STREAMS_PER_SERVER, send_positions),
};
/// Submissions that are no changes.
pub const GARBAGE: Attack = Attack {
    name: "submitted garbage",
    run: |a, t| everywhere(a, t, SUBMITTERS_PER_SERVER, submit_garbage),
};
/// Submissions that announce the largest change and never send its last byte.
pub const UNFINISHED: Attack = Attack {
    name: "unfinished requests",
    run: |a, t| everywhere(a, t, CONNECTIONS_PER_SERVER, hold_requests),
};
/// Large changes that are refused.
pub const REFUSED: Attack = Attack {
    name: "refused changes",
    run: |a, t| everywhere(a, t, SUBMITTERS_PER_SERVER, submit_refused),
};
/// Large changes that are valid, of bundles of the attacker's own.
pub const VALID: Attack =
    Attack { name: "large valid changes", run: |a, t| everywhere(a, t, 1, submit_valid) };
/// Calls of `Status` and `Governance`.
pub const READS: Attack =
    Attack { name: "status calls", run: |a, t| everywhere(a, t, CALLERS_PER_SERVER, read) };
/// All blocks, not read.
pub const LIGHT_BLOCKS: Attack = Attack {
    name: "light blocks",
    run: |a, t| everywhere(a, t, CALLERS_PER_SERVER, hold_light_blocks),
};
/// Frames for the consensus of validators.
pub const MESH: Attack =
    Attack { name: "mesh frames", run: |a, t| on(a.mesh_urls.clone(), a, t, 2, send_frames) };

fn sockets(attacker: Arc<Attacker>, tally: Arc<Tally>, words: &'static [u8]) -> Endless {
    let addresses = attacker.addresses().into_iter();
    let all: Vec<_> = addresses
        .flat_map(|address| vec![address; SOCKETS_PER_SERVER])
        .map(|address| {
            let tally = tally.clone();
            async move {
                loop {
                    if let Ok(mut socket) = TcpStream::connect(address).await {
                        tally.sent(words.len());
                        let said = socket.write_all(words).await;
                        if said.is_err() || !matches!(socket.read(&mut [0]).await, Ok(1..)) {
                            tally.refused();
                        }
                    }
                    sleep(SOCKET_PAUSE).await;
                }
            }
        })
        .collect();
    endless(all)
}

/// All workers of an attack.
fn endless(workers: Vec<impl Future<Output = Infallible> + 'static>) -> Endless {
    Box::pin(async move {
        drop(join_all(workers).await);
    })
}

/// One server as a worker sees it.
#[derive(Clone)]
struct Aim {
    attacker: Arc<Attacker>,
    tally: Arc<Tally>,
    url: String,
    /// Of the worker; no two have the same.
    number: u64,
}

/// Why a worker's try ended: always because of the server.
type Ended = Box<dyn std::error::Error>;

/// Runs `workers` of `act` against each server; each connects for itself and tries for ever.
fn everywhere<F: Future<Output = Result<Infallible, Ended>> + 'static>(
    attacker: Arc<Attacker>,
    tally: Arc<Tally>,
    workers: usize,
    act: fn(Aim, Channel) -> F,
) -> Endless {
    on(attacker.urls.clone(), attacker, tally, workers, act)
}

/// As [`everywhere`], on some servers only.
fn on<F: Future<Output = Result<Infallible, Ended>> + 'static>(
    urls: Vec<String>,
    attacker: Arc<Attacker>,
    tally: Arc<Tally>,
    workers: usize,
    act: fn(Aim, Channel) -> F,
) -> Endless {
    let aims = urls.into_iter().flat_map(|url| vec![url; workers]).zip(0..);
    let all: Vec<_> = aims
        .map(|(url, number)| {
            let (attacker, tally) = (attacker.clone(), tally.clone());
            let aim = Aim { attacker, tally, url, number };
            async move {
                loop {
                    if let Some(channel) = aim.connect().await {
                        // The rest of it was refused.
                        drop(act(aim.clone(), channel).await);
                        aim.tally.refused();
                    }
                    sleep(PAUSE).await;
                }
            }
        })
        .collect();
    endless(all)
}

impl Aim {
    fn credentials(&self) -> Option<&Credentials> {
        self.attacker.credentials.as_ref()
    }

    async fn connect(&self) -> Option<Channel> {
        let rule = PeerRule::AnyOf(vec![PeerRule::AnyMember, PeerRule::AnyValidator]);
        let channel = connect(&self.url, self.credentials()?, rule).await;
        if channel.is_err() {
            self.tally.refused();
        }
        channel.ok()
    }

    fn control(&self, channel: Channel) -> ControlClient<Channel> {
        let bytes_max = 16 * 1024 * 1024;
        ControlClient::new(channel).max_decoding_message_size(bytes_max)
    }

    fn position(&self, height: u64) -> FollowRequest {
        let made_up = [u8::try_from(height % 251).unwrap_or_default(); 32];
        let position = Position {
            genesis_hash: *self.attacker.genesis.realm().genesis_hash(),
            height,
            directory_root: made_up,
            history_size: height,
            interest: Interest::Everything,
            held: Vec::new(),
        };
        let body = follow_request::Body::Position(position.to_canonical().into());
        FollowRequest { body: Some(body) }
    }
}

async fn hold_connection(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    // A connection without a request is cut; this one asks for nothing it may have, now and then.
    loop {
        aim.tally.sent(1);
        if let Err(status) = aim.control(channel.clone()).governance(GovernanceRequest {}).await
            && status.code() == tonic::Code::Unavailable
        {
            return Err(status.into());
        }
        sleep(PATIENCE).await;
    }
}

async fn hold_stream(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    let (positions, outgoing) = mpsc::channel(1);
    let position = aim.position(0);
    aim.tally.sent(1);
    positions.send(position).await?;
    let mut stream =
        SyncClient::new(channel).follow(ReceiverStream::new(outgoing)).await?.into_inner();
    while stream.message().await?.is_some() {}
    Err("the stream ended".into())
}

async fn send_positions(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    let (positions, outgoing) = mpsc::channel(1);
    aim.tally.sent(128);
    positions.send(aim.position(0)).await?;
    let _unread = SyncClient::new(channel).follow(ReceiverStream::new(outgoing)).await?;
    for height in 1.. {
        let position = aim.position(height * 1_000_003 % 97);
        aim.tally.sent(128);
        positions.send(position).await?;
        sleep(PAUSE / 10).await;
    }
    Err("no height is left".into())
}

async fn submit(aim: &Aim, channel: &Channel, change: Vec<u8>) {
    aim.tally.sent(change.len());
    let request = SubmitRequest { change: change.into() };
    if !matches!(timeout(PATIENCE, aim.control(channel.clone()).submit(request)).await, Ok(Ok(_))) {
        aim.tally.refused();
    }
}

async fn submit_garbage(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    loop {
        submit(&aim, &channel, vec![7; 512 * 1024]).await;
        sleep(PAUSE).await;
    }
}

async fn hold_requests(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    const BYTES: u32 = CHANGE_BYTES_MAX as u32;
    let hold = async |mut channel: Channel| -> Result<(), Ended> {
        let mut message = vec![0];
        message.extend(BYTES.to_be_bytes());
        message.resize(BYTES as usize, 7);
        aim.tally.sent(message.len());
        let first = Frame::data(Bytes::from(message));
        let body = stream::iter([Ok::<_, Infallible>(first)]).chain(stream::pending());
        let request = Request::post(format!("{}/satrap.v1.Control/Submit", aim.url))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(StreamBody::new(body)))?;
        channel.ready().await?.call(request).await?;
        aim.tally.refused();
        Ok(())
    };
    loop {
        let all = (0..REQUESTS_PER_CONNECTION).map(|_| hold(channel.clone()));
        for held in join_all(all).await {
            held?;
        }
        sleep(PAUSE).await;
    }
}

/// Keys with a long shared prefix, which make a deep tree.
fn large_tree(salt: u64) -> BundleTree {
    let mut tree = BundleTree::default();
    for n in 0..LARGE_CHANGE_KEYS {
        let text = format!("{}{n:06}", "p".repeat(SHARED_PREFIX_BYTES));
        let key = Key::new(text.as_bytes()).expect("a key of this length");
        tree.insert(&key, format!("{salt}").into_bytes().into());
    }
    tree
}

async fn publish(
    aim: &Aim,
    bundle: &str,
    version: u64,
    from: &BundleTree,
    to: &BundleTree,
) -> SignedChange {
    let bundle = BundleName::new(bundle).expect("a bundle name");
    let publish = Publish::between(bundle, version, from, to);
    let change = Change::new(aim.attacker.genesis.realm(), Action::Publish(publish));
    let mut signed = SignedChange::unsigned(change);
    if let Some(key) = &aim.attacker.key {
        keys::approve(&mut signed, &**key).await.expect("a key in memory signs");
    }
    signed
}

async fn submit_refused(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    let tree = large_tree(aim.number);
    // The version is wrong whenever it is looked at, and found so last.
    let stale = publish(&aim, "config/honest", 999_999, &BundleTree::default(), &tree).await;
    let bytes = stale.to_canonical();
    loop {
        submit(&aim, &channel, bytes.clone()).await;
        sleep(PAUSE).await;
    }
}

async fn submit_valid(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    let bundle = format!("evil/{}", aim.number);
    let (mut version, mut held) = (0, BundleTree::default());
    loop {
        let next = large_tree(version);
        let bytes = publish(&aim, &bundle, version, &held, &next).await.to_canonical();
        aim.tally.sent(bytes.len());
        let request = SubmitRequest { change: bytes.into() };
        match aim.control(channel.clone()).submit(request).await {
            Ok(_) => (version, held) = (version + 1, next),
            Err(_) => aim.tally.refused(),
        }
        sleep(PAUSE).await;
    }
}

async fn read(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    loop {
        aim.tally.sent(1);
        let mut control = aim.control(channel.clone());
        let status = control.status(StatusRequest { local_only: false }).await;
        let governance = control.governance(GovernanceRequest {}).await;
        if status.is_err() && governance.is_err() {
            aim.tally.refused();
        }
        sleep(PAUSE / 5).await;
    }
}

async fn hold_light_blocks(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    aim.tally.sent(1);
    let request = LightBlocksRequest { from_height: 1, to_height: 0 };
    let _unread = aim.control(channel).light_blocks(request).await?;
    sleep(10 * PATIENCE).await;
    Err("held for long enough".into())
}

/// Frames that decode and mean nothing, until the peer is cut off; then some that do not decode.
async fn send_frames(aim: Aim, channel: Channel) -> Result<Infallible, Ended> {
    const FRAMES: u64 = 2_000;
    let (frames, outgoing) = mpsc::channel(64);
    let mut replies =
        MeshClient::new(channel).exchange(ReceiverStream::new(outgoing)).await?.into_inner();
    let send = async {
        for n in 0..FRAMES {
            let height = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let body = match n % 3 {
                0 => mesh_frame::Body::Status(MeshStatus { height }),
                _ => mesh_frame::Body::SyncRequest(SyncRequest { height: n % 7 }),
            };
            aim.tally.sent(16);
            frames.send(MeshFrame { body: Some(body) }).await?;
            if n % 100 == 99 {
                sleep(PAUSE / 2).await;
            }
        }
        let garbage = mesh_frame::Body::Proposal(vec![7; 256 * 1024].into());
        aim.tally.sent(256 * 1024);
        frames.send(MeshFrame { body: Some(garbage) }).await?;
        Err::<Infallible, Ended>("all frames are sent".into())
    };
    let read = async {
        while replies.message().await?.is_some() {}
        Err::<Infallible, Ended>("the stream ended".into())
    };
    tokio::select! {
        ended = send => ended,
        ended = read => ended,
    }
}
