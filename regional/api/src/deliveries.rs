//! Answers on their way from the ring's thread to the thread of the services.
//!
//! To wake a task of another thread is a system call, and a task that is woken by the first of its
//! answers sends it before the next one is there. So answers that were found together cross together,
//! in one message to one task, and that task hands them out on the services' own thread: a connection
//! then writes all of its answers at once.
//!
//! # Invariants
//!
//! - **D1** No answer waits for another thread that does not carry: without a carrier, or while it is
//!   far behind, whoever has the answers hands them out.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::backend::{Applied, AppliedMany, ReadPoint, Unavailable};

/// Messages under way. Each is for a whole entry of the log, or a round of reads.
const UNDER_WAY_MAX: usize = 64;

/// One answer, and whoever waits for it.
#[derive(Debug)]
pub enum Delivery {
    /// To [`Call::Propose`](crate::backend::Call::Propose).
    One(oneshot::Sender<Result<Applied, Unavailable>>, Result<Applied, Unavailable>),
    /// To [`Call::ProposeMany`](crate::backend::Call::ProposeMany).
    Many(oneshot::Sender<Result<AppliedMany, Unavailable>>, Result<AppliedMany, Unavailable>),
    /// To [`Call::Read`](crate::backend::Call::Read).
    Read(oneshot::Sender<Result<ReadPoint, Unavailable>>, Result<ReadPoint, Unavailable>),
}

impl Delivery {
    /// Tells whoever waits, unless they went away.
    pub fn hand_out(self) {
        match self {
            Self::One(reply, answer) => drop(reply.send(answer)),
            Self::Many(reply, answer) => drop(reply.send(answer)),
            Self::Read(reply, answer) => drop(reply.send(answer)),
        }
    }
}

/// The way across. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Arc<Mutex<Option<mpsc::Sender<Vec<Delivery>>>>>);

impl Deliveries {
    /// Brings answers that were found together to whoever waits for them.
    pub fn deliver(&self, answers: Vec<Delivery>) {
        // One wake is one wake.
        let alone = answers.len() == 1;
        let carrier = (!alone).then(|| self.lock().clone()).flatten();
        let left = match carrier {
            Some(carrier) => carrier.try_send(answers).err().map(|error| error.into_inner()),
            None => Some(answers),
        };
        // D1
        left.into_iter().flatten().for_each(Delivery::hand_out);
    }

    /// Hands out answers on the thread that polls this, from now on. Never completes.
    pub(crate) fn carry(&self) -> impl Future<Output = ()> + Send + use<> {
        let (sender, mut arriving) = mpsc::channel::<Vec<Delivery>>(UNDER_WAY_MAX);
        *self.lock() = Some(sender);
        async move {
            while let Some(answers) = arriving.recv().await {
                answers.into_iter().for_each(Delivery::hand_out);
            }
            // Another one carries now.
            pending().await
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Vec<Delivery>>>> {
        // A value is replaced as a whole, so it is whole even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
