//! A region that lies: processes with the region's own valid mTLS credentials that answer its edges.
//!
//! Each liar follows the validators like an honest member and serves true updates until
//! [`Conspiracy::start_lying`]. From then on it answers every edge with one lie per connection, in turn,
//! and never with the truth. Each lie is recorded with its receiver, so that `report.rs` can compare the
//! record with the refusals that edges report.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use satrap_certify::{
    BundleName, Genesis, Interest, Position, Replica, Timestamp, Update,
    limits::EDGE_UPDATE_BYTES_MAX, update::Delta,
};
use satrap_identity::mtls::{
    Credentials, Limits, Listener, PeerIdentity, PeerRule, server_builder,
};
use satrap_lies::{Lie, Truth};
use satrap_merkle::codec::Canonical as _;
use satrap_pressure::Freshness;
use satrap_proto::v1::{
    FollowReply, FollowRequest,
    follow_request::Body,
    sync_server::{Sync, SyncServer},
};
use satrap_runtime::{TaskGroup, clock};
use satrap_sync::{
    client::{Source, UpdateStream},
    pieces::pieces,
};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Replies that may wait for an edge to read them.
const OUTGOING_MAX: usize = 4;
/// Pause before the next attempt to reach a validator that is not up yet.
const RETRY: time::Duration = time::Duration::from_millis(100);

/// One lie that was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// The edge that received it.
    pub edge: String,
    /// The member that told it.
    pub member: String,
    /// The kind of lie.
    pub lie: Lie,
}

/// State that all liars of the region share.
#[derive(Debug)]
pub struct Conspiracy {
    genesis: Genesis,
    bundle: BundleName,
    lying: AtomicBool,
    next: AtomicUsize,
    told: Mutex<Vec<Told>>,
}

/// The certified state now, one version ago, and two versions ago.
#[derive(Clone, Debug)]
struct Knowledge {
    now: Replica,
    before: Replica,
    earlier: Replica,
}

impl Conspiracy {
    /// Shared state of liars that are still honest.
    #[must_use]
    pub fn new(genesis: Genesis, bundle: BundleName) -> Arc<Self> {
        Arc::new(Self {
            genesis,
            bundle,
            lying: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            told: Mutex::default(),
        })
    }

    /// From the next version on, which must be the third or later, every answer is a lie.
    pub fn start_lying(&self) {
        self.lying.store(true, Ordering::SeqCst);
    }

    /// The lies told so far, in order.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn version(&self, replica: &Replica) -> u64 {
        replica.heads().get(&self.bundle).map_or(0, |head| head.version)
    }

    /// The next lie for an edge at `position`.
    fn lie(&self, knowledge: &Knowledge, update: &Update, edge: &str, member: &str) -> Vec<u8> {
        let nothing = Replica::genesis(&self.genesis, Interest::Bundles(vec![self.bundle.clone()]));
        let old = knowledge.earlier.answer(&nothing.position());
        let old = old.ok().flatten().expect("liars lie only after the third version").update;
        let whole = |replica: &Replica| {
            let tree = replica.content(&self.bundle).expect("liars lie about what exists");
            Delta::whole(self.bundle.clone(), tree)
        };
        let lie = Lie::ALL[self.next.fetch_add(1, Ordering::SeqCst) % Lie::ALL.len()];
        let told = Told { edge: edge.to_owned(), member: member.to_owned(), lie };
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        lie.tell(
            Truth {
                realm: self.genesis.realm(),
                update,
                old: &old,
                bundle: &self.bundle,
                whole: &whole(&knowledge.now),
                old_whole: &whole(&knowledge.before),
            },
            EDGE_UPDATE_BYTES_MAX,
        )
    }
}

/// The member that a liar poses as, and its addresses.
#[derive(Clone, Debug)]
pub struct Mask {
    /// `region/member`.
    pub name: String,
    /// Where the region's edges connect.
    pub listen: SocketAddr,
    /// The member's own.
    pub credentials: Credentials,
    /// URL of the validator that it follows.
    pub upstream: String,
}

/// Starts a liar.
///
/// # Errors
///
/// If the address cannot be bound.
pub async fn start(
    tasks: &TaskGroup,
    conspiracy: Arc<Conspiracy>,
    mask: Mask,
) -> std::io::Result<()> {
    let Mask { name: member, listen, credentials, upstream } = mask;
    let genesis = Replica::genesis(&conspiracy.genesis, Interest::Everything);
    let knowledge = Knowledge { now: genesis.clone(), before: genesis.clone(), earlier: genesis };
    let (publish, knowledge) = watch::channel(Arc::new(knowledge));
    let rule = PeerRule::AnyOf(vec![
        PeerRule::Edge(credentials.current().id.region().unwrap_or_default().to_owned()),
        PeerRule::Operator,
    ]);
    let listener = Listener::bind(listen, credentials.clone(), rule, Limits::EDGES).await?;
    let shutdown = tasks.shutdown();
    let liar = Liar { conspiracy: conspiracy.clone(), member: member.clone(), knowledge };
    let server = server_builder(&Limits::EDGES).add_service(SyncServer::new(liar));
    tasks.spawn(
        format!("liar {member}"),
        server.serve_with_incoming_shutdown(listener, shutdown.requested()),
    );
    let shutdown = tasks.shutdown();
    tasks.spawn(format!("liar {member} upstream"), async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = learn(&conspiracy, &upstream, &credentials, &publish) => {}
        }
        Ok::<_, Infallible>(())
    });
    Ok(())
}

/// Follows a validator for ever, honestly.
async fn learn(
    conspiracy: &Conspiracy,
    upstream: &str,
    credentials: &Credentials,
    publish: &watch::Sender<Arc<Knowledge>>,
) {
    loop {
        let Err(why) = learn_once(conspiracy, upstream, credentials, publish).await;
        tracing::debug!("liar lost its validator: {why}");
        time::sleep(RETRY).await;
    }
}

async fn learn_once(
    conspiracy: &Conspiracy,
    upstream: &str,
    credentials: &Credentials,
    publish: &watch::Sender<Arc<Knowledge>>,
) -> Result<Infallible, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let source = Source { url: upstream.to_owned(), rule: PeerRule::AnyValidator };
    let mut building = publish.borrow().now.clone();
    let patience = conspiracy.genesis.policy.heartbeat.mul_f64(Freshness::LIMIT_HEARTBEATS);
    let opened = UpdateStream::open(&source, credentials, &building.position(), patience).await;
    let mut updates = opened.map_err(|e| text(&e))?;
    loop {
        let update = updates.next(patience).await.map_err(|e| text(&e))?;
        let advance = building.verify(&update, Timestamp(clock::now())).map_err(|e| text(&e))?;
        building.advance(advance);
        if !building.is_complete() {
            continue;
        }
        let mut knowledge = Knowledge::clone(&publish.borrow());
        let before = core::mem::replace(&mut knowledge.now, building.clone());
        if conspiracy.version(&before) < conspiracy.version(&knowledge.now) {
            knowledge.earlier = core::mem::replace(&mut knowledge.before, before);
        }
        publish.send_replace(Arc::new(knowledge));
    }
}

struct Liar {
    conspiracy: Arc<Conspiracy>,
    member: String,
    knowledge: watch::Receiver<Arc<Knowledge>>,
}

#[tonic::async_trait]
impl Sync for Liar {
    type FollowStream = ReceiverStream<Result<FollowReply, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>();
        let edge = peer.map(|peer| peer.id.name().to_owned()).unwrap_or_default();
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.body);
        let Some(Body::Position(position)) = first else {
            return Err(Status::invalid_argument("expected a position first"));
        };
        let position = Position::from_canonical(&position)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (replies, outgoing) = mpsc::channel(OUTGOING_MAX);
        let answer = Answer {
            conspiracy: self.conspiracy.clone(),
            member: self.member.clone(),
            edge,
            knowledge: self.knowledge.clone(),
            replies,
        };
        #[expect(clippy::disallowed_methods, reason = "ends with its stream; a liar in a demo")]
        tokio::spawn(answer.run(position, requests));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// One stream to one edge.
struct Answer {
    conspiracy: Arc<Conspiracy>,
    member: String,
    edge: String,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    replies: mpsc::Sender<Result<FollowReply, Status>>,
}

impl Answer {
    async fn run(mut self, mut position: Position, mut requests: Streaming<FollowRequest>) {
        loop {
            let knowledge = self.knowledge.borrow_and_update().clone();
            if let Ok(Some(answer)) = knowledge.now.answer(&position) {
                let update = answer.update;
                let news = !update.contents.is_empty();
                let lying = self.conspiracy.lying.load(Ordering::SeqCst) && news;
                let bytes = if lying {
                    self.conspiracy.lie(&knowledge, &update, &self.edge, &self.member)
                } else {
                    update.to_canonical()
                };
                for piece in pieces(bytes.into()) {
                    if self.replies.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
                if lying {
                    break;
                }
                position = answer.leads_to;
                continue;
            }
            tokio::select! {
                changed = self.knowledge.changed() => if changed.is_err() { return },
                request = requests.message() => if !matches!(request, Ok(Some(_))) { return },
            }
        }
        // After a lie, the edge refuses it and closes the stream.
        while let Ok(Some(_)) = requests.message().await {}
    }
}
