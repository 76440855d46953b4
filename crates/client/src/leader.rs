//! Decides to which member of a ring a request goes: to the one that leads, while it can be reached.
//!
//! Any member takes any request. It hands a write to the leader and answers once it has applied it
//! itself, and it asks the leader how far it must be to read. So to go to another member is never
//! wrong, only one trip between members longer; and for the same reason no refusal of the ring is
//! about who leads, and none names the leader. As etcd clients do, this asks members for their
//! status.
//!
//! # Invariants
//!
//! - **LEADER-1** A request is carried at most once. Whether it may be made again only its caller knows;
//!   what is decided after a failure is where the next one goes.
//! - **LEADER-2** One member that does not answer delays one request in a while, not each.
//!
//! # Deliberately absent
//!
//! Making connections and giving them up: the caller that made the channels does both. Streams are
//! not moved when the leader changes; they go on where they are.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::join_all;
use http::{Request, Response};
use satrap_proto::etcdserverpb::StatusRequest;
use satrap_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use satrap_runtime::clock;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::wire::{Wire, WireError};

/// How long a choice holds while nothing fails.
const CHOICE_MAX: Duration = Duration::from_secs(10);
/// How long a member may take to say who leads.
const STATUS_MAX: Duration = Duration::from_millis(500);

/// The members of a ring as one service.
#[derive(Clone)]
pub(crate) struct TowardLeader {
    members: Arc<[Wire]>,
    choice: Arc<Mutex<Choice>>,
}

struct Choice {
    at: usize,
    /// When to ask again, on the monotonic clock.
    until: Duration,
}

/// The answer of one member about itself and its leader.
struct Said {
    at: usize,
    member: u64,
    leader: u64,
    term: u64,
}

impl TowardLeader {
    pub(crate) fn new(members: Vec<Wire>) -> Self {
        let choice = Choice { at: 0, until: Duration::ZERO };
        Self { members: members.into(), choice: Arc::new(Mutex::new(choice)) }
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        // Two numbers are whole even after a panic.
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to go, unless that should be asked again.
    fn chosen(&self) -> Option<usize> {
        let (now, mut choice) = (clock::monotonic(), self.choice());
        let is_due = choice.until <= now;
        if is_due {
            // LEADER-2: requests that come meanwhile go where the last one went.
            choice.until = now + CHOICE_MAX;
        }
        (!is_due).then_some(choice.at)
    }

    async fn choose(&self) -> usize {
        if let Some(at) = self.chosen() {
            return at;
        }
        let said: Vec<Said> = join_all((0..self.members.len()).map(|at| self.ask(at)))
            .await
            .into_iter()
            .flatten()
            .collect();
        let mut choice = self.choice();
        choice.at = leader(&said).unwrap_or(choice.at);
        choice.at
    }

    async fn ask(&self, at: usize) -> Option<Said> {
        let mut member = MaintenanceClient::new(self.members[at].clone());
        let asked = tokio::time::timeout(STATUS_MAX, member.status(StatusRequest {}));
        let status = asked.await.ok()?.ok()?.into_inner();
        let member = status.header?.member_id;
        Some(Said { at, member, leader: status.leader, term: status.raft_term })
    }

    /// The next request goes to the next member, unless an answer names the leader first.
    fn doubt(&self, failed: usize) {
        let mut choice = self.choice();
        if choice.at == failed {
            *choice = Choice { at: (failed + 1) % self.members.len(), until: Duration::ZERO };
        }
    }
}

/// The position of the leader of the newest term; without one, that of a member that answers.
fn leader(said: &[Said]) -> Option<usize> {
    let newest = said.iter().filter(|said| said.leader != 0).max_by_key(|said| said.term);
    let leads = |of: &Said| said.iter().find(|said| said.member == of.leader);
    newest.and_then(leads).or(said.first()).map(|said| said.at)
}

/// Whether to try another member next.
fn is_away(answer: &Result<Response<Body>, WireError>) -> bool {
    let Ok(answer) = answer else { return true };
    let status = Status::from_header_map(answer.headers());
    status.is_some_and(|status| status.code() == Code::Unavailable)
}

impl Service<Request<Body>> for TowardLeader {
    type Response = Response<Body>;
    type Error = WireError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let members = self.clone();
        Box::pin(async move {
            let at = members.choose().await;
            // LEADER-1
            let answer = members.members[at].clone().oneshot(request).await;
            if is_away(&answer) {
                members.doubt(at);
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_term_knows_the_leader() {
        let said = |at, member, leader, term| Said { at, member, leader, term };
        // A former leader that is cut off still believes in itself.
        assert_eq!(leader(&[said(0, 10, 10, 4), said(2, 12, 11, 5), said(1, 11, 11, 5)]), Some(1));
        assert_eq!(leader(&[said(1, 11, 0, 9), said(2, 12, 12, 5)]), Some(2), "who knows none");
        assert_eq!(leader(&[said(1, 11, 10, 5)]), Some(1), "the leader did not answer");
        assert_eq!(leader(&[]), None);
    }
}
