//! The loop between the services and the log: takes calls by priority, and keeps the log, the reads
//! and the members' answers going at the same time.

use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{FuturesUnordered, Stream},
};
use satrap_host::Shutdown;
use satrap_regional_api::backend::{Call, Calls, ReadMode};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Ring,
    platform::Platform,
    proposals::{Group, Queue},
    reads::Reader,
    waiters::Answer,
};
use crate::{
    limits::{ADMIN_CALLS_MAX, ENTRIES_IN_FLIGHT_MAX},
    raft::EXPIRY_INTERVAL,
};

/// What may be under way at the same time.
enum Done {
    /// An entry was handed in; its clients may still wait.
    Submitted(Option<Group>),
    /// One round of reads was answered.
    Freshened(ReadMode),
    /// An operation on the ring.
    Administered,
    /// Clients were answered.
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
        !self.queue.is_full() && self.admins < ADMIN_CALLS_MAX
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
            Call::Admin { request, reply } => {
                self.admins += 1;
                let ring = ring.clone();
                self.under_way.push(Box::pin(async move {
                    // Whoever asked may be gone; the ring is changed all the same.
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
                    ring.answer(group).await;
                    Done::Answered
                }));
            }
            Done::Freshened(mode) => self.rounds[mode as usize] = false,
            Done::Administered => self.admins -= 1,
            Done::Answered => {}
        }
    }

    /// Starts what can be started.
    fn go_on<P: Platform>(&mut self, ring: &Ring<P>) {
        while self.entries < ENTRIES_IN_FLIGHT_MAX
            && let Some(group) = ring.group(&mut self.queue)
        {
            self.entries += 1;
            let ring = ring.clone();
            self.under_way.push(Box::pin(async move { Done::Submitted(ring.submit(group).await) }));
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
                ring.freshen(mode, readers).await;
                Done::Freshened(mode)
            }));
        }
    }

    /// The leader makes time pass when something is due and nothing else is proposed.
    fn expire<P: Platform>(&mut self, ring: &Ring<P>) {
        if self.entries == 0
            && let Some(tick) = ring.tick_if_due()
        {
            self.entries += 1;
            self.under_way.push(Box::pin(async move {
                tick.await;
                Done::Submitted(None)
            }));
        }
    }
}
