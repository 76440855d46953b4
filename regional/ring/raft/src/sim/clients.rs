//! The clients of a simulated ring, which record their operations.

use std::{sync::Arc, time::Duration};

use satrap_history::{
    Answer, Body, Failure, Operation, Outcome, Request,
    random::Random,
    workload::{LeaseKeeper, Workload},
};
use satrap_ring_api::{
    Backend,
    backend::{ReadMode, Unavailable},
};
use satrap_ring_core::{Caller, Refusal};
use tokio::time::{sleep, timeout};

use super::{bug::Bug, words, world::World};

/// Time limit of a client's operation.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// One client, with one operation in progress.
struct Session {
    world: Arc<World>,
    client: u32,
    chance: Random,
    /// The index of the member that it talks to.
    place: u64,
}

/// Reads and writes shared keys until `world` ends the clients' part.
pub async fn work(world: Arc<World>, client: u32) {
    let mut session = Session::new(world, client);
    let mut workload = Workload::new(client);
    while !session.world.is_calm() {
        let request = workload.next(&mut session.chance);
        if let Some(Outcome::Ok(answer)) = session.run(&request).await {
            workload.learn(&request, &answer);
        }
        let think = session.chance.between(1, 60);
        sleep(Duration::from_millis(think)).await;
    }
}

/// Keeps leases alive until `world` ends the clients' part.
pub async fn keep_leases(world: Arc<World>, client: u32) {
    let mut session = Session::new(world, client);
    let mut keeper = LeaseKeeper::new(client);
    let mut last = None;
    while !session.world.is_calm() {
        let (request, wait_ns) = keeper.next(&mut session.chance, last.as_ref());
        sleep(Duration::from_nanos(wait_ns)).await;
        last = session.run(&request).await;
    }
}

/// Compacts recorded revisions until `world` ends the clients' part.
pub async fn compact(world: Arc<World>, client: u32) {
    let mut session = Session::new(world, client);
    while !session.world.is_calm() {
        let wait = session.chance.between(200, 900);
        sleep(Duration::from_millis(wait)).await;
        let complete = session.world.recorder().complete();
        if let Some(request) = Workload::compaction(complete) {
            session.run(&request).await;
        }
    }
}

/// Writes one key through `backend`.
pub async fn touch(world: &Arc<World>, client: u32, backend: &Backend) -> Outcome {
    let mut session = Session::new(world.clone(), client);
    let value = format!("{client}:touch:{}", world.now_ns());
    let put = satrap_history::Put { key: "k/0".into(), value, lease: 0 };
    session.record(backend, &Request::Put(put), Duration::from_secs(10)).await
}

/// The outcome of a write while NOSPACE is raised.
pub fn no_space() -> Outcome {
    Outcome::Fail(words::failure(&Refusal::NoSpace))
}

impl Session {
    fn new(world: Arc<World>, client: u32) -> Self {
        let mut chance = Random::new(world.seed ^ u64::from(client) << 32);
        let place = chance.number();
        Self { world, client, chance, place }
    }

    /// Runs one operation on the current member, or on the next one if that does not serve.
    async fn run(&mut self, request: &Request) -> Option<Outcome> {
        let names = self.world.names();
        let name = names.get(self.place as usize % names.len().max(1))?;
        let Some(backend) = self.world.backend(name) else {
            self.place = self.chance.number();
            sleep(Duration::from_millis(20)).await;
            return None;
        };
        let outcome = self.record(&backend, request, PATIENCE).await;
        if outcome == Outcome::Unknown || self.chance.chance(50) {
            self.place = self.chance.number();
        }
        Some(outcome)
    }

    async fn record(
        &mut self,
        backend: &Backend,
        request: &Request,
        patience: Duration,
    ) -> Outcome {
        let call_ns = self.world.stamp();
        let asked = timeout(patience, ask(backend, request, self.mode(), self.world.bug));
        let outcome = asked.await.unwrap_or(Outcome::Unknown);
        let return_ns = (outcome != Outcome::Unknown).then(|| self.world.stamp());
        let id = self.world.next_id();
        let operation = Operation {
            client: self.client,
            id,
            call_ns,
            return_ns,
            member: backend.identity().member_id,
            request: request.clone(),
            outcome: outcome.clone(),
        };
        self.world.note(&operation.to_string());
        self.world.operations().push(operation);
        outcome
    }

    fn mode(&mut self) -> ReadMode {
        if self.chance.chance(400) { ReadMode::Lease } else { ReadMode::Linearizable }
    }
}

/// Executes a request as a service does.
async fn ask(backend: &Backend, request: &Request, mode: ReadMode, bug: Option<Bug>) -> Outcome {
    let refused = |refusal: &Refusal| Outcome::Fail(words::failure(refusal));
    let answer = |revision, term, body| {
        let member = backend.identity().member_id;
        Outcome::Ok(Answer { revision, member, term, body })
    };
    let Some(proposal) = words::proposal(request) else {
        let stale = matches!(request, Request::Range(range) if range.serializable);
        if !stale
            && bug != Some(Bug::StaleRead)
            && let Err(error) = backend.fresh(mode).await
        {
            return unavailable(error);
        }
        let caller = Caller::default();
        let read = backend.inspect(|keyspace| match request {
            Request::Range(range) => {
                let response = keyspace.range(&caller, &words::range(range))?;
                Ok((response.revision, words::range_body(&response)))
            }
            Request::Txn(txn) => {
                let response = keyspace.read_txn(&caller, &words::txn(txn))?;
                Ok((response.revision, words::txn_body(&response)))
            }
            other => panic!("{other:?} does not only read"),
        });
        return match read {
            Ok((revision, body)) => answer(revision, backend.mark().term, body),
            Err(refusal) => refused(&refusal),
        };
    };
    match backend.propose(Caller::default(), proposal).await {
        Ok(applied) => match (applied.reply, request) {
            (Ok(response), Request::Inspect(id)) => {
                let left = backend.inspect(|keyspace| {
                    keyspace.time_to_live(&Caller::default(), *id, keyspace.now())
                });
                let left = left.map_or(-1, |left| left.remaining_s);
                answer(response.revision(), applied.term, Body::Ttl(left))
            }
            (Ok(response), _) => {
                answer(response.revision(), applied.term, words::body(request, &response))
            }
            (Err(refusal), _) => match words::conflict(request, &refusal) {
                // As in the service, the header has the member's current revision.
                Some(body) => answer(backend.mark().revision, applied.term, body),
                None => refused(&refusal),
            },
        },
        Err(error) => unavailable(error),
    }
}

/// CALLS-3: these two guarantee that nothing was written.
fn unavailable(error: Unavailable) -> Outcome {
    match error {
        Unavailable::NoLeader | Unavailable::TooManyRequests => {
            Outcome::Fail(Failure::Refused(error.to_string()))
        }
        Unavailable::LeaderChanged | Unavailable::Timeout | Unavailable::Stopped => {
            Outcome::Unknown
        }
    }
}
