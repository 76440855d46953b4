//! A region that lies: processes with the region's own valid mTLS credentials that answer its edges.
//!
//! Each liar follows the validators like an honest member and serves the truth, until it is told
//! to lie. From then on it answers every edge with one lie per connection, in turn, and never with
//! the truth. What it told whom is kept, to be held against what the edges say they refused.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use satrap_certify::{
    BundleName, Genesis, Interest, Position, Replica, Timestamp, Update,
    limits::{EDGE_UPDATE_BYTES_MAX, UPDATE_BYTES_MAX},
    update::Delta,
};
use satrap_host::{
    TaskGroup, clock,
    follow::{self, Replies},
    mtls::{self, Credentials, Limits, Listener, PeerIdentity, PeerRule, server_builder},
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    FollowReply, FollowRequest,
    follow_request::Body,
    sync_server::{Sync, SyncServer},
};
use satrap_sim::lies::{Lie, Truth};
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Replies that wait for an edge to read them.
const OUTGOING_MAX: usize = 4;
/// A validator that is not up yet is tried again after this.
const RETRY: time::Duration = time::Duration::from_millis(100);

/// One lie that was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// To whom.
    pub edge: String,
    /// By which member.
    pub member: String,
    /// Which one.
    pub lie: Lie,
}

/// What all liars of the region share.
#[derive(Debug)]
pub struct Conspiracy {
    genesis: Genesis,
    bundle: BundleName,
    lying: AtomicBool,
    next: AtomicUsize,
    told: Mutex<Vec<Told>>,
}

/// What one liar knows: the truth now, one version ago, and two versions ago.
#[derive(Clone, Debug)]
struct Knowledge {
    now: Replica,
    before: Replica,
    earlier: Replica,
}

impl Conspiracy {
    /// Liars that are still honest.
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

    /// What was told so far, in order.
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

/// Who a liar pretends to be, and where.
#[derive(Clone, Debug)]
pub struct Mask {
    /// `region/member`.
    pub name: String,
    /// Where the region's edges connect.
    pub listen: SocketAddr,
    /// The member's own.
    pub credentials: Credentials,
    /// The validator that tells it the truth.
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
        Ok::<_, std::convert::Infallible>(())
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
        if let Err(why) = learn_once(conspiracy, upstream, credentials, publish).await {
            tracing::debug!("liar lost its validator: {why}");
        }
        time::sleep(RETRY).await;
    }
}

async fn learn_once(
    conspiracy: &Conspiracy,
    upstream: &str,
    credentials: &Credentials,
    publish: &watch::Sender<Arc<Knowledge>>,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let channel = mtls::connect(upstream, credentials, PeerRule::AnyValidator);
    let channel = channel.await.map_err(|e| text(&e))?;
    let (requests, outgoing) = mpsc::channel(1);
    let mut building = publish.borrow().now.clone();
    let body = Some(Body::Position(building.position().to_canonical().into()));
    requests.send(FollowRequest { body }).await.map_err(|e| text(&e))?;
    let stream = follow::client(channel).follow(ReceiverStream::new(outgoing)).await;
    let stream = stream.map_err(|e| text(&e))?.into_inner();
    let mut replies = Replies::new(stream, UPDATE_BYTES_MAX);
    while let Some(update) = replies.next().await.map_err(|e| text(&e))? {
        let update = Update::from_canonical(&update).map_err(|e| text(&e))?;
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
    Ok(())
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
                for piece in follow::pieces(bytes.into()) {
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
        // After a lie: wait for the edge to hang up.
        while let Ok(Some(_)) = requests.message().await {}
    }
}
