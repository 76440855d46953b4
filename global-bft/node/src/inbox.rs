//! Queues for the consensus thread: frames per peer, submissions, and signatures.
//!
//! Each peer has its own bounded queue and they are drained in turn, so a validator that floods
//! fills its own queue and delays no other. A message that does not fit is dropped: rebroadcast and
//! value sync repair a lost message, while a queue without bound would only hide that this process is too slow.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use satrap_certify::{Label, SignatureBytes, SignedChange};
use satrap_identity::charges::Payer;
use tokio::sync::oneshot;

use crate::{
    guard::Place,
    limits::{INBOX_BYTES_MAX, INBOX_FRAMES_MAX, PEERS_MAX},
    malachite::Frame,
    mempool::{Receipt, Refusal},
    submissions::{Reply, Submission, Submissions},
};

/// The next item for the consensus thread.
#[derive(Debug)]
pub enum Next {
    /// A frame of a peer.
    Frame(Label, Frame),
    /// A change and the caller that waits for it.
    Submit(SignedChange, Reply),
    /// A signature that this validator requested.
    Signed(Place, SignatureBytes),
    /// Nothing came in time.
    Idle,
    /// The process is stopping.
    Closed,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(Frame, usize)>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<Label, Queue>,
    /// The peer served last.
    last: Option<Label>,
    submissions: Submissions,
    /// At most [`crate::limits::SIGN_REQUESTS_MAX`]: each answers a pending request.
    signatures: VecDeque<(Place, SignatureBytes)>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

/// The queues. Clones share them.
#[derive(Clone, Default)]
pub struct Inbox(Arc<Shared>);

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section is a few moves, so the state is whole even after a panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame of `from` that took `bytes` on the wire; returns whether there was room.
    pub fn frame(&self, from: &Label, frame: Frame, bytes: usize) -> bool {
        let mut state = self.lock();
        if !state.peers.contains_key(from) && state.peers.len() >= PEERS_MAX {
            return false;
        }
        let queue = state.peers.entry(from.clone()).or_default();
        let room = queue.frames.len() < INBOX_FRAMES_MAX && queue.bytes + bytes <= INBOX_BYTES_MAX;
        if room {
            queue.frames.push_back((frame, bytes));
            queue.bytes += bytes;
            self.0.arrived.notify_one();
        }
        room
    }

    /// Queues a submission of `payer` of so many canonical bytes; `None` if too many wait already.
    #[must_use]
    pub fn submit(
        &self,
        payer: Payer,
        change: SignedChange,
        bytes: usize,
    ) -> Option<oneshot::Receiver<Result<Receipt, Refusal>>> {
        let mut state = self.lock();
        let (reply, answer) = oneshot::channel();
        if state.closed || !state.submissions.push(payer, Submission { change, bytes, reply }) {
            return None;
        }
        self.0.arrived.notify_one();
        Some(answer)
    }

    /// Queues a signature that was requested.
    pub fn signed(&self, place: Place, signature: SignatureBytes) {
        self.lock().signatures.push_back((place, signature));
        self.0.arrived.notify_one();
    }

    /// Ends the consensus thread.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.arrived.notify_one();
    }

    /// Waits for the next item, at most for `patience`.
    #[must_use]
    pub fn next(&self, patience: Duration) -> Next {
        let state = self.lock();
        let waited = self.0.arrived.wait_timeout_while(state, patience, |state| {
            !state.closed
                && state.submissions.is_empty()
                && state.signatures.is_empty()
                && state.peers.values().all(|queue| queue.frames.is_empty())
        });
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Next::Closed;
        }
        // The other validators wait for this vote.
        if let Some((place, signature)) = state.signatures.pop_front() {
            return Next::Signed(place, signature);
        }
        if let Some((from, frame)) = state.next_frame() {
            return Next::Frame(from, frame);
        }
        let next = state.submissions.pop();
        next.map_or(Next::Idle, |next| Next::Submit(next.change, next.reply))
    }
}

impl State {
    /// The next frame of the next peer that has one; after each round one submission is due.
    fn next_frame(&mut self) -> Option<(Label, Frame)> {
        let waiting = |last: Option<&Label>| {
            let mut waiting = self.peers.iter().filter(|(_, queue)| !queue.frames.is_empty());
            waiting.find(|(name, _)| last.is_none_or(|last| *name > last)).map(|(name, _)| name)
        };
        let next = match waiting(self.last.as_ref()) {
            Some(name) => name.clone(),
            None => {
                self.last = None;
                if !self.submissions.is_empty() {
                    return None;
                }
                waiting(None)?.clone()
            }
        };
        let queue = self.peers.get_mut(&next)?;
        let (frame, bytes) = queue.frames.pop_front()?;
        queue.bytes -= bytes;
        if queue.frames.is_empty() {
            self.peers.remove(&next);
        }
        self.last = Some(next.clone());
        Some((next, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).unwrap()
    }

    fn taken(inbox: &Inbox) -> String {
        match inbox.next(Duration::ZERO) {
            Next::Frame(from, Frame::Status(n)) => format!("{from}{n}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn peers_take_turns_and_a_flood_fills_only_its_own_queue() {
        let inbox = Inbox::default();
        for n in 0..INBOX_FRAMES_MAX as u64 {
            assert!(inbox.frame(&label("b"), Frame::Status(n), 10));
        }
        assert!(!inbox.frame(&label("b"), Frame::Status(0), 10), "over the limit");
        assert!(inbox.frame(&label("a"), Frame::Status(0), 10));
        assert!(inbox.frame(&label("c"), Frame::Status(0), INBOX_BYTES_MAX));
        assert!(!inbox.frame(&label("c"), Frame::Status(1), 1), "over the byte limit");
        let order: Vec<_> = (0..5).map(|_| taken(&inbox)).collect();
        assert_eq!(order, ["a0", "b0", "c0", "b1", "b2"]);
    }

    #[test]
    fn closing_ends_the_wait() {
        let inbox = Inbox::default();
        assert_eq!(taken(&inbox), "Idle");
        inbox.close();
        assert_eq!(taken(&inbox), "Closed");
    }
}
