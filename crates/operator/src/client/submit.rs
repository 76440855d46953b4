//! Submits a change, and believes only its certified effect (CLIENT-2, CLIENT-3).
//!
//! A server that takes a change can swallow it and say that it was decided: a revocation that was
//! never made. So this client reads certified state, from any server, until it shows the effect. If it
//! does not in time, the claim counts as false and the next server gets the same bytes; a change is
//! decided at most once. A lost answer is resolved by the same read.
//!
//! ```text
//!   hand in to one server ── answer ──▶ decided: look for the effect │ refused │ lost: next server
//!            │                             ├─ refused while another server may have it: look, next
//!            │                             └─ the server is behind the state that the change expects: next
//!            └── silent for HAND_ON_AFTER: the next server gets it, too
//!   out of time: `not submitted` if no server took it, `undecided` if one did
//! ```
//!
//! # Deliberately absent
//!
//! A refusal is one server's claim too, but the operator sees it: the error names the server. It counts only
//! while no other server can have the change: the change may have been decided there, and be refused
//! here because of that.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use satrap_certify::{
    Action, Governance, GovernanceAct, Interest, Replica, SignedChange, Timestamp,
};
use satrap_proto::{
    fault::{self, Fault},
    v1::{SubmitReply, SubmitRequest},
};
use satrap_runtime::clock;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{Client, Decided, Endpoint, control};
use crate::{
    changes,
    error::{Error, Kind},
    text::one_line,
};

/// How long a change may take, unless the caller says otherwise: a decision takes well under a
/// second, a realm that lost its leader takes a few.
pub const DECIDE_WITHIN: Duration = Duration::from_secs(30);
/// Wait before the next server gets the change too: a silent one may have no quorum, or drop changes.
const HAND_ON_AFTER: Duration = Duration::from_secs(5);
/// How long the effect of a decided change may take to appear in certified state. A validator serves it
/// at once, a member as soon as its ring has adopted it.
const SHOW_WITHIN: Duration = Duration::from_secs(5);
/// Certified state older than this many heartbeats is stale.
pub const SILENT_HEARTBEATS: u32 = 3;
/// The first pause between two reads; it doubles up to `LOOK_PAUSE_MAX`.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A change that expects an older state breaks one of these rules; it may have been decided already.
const OVERTAKEN: [&str; 3] = ["V4", "V11", "V28"];

/// The answer of one server to a submitted change.
enum Answer {
    /// It was decided.
    Decided(SubmitReply),
    /// It breaks a rule.
    Refused(Error),
    /// It expects a later state than the server holds: refused, unless another server accepts it.
    Behind(Error),
    /// No answer; the server may have passed the change on.
    Lost(String),
    /// The server did not take it.
    NotTaken(String),
}

/// The state that one server holds, compared with a change.
enum Look {
    /// It shows the effect.
    Shows(Shown),
    /// The bundle is at a version above the one that the change makes, so it shows no trace of an effect
    /// that was there before.
    MovedOn(u64),
    /// It shows no effect.
    Nothing,
}

/// The certified effect of a change.
struct Shown {
    /// The height and version of the head, for a publish.
    head: Option<(u64, u64)>,
    by: Endpoint,
}

/// The servers asked so far.
#[derive(Default)]
struct Tally(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    /// They have the change, as far as is known, and have not answered.
    waiting: Vec<String>,
    /// Whether some server may have had the change decided without proof of it.
    unsettled: bool,
    /// The others, with their reasons.
    reasons: Vec<String>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed(&self, endpoint: &Endpoint) {
        self.lock().waiting.push(endpoint.label.clone());
    }

    fn answered(&self, endpoint: &Endpoint) {
        self.lock().waiting.retain(|label| *label != endpoint.label);
    }

    fn failed(&self, endpoint: &Endpoint, why: &str, unsettled: bool) {
        let mut asked = self.lock();
        asked.unsettled |= unsettled;
        asked.reasons.push(format!("  {}: {}", endpoint.label, one_line(why)));
    }

    /// Whether some server may have the change.
    fn is_unsettled(&self) -> bool {
        let asked = self.lock();
        asked.unsettled || !asked.waiting.is_empty()
    }

    /// The error when time is up without a decision.
    fn end(&self, patience: Duration) -> Error {
        let unsettled = self.is_unsettled();
        let asked = self.lock();
        let silent = asked.waiting.iter().map(|label| format!("  {label}: no answer yet"));
        let servers: Vec<_> = asked.reasons.iter().cloned().chain(silent).collect();
        let servers = servers.join("\n");
        if !unsettled {
            return Error::unavailable(format!(
                "not submitted: no server took the change; `satrap status` shows which of them \
                 answer\n{servers}"
            ));
        }
        Error::undecided(format!(
            "submitted, but no decision was seen within {} s: the validators may still decide the \
             change, at most once; see with `satrap status` whether more than two thirds of them \
             run, then give the same command again, which shows the outcome\n{servers}",
            patience.as_secs()
        ))
    }
}

impl Client {
    /// Submits a change and waits until certified state shows its effect (CLIENT-3).
    ///
    /// # Errors
    ///
    /// As [`Client::submit_within`], after half a minute.
    pub async fn submit(&self, change: &SignedChange) -> Result<Decided, Error> {
        self.submit_within(change, DECIDE_WITHIN, &|_| {}).await
    }

    /// Submits a change and waits at most for `patience` until certified state shows its effect.
    /// `say` gets a line of progress every few seconds.
    ///
    /// A change that is refused because it was decided before is [`Decided::before`].
    ///
    /// # Errors
    ///
    /// The validators' refusal with its rule, [`Kind::Unavailable`] if no server took the change, or
    /// [`Kind::Undecided`] if one did and no decision was seen.
    pub async fn submit_within(
        &self,
        change: &SignedChange,
        patience: Duration,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Decided, Error> {
        let bytes = changes::encode(change)?;
        let tally = Tally::default();
        let ended = timeout(patience, self.hand_around(change, &bytes, &tally, say)).await;
        ended.unwrap_or(Ok(None))?.ok_or_else(|| tally.end(patience))
    }

    /// Hands the change to one server after the other until it is decided or refused; nothing if no
    /// server has it.
    async fn hand_around(
        &self,
        change: &SignedChange,
        bytes: &[u8],
        tally: &Tally,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Option<Decided>, Error> {
        let started = clock::monotonic();
        let (mut answers, mut others) = (FuturesUnordered::new(), self.endpoints.iter());
        answers.extend(others.next().map(|first| self.hand_in(first, bytes, tally)));
        // The refusal to report if no server can have the change: one by a server that holds the state
        // that the change expects, rather than one that is behind.
        let (mut refused, mut behind, mut is_judged_by_all) = (None, None, true);
        loop {
            let answer = match timeout(HAND_ON_AFTER, answers.next()).await {
                Ok(answer) => answer,
                Err(_) => {
                    let waiting = tally.lock().waiting.join(", ");
                    let seconds = (clock::monotonic() - started).as_secs();
                    if !waiting.is_empty() {
                        say(&format!("no decision after {seconds} s; handed to {waiting}"));
                    }
                    answers.extend(others.next().map(|next| self.hand_in(next, bytes, tally)));
                    continue;
                }
            };
            let Some((endpoint, answer)) = answer else { break };
            match answer {
                Answer::Decided(reply) => {
                    if let Some(shown) = self.shown(change, endpoint, SHOW_WITHIN).await {
                        return Ok(Some(shown.decided(Some((reply.height, endpoint)))));
                    }
                    let why = format!(
                        "it says that height {} decided the change, but no server showed its effect \
                         certified within {SHOW_WITHIN:?}",
                        reply.height
                    );
                    tally.failed(endpoint, &why, true);
                }
                Answer::Lost(why) => tally.failed(endpoint, &why, true),
                Answer::NotTaken(why) => {
                    tally.failed(endpoint, &why, false);
                    is_judged_by_all = false;
                }
                Answer::Behind(error) => {
                    tally.failed(endpoint, &error.to_string(), false);
                    behind = Some((endpoint, error));
                }
                Answer::Refused(error) if tally.is_unsettled() => {
                    if let Some(shown) = self.shown(change, endpoint, SHOW_WITHIN).await {
                        return Ok(Some(shown.decided(None)));
                    }
                    tally.failed(endpoint, &error.to_string(), false);
                    refused = Some((endpoint, error));
                }
                Answer::Refused(error) => {
                    return self.refused(change, endpoint, error).await.map(Some);
                }
            }
            answers.extend(others.next().map(|next| self.hand_in(next, bytes, tally)));
        }
        if !tally.is_unsettled() {
            let refusal = refused.or(behind.filter(|_| is_judged_by_all));
            let Some((endpoint, error)) = refusal else { return Ok(None) };
            return self.refused(change, endpoint, error).await.map(Some);
        }
        // Every server has answered, and one of them may have passed the change on.
        let first = &self.endpoints[0];
        let shown = self.shown(change, first, Duration::MAX).await;
        Ok(shown.map(|shown| shown.decided(None)))
    }

    /// CLIENT-2: validators refuse a change that was decided before, because it expects an older state.
    async fn refused(
        &self,
        change: &SignedChange,
        endpoint: &Endpoint,
        error: Error,
    ) -> Result<Decided, Error> {
        if !error.rule.as_deref().is_some_and(|rule| OVERTAKEN.contains(&rule)) {
            return Err(error);
        }
        let looked = timeout(SHOW_WITHIN, self.look_at_all(change, endpoint)).await;
        match looked.unwrap_or(Look::Nothing) {
            Look::Shows(shown) => Ok(Decided { before: true, ..shown.decided(None) }),
            Look::MovedOn(version) => Err(Error::undecided(format!(
                "the change may have been decided before; it cannot be decided any more: the \
                 bundle has moved on to version {version}, which shows no trace of it; compare with \
                 `satrap get`, and publish again what is missing ({error})"
            ))),
            Look::Nothing => Err(error),
        }
    }

    async fn hand_in<'a>(
        &self,
        endpoint: &'a Endpoint,
        bytes: &[u8],
        tally: &Tally,
    ) -> (&'a Endpoint, Answer) {
        let channel = match self.channel(endpoint).await {
            Ok(channel) => channel,
            Err(why) => return (endpoint, Answer::NotTaken(why.to_string())),
        };
        let request = SubmitRequest { change: bytes.to_vec().into() };
        tally.handed(endpoint);
        let answer = match control(channel).submit(request).await {
            Ok(reply) => Answer::Decided(reply.into_inner()),
            Err(status) => failed(&status, endpoint),
        };
        tally.answered(endpoint);
        (endpoint, answer)
    }

    /// Looks for the certified effect of `change` on all servers, `first` before the others, again
    /// and again for as long as `patience`.
    async fn shown(
        &self,
        change: &SignedChange,
        first: &Endpoint,
        patience: Duration,
    ) -> Option<Shown> {
        let look = async {
            let mut pause = LOOK_PAUSE;
            loop {
                if let Look::Shows(shown) = self.look_at_all(change, first).await {
                    return shown;
                }
                sleep(pause).await;
                pause = (2 * pause).min(LOOK_PAUSE_MAX);
            }
        };
        timeout(patience, look).await.ok()
    }

    /// Looks once on all servers, `first` before the others, until one shows the effect.
    async fn look_at_all(&self, change: &SignedChange, first: &Endpoint) -> Look {
        let others = self.endpoints.iter().filter(|endpoint| *endpoint != first);
        let mut found = Look::Nothing;
        for endpoint in [first].into_iter().chain(others) {
            match self.look(change, endpoint).await.unwrap_or(Look::Nothing) {
                Look::Nothing => {}
                Look::Shows(shown) => return Look::Shows(shown),
                moved_on @ Look::MovedOn(_) => found = moved_on,
            }
        }
        found
    }

    /// Compares the certified state that one server holds with `change`; nothing if it serves none.
    async fn look(&self, change: &SignedChange, endpoint: &Endpoint) -> Option<Look> {
        let channel = self.channel(endpoint).await.ok()?;
        let head = match &change.change.action {
            Action::Publish(publish) => {
                let interest = Interest::Bundles(vec![publish.bundle.clone()]);
                let replica = self.read_from(channel, &interest).await.ok()?;
                let head = replica.heads().get(&publish.bundle)?;
                let made = publish.expect_version + 1;
                if head.version > made {
                    return Some(Look::MovedOn(head.version));
                }
                let shows = head.version == made && head.root == publish.root;
                shows.then_some(Some((head.height, made)))?
            }
            Action::Retire(retire) => {
                let interest = Interest::Bundles(vec![retire.bundle.clone()]);
                let replica = self.read_from(channel.clone(), &interest).await.ok()?;
                if let Some(head) = replica.heads().get(&retire.bundle) {
                    // V28: a name that is used again starts above every version that was retired.
                    let moved_on = head.version > retire.expect_version;
                    return moved_on.then_some(Look::MovedOn(head.version));
                }
                // An absent bundle that never was at this version was retired by another change.
                let retired = self.governance_from(channel).await.ok()?.retired_version;
                let shows = self.is_fresh(&replica) && retired > retire.expect_version;
                shows.then_some(Some((replica.height(), 0)))?
            }
            Action::Govern(expected, act) => {
                let governance = self.governance_from(channel).await.ok()?;
                let shows = governance.version > *expected && governed(&governance, act);
                shows.then_some(None)?
            }
        };
        Some(Look::Shows(Shown { head, by: endpoint.clone() }))
    }

    /// Whether `replica` is fresh: state from before a bundle was created lacks the bundle, too.
    fn is_fresh(&self, replica: &Replica) -> bool {
        let age = Timestamp(clock::now()).since(replica.certified_time());
        age <= self.genesis.policy.heartbeat * SILENT_HEARTBEATS
    }
}

impl Shown {
    /// `claim` is the height that a server named, and which one.
    fn decided(self, claim: Option<(u64, &Endpoint)>) -> Decided {
        let claimed = claim.map_or(0, |(height, _)| height);
        let (height, version) = self.head.unwrap_or((claimed, 0));
        let by = claim.map_or(self.by, |(_, endpoint)| endpoint.clone());
        Decided { height, version, by, before: false }
    }
}

/// The answer of a server that failed, as it matters for the decision of the change.
fn failed(status: &Status, endpoint: &Endpoint) -> Answer {
    let fault = Fault::of(status);
    if fault.is_verdict() || fault.is_behind() {
        let message = format!("{} (says {})", one_line(&fault::text(status)), endpoint.label);
        let rule = fault.rule().map(str::to_owned);
        let error = Error { kind: Kind::Refused, rule, message };
        return if fault.is_behind() { Answer::Behind(error) } else { Answer::Refused(error) };
    }
    match fault.is_before_judging() {
        true => Answer::NotTaken(fault::describe(status)),
        false => Answer::Lost(fault::describe(status)),
    }
}

/// Whether `governance` shows the effect of `act`.
fn governed(governance: &Governance, act: &GovernanceAct) -> bool {
    let holds_key = |region, key| {
        let keys = governance.region_keys.get(region);
        keys.is_some_and(|keys: &BTreeSet<_>| keys.contains(key))
    };
    match act {
        GovernanceAct::AuthorizeOperator(operator) => {
            governance.operators.get(&operator.public) == Some(operator)
        }
        GovernanceAct::RevokeOperator(key) => !governance.operators.contains_key(key),
        GovernanceAct::AuthorizeRegionKey(region, key) => holds_key(region, key),
        GovernanceAct::RevokeRegionKey(region, key) => !holds_key(region, key),
        GovernanceAct::SetValidators(validators) => governance.validators == *validators,
    }
}
