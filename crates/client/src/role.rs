//! Holding a role: being the one process that acts, knowing until when, and carrying the token by
//! which resources refuse a holder that acts too late.
//!
//! ```text
//!   try_role / fenced_lock ──▶ RoleHolder ── run(work) ──▶ Exit::Ended     the work is done
//!                                  │                  ├──▶ Exit::Lost      the role is not ours
//!                                  │                  └──▶ Exit::Stopped   our caller asked us to
//!                                  └─ release ──▶ free for the next at once
//! ```
//!
//! # Invariants
//!
//! - **ROLE-1** Work under a role is dropped no later than [`Tenure::acts_until`], and its
//!   [`Leadership`] ends no later than that, also on threads that cannot be dropped.
//! - **ROLE-2** A role that was lost is not resumed: going on needs a new grant, with a greater token.
//!
//! # Deliberately absent
//!
//! Background tasks: a role is renewed while [`RoleHolder::run`] or [`RoleHolder::keep`] is polled.
//! Work that blocks its thread thus loses the role instead of keeping it while it hangs.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use http::HeaderMap;
use satrap_proto::v1;
use satrap_runtime::clock;
use tonic::{Request, Status, service::Interceptor};

use crate::error::Error;
use crate::keep::{Kept, View};
use crate::ring::{Ring, answer, sleep_until};
use crate::tenure::{Lost, Tenure, Terms};
use crate::token::FencingToken;

/// A request for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The role. A user that may write the key of this name may take it.
    pub role: String,
    /// The holder's name, shown to others that ask for the role meanwhile.
    pub name: String,
    /// For how long at a time.
    pub terms: Terms,
}

/// The outcome of a request for a role.
#[derive(Debug)]
pub enum Attempt {
    /// It is ours.
    Granted(RoleHolder),
    /// Another process has it.
    Held {
        /// The name that the holder gave.
        by: String,
        /// Until their grant ends unless they renew it.
        remaining: Duration,
    },
}

/// Asks for a role once.
///
/// # Errors
///
/// Why the ring did not decide. If the answer was lost the role may be granted until it times out,
/// with a token that reached no client.
pub async fn try_role(ring: &Ring, candidate: &Candidate) -> Result<Attempt, Error> {
    let request = v1::GrantRoleRequest {
        role: candidate.role.clone(),
        holder: candidate.name.clone(),
        ttl_s: candidate.terms.ttl_s.into(),
    };
    let sent = clock::monotonic();
    let answer = answer(ring.store().grant_role(request)).await?;
    let ttl = Duration::from_millis(answer.ttl_ms);
    if !answer.granted {
        return Ok(Attempt::Held { by: answer.holder, remaining: ttl });
    }
    let token = answer.token.ok_or(Error::Nonsense("a grant without a token"))?;
    let kept = Kept::new(Tenure::begin(sent, ttl, candidate.terms.margin));
    Ok(Attempt::Granted(RoleHolder {
        ring: ring.clone(),
        role: candidate.role.clone(),
        token: token.into(),
        lease: answer.lease,
        kept,
    }))
}

/// The holder of a role. Dropping it leaves the role to time out; see [`RoleHolder::release`].
#[derive(Debug)]
pub struct RoleHolder {
    ring: Ring,
    role: String,
    token: FencingToken,
    lease: i64,
    kept: Kept,
}

/// How the work of a leader came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit<T> {
    /// It ended by itself. The role has been given back.
    Ended(T),
    /// The role was lost, and the work dropped.
    Lost(Lost),
    /// Stopping was asked for. The work ended in the time it had, or was dropped, and the role has
    /// been given back.
    Stopped(Option<T>),
}

impl RoleHolder {
    /// The token that resources compare.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Keys put with this lease vanish when the role is lost or given back.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// A view of the role for code that acts under it.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        Leadership { token: self.token, lease: self.lease, view: self.kept.view() }
    }

    /// Renews the role until it is lost. May be dropped and called again.
    pub async fn keep(&mut self) -> Lost {
        let (ring, role, token) = (self.ring.clone(), self.role.clone(), self.token);
        let renew = move || renew(ring.clone(), role.clone(), token);
        self.kept.keep(renew).await
    }

    /// Gives the role back, so that the next need not wait for it to time out. Call it when nothing
    /// acts in its name any more.
    ///
    /// # Errors
    ///
    /// If the ring did not answer, or the role was lost already; it then ends by itself.
    pub async fn release(self) -> Result<(), Error> {
        self.kept.end();
        let request = v1::ReleaseRoleRequest { role: self.role, token: Some(self.token.into()) };
        answer(self.ring.store().release_role(request)).await?;
        Ok(())
    }

    /// Works as long as the role is ours, and leaves by one of three exits (ROLE-1).
    ///
    /// When `stop` completes, [`Leadership::ended`] does, and the work has `wind_down` to come to its
    /// end; the role is kept meanwhile. When the role is lost the work is dropped at once.
    pub async fn run<T, W>(
        mut self,
        stop: impl Future<Output = ()>,
        wind_down: Duration,
        work: impl FnOnce(Leadership) -> W,
    ) -> Exit<T>
    where
        W: Future<Output = T>,
    {
        let leadership = self.leadership();
        let exit = {
            let mut work = pin!(work(leadership.clone()));
            let asked = tokio::select! {
                biased;
                lost = self.keep() => Some(Exit::Lost(lost)),
                () = stop => None,
                done = &mut work => Some(Exit::Ended(done)),
            };
            match asked {
                Some(exit) => exit,
                None => {
                    self.kept.end();
                    let until = clock::monotonic() + wind_down;
                    tokio::select! {
                        biased;
                        lost = self.keep() => Exit::Lost(lost),
                        done = &mut work => Exit::Stopped(Some(done)),
                        () = sleep_until(until) => Exit::Stopped(None),
                    }
                }
            }
        };
        // Courtesy to the next holder, for no longer than it could take the role by itself.
        if !matches!(exit, Exit::Lost(_)) {
            let left = self.kept.acts_until().saturating_sub(clock::monotonic());
            drop(tokio::time::timeout(left, self.release()).await);
        }
        exit
    }
}

async fn renew(ring: Ring, role: String, token: FencingToken) -> Result<Duration, Status> {
    let request = v1::RenewRoleRequest { role, token: Some(token.into()) };
    let answer = ring.store().renew_role(request).await?;
    Ok(Duration::from_millis(answer.into_inner().ttl_ms))
}

/// The leader's view of its role: the token, and when to stop.
#[derive(Clone, Debug)]
pub struct Leadership {
    token: FencingToken,
    lease: i64,
    view: View,
}

impl Leadership {
    /// Goes with every request to whatever the role protects.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Keys put with this lease vanish when the role is lost or given back.
    #[must_use]
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Whether to begin anything more. A yes may be old by the time a request arrives; only the
    /// token is proof.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.view.is_current()
    }

    /// Completes when the role is lost or its holder is asked to stop, in any case no later than the
    /// margin before the ring may give the role to another.
    pub async fn ended(&self) {
        self.view.ended().await;
    }

    /// Adds the token to the headers of a request.
    ///
    /// # Errors
    ///
    /// If the role is no longer current: the request must not be sent.
    pub fn attach(&self, headers: &mut HeaderMap) -> Result<(), Lost> {
        if !self.is_current() {
            return Err(Lost::OutOfTime);
        }
        self.token.attach(headers);
        Ok(())
    }
}

/// As an interceptor of a gRPC client: every call carries the token, and none is made without role.
impl Interceptor for Leadership {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let mut headers = metadata.into_headers();
        self.attach(&mut headers).map_err(|lost| Status::failed_precondition(lost.to_string()))?;
        let metadata = tonic::metadata::MetadataMap::from_headers(headers);
        Ok(Request::from_parts(metadata, extensions, message))
    }
}
