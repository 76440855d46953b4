//! Batches the answers that the ring's thread sends to requests waiting on the services' thread.
//!
//! Waking a task on another thread costs a system call, and a task that is woken for its first answer writes
//! it before the next one arrives. So all answers of one log entry, or of one batch of reads, cross in one
//! message to one forwarding task on the services' thread. That task completes the requests, and each
//! connection then writes all of its answers at once.
//!
//! # Invariants
//!
//! - **DELIVERY-1** No answer waits for a forwarding task that cannot take it: if there is none, or its queue is
//!   full, the ring's thread completes the requests itself.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::calls::{Applied, AppliedMany, ReadPoint, Unavailable};

/// The capacity of the queue, in batches: one holds the answers of a log entry, or of a batch of reads.
const QUEUED_BATCHES_MAX: usize = 64;

/// An answer, and the channel to the request that waits for it.
#[derive(Debug)]
pub enum PendingAnswer {
    /// To [`Call::Propose`](crate::calls::Call::Propose).
    One(oneshot::Sender<Result<Applied, Unavailable>>, Result<Applied, Unavailable>),
    /// To [`Call::ProposeMany`](crate::calls::Call::ProposeMany).
    Many(oneshot::Sender<Result<AppliedMany, Unavailable>>, Result<AppliedMany, Unavailable>),
    /// To [`Call::Read`](crate::calls::Call::Read).
    Read(oneshot::Sender<Result<ReadPoint, Unavailable>>, Result<ReadPoint, Unavailable>),
}

impl PendingAnswer {
    /// Sends the answer to the waiting request. Does nothing if that request was cancelled.
    pub fn complete(self) {
        match self {
            Self::One(reply, answer) => drop(reply.send(answer)),
            Self::Many(reply, answer) => drop(reply.send(answer)),
            Self::Read(reply, answer) => drop(reply.send(answer)),
        }
    }
}

/// The queue of batches from the ring's thread to the forwarding task. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AnswerQueue(Arc<Mutex<Option<mpsc::Sender<Vec<PendingAnswer>>>>>);

impl AnswerQueue {
    /// Sends a batch of answers to the requests that wait for them.
    pub fn send(&self, answers: Vec<PendingAnswer>) {
        // A single answer wakes one task either way, so forwarding it would only add a hop.
        let is_batch = answers.len() > 1;
        let forwarder = is_batch.then(|| self.lock().clone()).flatten();
        let left = match forwarder {
            Some(forwarder) => forwarder.try_send(answers).err().map(|error| error.into_inner()),
            None => Some(answers),
        };
        // DELIVERY-1
        left.into_iter().flatten().for_each(PendingAnswer::complete);
    }

    /// Completes requests on the thread that polls this, from now on. Never returns.
    pub(crate) fn forward(&self) -> impl Future<Output = ()> + Send + use<> {
        let (sender, mut batches) = mpsc::channel::<Vec<PendingAnswer>>(QUEUED_BATCHES_MAX);
        *self.lock() = Some(sender);
        async move {
            while let Some(answers) = batches.recv().await {
                answers.into_iter().for_each(PendingAnswer::complete);
            }
            // A later call of `forward` replaced this task. It must not return: front.rs takes the end of this
            // future as a failure.
            pending().await
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Vec<PendingAnswer>>>> {
        // The value is only ever replaced as a whole, so it is valid even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
