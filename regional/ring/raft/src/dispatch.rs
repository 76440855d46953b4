//! The dispatch loop between the services and the log: takes calls by priority, and keeps
//! proposals, reads and replies going at the same time.

use std::time::Duration;

use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, Stream},
};
use satrap_ring_api::backend::{Call, Calls, ReadMode, Unavailable};
use satrap_runtime::Shutdown;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    platform::Platform,
    proposals::{Group, Queue},
    reads::Reader,
    ring::Ring,
    waiters::Answer,
};
use crate::limits::{ADMIN_CALLS_MAX, ENTRIES_IN_FLIGHT_MAX};

/// Time between checks for due lease expirations.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// Completed work of the loop.
enum Done {
    /// An entry was submitted; `Some` if its clients still wait.
    Submitted(Option<Group>),
    /// One round of reads was answered.
    ReadsServed(ReadMode),
    /// A request about the ring as a whole.
    Administered,
    /// The clients of an entry were answered.
    Answered,
}

#[derive(Default)]
struct Dispatch {
    queue: Queue,
    linearizable: Vec<Reader>,
    leased: Vec<Reader>,
    entries: usize,
    rounds: [bool; 2],
    admins: usize,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// Serves `calls` until the services are gone or `shutdown`.
pub async fn run<P: Platform>(ring: Ring<P>, mut calls: Calls, shutdown: Shutdown) {
    let mut dispatch = Dispatch::default();
    let mut expiry = interval(EXPIRY_INTERVAL);
    expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let requested = shutdown.requested();
    tokio::pin!(requested);
    loop {
        tokio::select! {
            biased;
            () = &mut requested => return,
            Some(done) = next(&mut dispatch.under_way) => dispatch.finish(&ring, done),
            _ = expiry.tick() => dispatch.expire(&ring),
            call = calls.recv(), if dispatch.has_room() => {
                let Some(call) = call else { return };
                dispatch.take(&ring, call);
                while dispatch.has_room() && let Some(call) = calls.try_recv() {
                    dispatch.take(&ring, call);
                }
            }
        }
        dispatch.go_on(&ring);
    }
}

/// Never ready while nothing is under way.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    match stream.next().await {
        Some(item) => Some(item),
        None => std::future::pending().await,
    }
}

impl Dispatch {
    fn has_room(&self) -> bool {
        !self.queue.is_full()
    }

    fn take<P: Platform>(&mut self, ring: &Ring<P>, call: Call) {
        match call {
            Call::Propose { proposal, reply } => {
                self.queue.push(&[proposal], Answer::One(reply));
            }
            Call::ProposeMany { proposals, reply } => {
                let answer = Answer::Many(proposals.len(), reply);
                self.queue.push(&proposals, answer);
            }
            Call::Read { mode: ReadMode::Linearizable, reply } => self.linearizable.push(reply),
            Call::Read { mode: ReadMode::Lease, reply } => self.leased.push(reply),
            // They may wait for long, and no other call is to wait with them.
            Call::Admin { reply, .. } if self.admins >= ADMIN_CALLS_MAX => {
                let _ = reply.send(Err(Unavailable::TooManyRequests.into()));
            }
            Call::Admin { request, reply } => {
                self.admins += 1;
                let ring = ring.clone();
                self.under_way.push(Box::pin(async move {
                    // The client may have gone away; the request was executed all the same.
                    let _ = reply.send(ring.administer(request).await);
                    Done::Administered
                }));
            }
        }
    }

    fn finish<P: Platform>(&mut self, ring: &Ring<P>, done: Done) {
        match done {
            Done::Submitted(group) => {
                self.entries -= 1;
                let Some(group) = group else { return };
                let ring = ring.clone();
                self.under_way.push(Box::pin(async move {
                    ring.proposer.answer(group).await;
                    Done::Answered
                }));
            }
            Done::ReadsServed(mode) => self.rounds[mode as usize] = false,
            Done::Administered => self.admins -= 1,
            Done::Answered => {}
        }
    }

    /// Proposes the next entries and starts the next rounds of reads, within the limits.
    fn go_on<P: Platform>(&mut self, ring: &Ring<P>) {
        while self.entries < ENTRIES_IN_FLIGHT_MAX
            && let Some(group) = ring.proposer.group(&mut self.queue)
        {
            self.entries += 1;
            let ring = ring.clone();
            self.under_way
                .push(Box::pin(async move { Done::Submitted(ring.proposer.submit(group).await) }));
        }
        for (mode, readers) in
            [(ReadMode::Linearizable, &mut self.linearizable), (ReadMode::Lease, &mut self.leased)]
        {
            if readers.is_empty() || self.rounds[mode as usize] {
                continue;
            }
            self.rounds[mode as usize] = true;
            let (ring, readers) = (ring.clone(), std::mem::take(readers));
            self.under_way.push(Box::pin(async move {
                ring.reads.serve(mode, readers).await;
                Done::ReadsServed(mode)
            }));
        }
    }

    /// Proposes a tick when a lease is due and no other proposal carries the time.
    fn expire<P: Platform>(&mut self, ring: &Ring<P>) {
        if self.entries == 0
            && let Some(tick) = ring.proposer.tick_if_due()
        {
            self.entries += 1;
            self.under_way.push(Box::pin(async move {
                tick.await;
                Done::Submitted(None)
            }));
        }
    }
}
