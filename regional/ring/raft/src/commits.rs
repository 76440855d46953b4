//! Lets a commit index wait a moment for the entries that follow it to the same follower.
//!
//! openraft sends the commit index in a request of its own as soon as a quorum has the entries. A client
//! that writes one value after the other would so cost two requests to each follower for a write. Its
//! next write is about a round trip away, so the commit index waits that long and travels with it.
//!
//! # Invariants
//!
//! - **COMMIT-1** A follower learns a commit index at most [`COMMIT_DELAY`] late.
//! - **COMMIT-2** It learns at once of the commit of an entry that another member proposed, because a
//!   client of that member waits for it (see `waiters`).

use std::pin::Pin;

use futures::{
    Stream, StreamExt as _,
    stream::{self, Fuse},
};
use openraft::{EntryPayload, raft::AppendEntriesRequest};
use tokio::time::{Instant, timeout_at};

use super::{
    platform::Platform,
    types::{Entry, Types},
};
use crate::limits::COMMIT_DELAY;

/// The requests of one replication stream, and what the follower has been sent of them.
struct Held<S> {
    requests: Fuse<S>,
    /// The run of this member's process, which its own entries carry.
    run: u64,
    /// The last entry that another member proposed.
    forwarded: Option<u64>,
    /// The highest commit index sent.
    committed: Option<u64>,
}

/// `requests` for one follower, of which those that carry only a commit index wait for entries.
pub fn with_entries<P: Platform>(
    requests: impl Stream<Item = AppendEntriesRequest<Types<P>>> + Send + Unpin + 'static,
    run: u64,
) -> Pin<Box<dyn Stream<Item = AppendEntriesRequest<Types<P>>> + Send>> {
    let held = Held { requests: requests.fuse(), run, forwarded: None, committed: None };
    Box::pin(stream::unfold(held, |mut held| async move {
        let request = held.next::<P>().await?;
        Some((request, held))
    }))
}

impl<S: Unpin> Held<S> {
    async fn next<P: Platform>(&mut self) -> Option<AppendEntriesRequest<Types<P>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types<P>>>,
    {
        let mut request = self.requests.next().await?;
        if request.entries.is_empty() && self.committed >= self.forwarded {
            let due = Instant::now() + COMMIT_DELAY;
            // The next request follows on the same entry and carries this commit index or a newer one.
            while request.entries.is_empty()
                && let Ok(Some(next)) = timeout_at(due, self.requests.next()).await
            {
                request = next;
            }
        }
        let forwarded = request.entries.iter().rev().find(|entry| self.is_forwarded(entry));
        self.forwarded = forwarded.map(|entry| entry.log_id.index).or(self.forwarded);
        self.committed = self.committed.max(request.leader_commit.map(|commit| commit.index));
        Some(request)
    }

    fn is_forwarded(&self, entry: &Entry) -> bool {
        let EntryPayload::Normal(payload) = &entry.payload else { return false };
        let origin = payload.open().map(|(origin, _)| origin.run);
        origin.is_some_and(|run| run != 0 && run != self.run)
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures::poll;
    use openraft::vote::leader_id_std::CommittedLeaderId;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{
        platform::Real,
        types::{LogId, Payload, Vote},
        waiters::Origin,
    };

    type Request = AppendEntriesRequest<Types<Real>>;

    const OWN: u64 = 7;
    const OTHER: u64 = 8;

    fn log_id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1), index)
    }

    /// An append of these entries, of which `run` proposed each.
    fn request(committed: u64, entries: &[u64], run: u64) -> Request {
        let entry = |index: &u64| Entry {
            log_id: log_id(*index),
            payload: EntryPayload::Normal(Payload::new(Origin { run, sequence: *index }, &[])),
        };
        Request {
            vote: Vote::new_committed(1, 1.into()),
            prev_log_id: None,
            entries: entries.iter().map(entry).collect(),
            leader_commit: Some(log_id(committed)),
        }
    }

    fn commit(committed: u64) -> Request {
        request(committed, &[], OWN)
    }

    type Sent = Pin<Box<dyn Stream<Item = Request> + Send>>;

    fn stream() -> (mpsc::Sender<Request>, Sent) {
        let (requests, receiver) = mpsc::channel(8);
        (requests, with_entries::<Real>(ReceiverStream::new(receiver), OWN))
    }

    /// The commit index and the number of entries of the next request, and how long it took.
    async fn next(sent: &mut Sent) -> Option<(u64, usize, Duration)> {
        let began = Instant::now();
        let request = sent.next().await?;
        let committed = request.leader_commit.expect("all carry one").index;
        Some((committed, request.entries.len(), began.elapsed()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_index_travels_with_the_entries_that_follow_in_time() {
        let (requests, mut sent) = stream();
        requests.try_send(request(0, &[1], OWN)).unwrap();
        assert_eq!(next(&mut sent).await, Some((0, 1, Duration::ZERO)));
        requests.try_send(commit(1)).unwrap();
        {
            let mut waiting = pin!(next(&mut sent));
            assert!(poll!(&mut waiting).is_pending(), "it waits for entries");
            requests.try_send(request(1, &[2], OWN)).unwrap();
            assert_eq!(waiting.await, Some((1, 1, Duration::ZERO)));
        }
        drop(requests);
        assert_eq!(next(&mut sent).await, None, "no request comes twice");
    }

    /// COMMIT-1
    #[tokio::test(start_paused = true)]
    async fn a_commit_index_that_no_entry_follows_waits_no_longer() {
        let (requests, mut sent) = stream();
        for committed in [1, 2] {
            requests.try_send(commit(committed)).unwrap();
        }
        let (committed, entries, waited) = next(&mut sent).await.unwrap();
        assert_eq!((committed, entries), (2, 0), "the newer one is enough");
        assert!(waited <= 2 * COMMIT_DELAY, "{waited:?}");
        drop(requests);
        assert_eq!(next(&mut sent).await, None);
    }

    /// COMMIT-2
    #[tokio::test(start_paused = true)]
    async fn a_member_whose_client_waits_learns_at_once() {
        let (requests, mut sent) = stream();
        requests.try_send(request(0, &[1, 2], OTHER)).unwrap();
        next(&mut sent).await.unwrap();
        for committed in [1, 2] {
            requests.try_send(commit(committed)).unwrap();
            assert_eq!(next(&mut sent).await, Some((committed, 0, Duration::ZERO)));
        }
        requests.try_send(commit(3)).unwrap();
        let (committed, _, waited) = next(&mut sent).await.unwrap();
        assert_eq!(committed, 3);
        assert!(waited >= COMMIT_DELAY, "no client of another member waits any more: {waited:?}");
    }

    /// The first request of a stream, and the last, are not lost.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_sends_all_it_has() {
        let (requests, mut sent) = stream();
        requests.try_send(commit(4)).unwrap();
        drop(requests);
        assert_eq!(next(&mut sent).await, Some((4, 0, Duration::ZERO)));
        assert_eq!(next(&mut sent).await, None);
    }
}
