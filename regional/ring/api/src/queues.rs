//! Orders calls to the ring by priority, and refuses calls when too many wait.
//!
//! A lease that is not renewed in time takes its keys with it, and clients that watch these keys react with more
//! requests: an overload would feed itself. So renewals have a queue of their own, and so has each other priority. A
//! full queue refuses calls of its own priority only.
//!
//! # Invariants
//!
//! - **QUEUES-1** A call is never taken while one of a higher priority waits.
//! - **QUEUES-2** A call beyond the bound of its queue is refused at once.

use std::task::{Context, Poll};

use satrap_ring_core::Request;
use tokio::sync::mpsc;

use crate::calls::{Call, Unavailable};

/// The priority of a call, highest first. Raft's own messages do not pass through these queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Keeping leases and roles alive.
    Renewal,
    /// Changing the ring, users or alarms: what operators do against an overload.
    Admin,
    /// Writing keys.
    Write,
    /// Reading keys.
    Read,
}

const PRIORITIES: usize = 4;

impl Priority {
    /// The priority of a proposal.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        match request {
            Request::LeaseRenew { .. } => Self::Renewal,
            Request::Auth(_) | Request::Alarm(_) | Request::Quota(_) | Request::Recovery(_) => {
                Self::Admin
            }
            _ => Self::Write,
        }
    }
}

/// The senders, which the services hold.
#[derive(Debug)]
pub(crate) struct Queues([mpsc::Sender<Call>; PRIORITIES]);

/// The receivers, which the ring's thread holds.
#[derive(Debug)]
pub struct Calls([mpsc::Receiver<Call>; PRIORITIES]);

/// Makes the queues; each holds at most `calls_max` calls.
pub(crate) fn queues(calls_max: usize) -> (Queues, Calls) {
    let pairs: [_; PRIORITIES] = std::array::from_fn(|_| mpsc::channel(calls_max));
    let senders = pairs.each_ref().map(|(sender, _)| sender.clone());
    (Queues(senders), Calls(pairs.map(|(_, receiver)| receiver)))
}

impl Queues {
    pub(crate) fn send(&self, priority: Priority, call: Call) -> Result<(), Unavailable> {
        self.0[priority as usize].try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopped,
        })
    }
}

impl Calls {
    /// The next call by priority (QUEUES-1); `None` once all services are gone.
    pub async fn recv(&mut self) -> Option<Call> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next call if one waits.
    pub fn try_recv(&mut self) -> Option<Call> {
        self.0.iter_mut().find_map(|queue| queue.try_recv().ok())
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Call>> {
        let mut all_closed = true;
        for queue in &mut self.0 {
            match queue.poll_recv(cx) {
                Poll::Ready(Some(call)) => return Poll::Ready(Some(call)),
                Poll::Ready(None) => {}
                Poll::Pending => all_closed = false,
            }
        }
        if all_closed { Poll::Ready(None) } else { Poll::Pending }
    }
}
