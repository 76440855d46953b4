//! The clients that write and read, and record what they did.

use std::{sync::Arc, time::Duration};

use satrap_history::{
    Nanos, Operation, Outcome, Request,
    random::Random,
    workload::{LeaseKeeper, Workload},
};
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::{
    session::call,
    shared::{Peer, Shared, now_ns},
};

/// Pauses between a client's operations are up to this long. It sets the rate of a run, so that
/// ten thousand operations take as long as the faults do.
const THINK_US_MAX: u64 = 8_000;

/// One client with its connection and its record.
pub struct Client {
    shared: Arc<Shared>,
    number: u32,
    random: Random,
    session: Option<(Peer, Channel)>,
    operations: Vec<Operation>,
}

impl Client {
    /// A client that has no connection yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, number: u32, seed: u64) -> Self {
        let random = Random::new(seed ^ u64::from(number) << 40);
        Self { shared, number, random, session: None, operations: Vec::new() }
    }

    /// Connects to some member if need be; a connection that fails is no operation.
    async fn session(&mut self) -> Option<(Peer, Channel)> {
        if self.session.is_none() {
            let peer = self.shared.any_peer(&mut self.random)?;
            self.session =
                self.shared.dialer.connect(&peer.url).await.map(|channel| (peer, channel));
        }
        self.session.clone()
    }

    /// Sends a request and records it; `None` if there was no member to send it to.
    async fn perform(&mut self, request: Request) -> Option<&Operation> {
        let Some((peer, channel)) = self.session().await else {
            sleep(Duration::from_millis(20)).await;
            return None;
        };
        let call_ns = now_ns();
        let outcome = call(channel, &request).await;
        let is_known = outcome != Outcome::Unknown;
        if !is_known {
            self.session = None;
        }
        self.operations.push(Operation {
            client: self.number,
            id: (u64::from(self.number) << 32) | self.operations.len() as u64,
            call_ns,
            return_ns: is_known.then(now_ns),
            member: peer.slot as u64,
            request,
            outcome,
        });
        self.shared.count(self.operations.last()?);
        // Sometimes to another member, although this one answers.
        if self.random.chance(20) {
            self.session = None;
        }
        self.operations.last()
    }

    /// Reads and writes shared keys until told to stop.
    pub async fn share(mut self) -> Vec<Operation> {
        let mut workload = Workload::new(self.number);
        while !self.shared.writers_should_stop() {
            let request = workload.next(&mut self.random);
            if let Some(done) = self.perform(request).await
                && let Some(answer) = done.answer()
            {
                workload.learn(&done.request, answer);
            }
            let pause = self.random.below(THINK_US_MAX);
            sleep(Duration::from_micros(pause)).await;
        }
        self.operations
    }

    /// Keeps leases until told to stop.
    pub async fn keep_leases(mut self) -> Vec<Operation> {
        let mut keeper = LeaseKeeper::new(self.number);
        let mut last = None;
        while !self.shared.writers_should_stop() {
            let (request, wait) = keeper.next(&mut self.random, last.as_ref());
            sleep(Duration::from_nanos(wait)).await;
            // A keeper has one operation for each step, so one that found no member is tried on.
            while !self.shared.writers_should_stop() {
                if let Some(done) = self.perform(request.clone()).await {
                    last = Some(done.outcome.clone());
                    break;
                }
            }
        }
        self.operations
    }

    /// Compacts what is on record, all the time.
    pub async fn compact(mut self) -> Vec<Operation> {
        while !self.shared.writers_should_stop() {
            let pause = self.random.between(100, 500);
            sleep(Duration::from_millis(pause)).await;
            if let Some(request) = Workload::compaction(self.shared.recorded()) {
                self.perform(request).await;
            }
        }
        self.operations
    }

    /// Performs requests one after the other until each has an answer, as new operations if need
    /// be, and gives up at `deadline`. `request` makes the request of an attempt.
    pub async fn insist(
        mut self,
        requests: Vec<Box<dyn Fn(u32) -> Request + Send>>,
        deadline: Nanos,
    ) -> Vec<Operation> {
        for request in requests {
            for attempt in 0.. {
                if now_ns() > deadline {
                    return self.operations;
                }
                if self.perform(request(attempt)).await.is_some_and(|done| done.answer().is_some())
                {
                    break;
                }
            }
        }
        self.operations
    }
}
