//! Submits a change, and believes only its certified effect (O2, O3).
//!
//! A server that takes a change can swallow it and say that it was decided: a revocation that was
//! never made. So this client reads certified state, from any server, until it shows the effect. If it
//! does not in time, the claim is not borne out and the next server gets the same bytes; a change is
//! decided at most once. A lost answer is settled by the same look.
//!
//! # Deliberately absent
//!
//! A refusal is the word of one server too, but it is seen: the error names the server.

use std::{collections::BTreeSet, time::Duration};

use satrap_certify::{
    Action, Governance, GovernanceAct, Interest, Publish, Replica, SignedChange, Timestamp,
};
use satrap_host::clock;
use satrap_proto::v1::{SubmitReply, SubmitRequest};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{Client, Decided, Endpoint, control, named_rule, status_text, unanswered};
use crate::{
    error::{CliError, Kind},
    operator,
};

/// A decision takes well under a second; a realm that lost its leader takes a few.
const DECIDE_WITHIN: Duration = Duration::from_secs(30);
/// How long a decided change may take to show. A validator shows it at once, a member as soon as its
/// ring has adopted it.
const SHOW_WITHIN: Duration = Duration::from_secs(5);
/// A certified state of this many heartbeats ago is of the past.
const SILENT_HEARTBEATS: u32 = 3;
/// Between two looks, the first one; the pause doubles up to the longest.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The answer of one server to a submitted change.
enum Answer {
    /// It was decided.
    Decided(SubmitReply),
    /// It breaks a rule.
    Refused(CliError),
    /// Nothing; the change may have been passed on.
    Lost(String),
    /// Nothing, because it was not reached.
    Unreached(String),
}

/// The certified effect of a change.
struct Shown {
    /// The height and version of the head, for a publish.
    head: Option<(u64, u64)>,
    by: Endpoint,
}

impl Client {
    /// Submits a change and waits until certified state shows its effect (O3).
    ///
    /// # Errors
    ///
    /// The validators' refusal with its rule, or that no server's answer was borne out.
    pub async fn submit(&self, change: &SignedChange) -> Result<Decided, CliError> {
        let bytes = operator::encode(change)?;
        let mut reasons = Vec::new();
        // Whether some server may have had the change decided without proof of it.
        let mut unsettled = false;
        for endpoint in &self.endpoints {
            match self.hand_in(endpoint, &bytes).await {
                Answer::Decided(reply) => {
                    if let Some(shown) = self.shown(change, endpoint).await {
                        return Ok(shown.decided(Some((reply.height, endpoint))));
                    }
                    unsettled = true;
                    reasons.push(format!(
                        "  {}: it says that height {} decided the change, but no server showed its \
                         effect certified within {SHOW_WITHIN:?}",
                        endpoint.label, reply.height
                    ));
                }
                Answer::Lost(why) => {
                    unsettled = true;
                    reasons.push(format!("  {}: {why}", endpoint.label));
                }
                Answer::Unreached(why) => reasons.push(format!("  {}: {why}", endpoint.label)),
                Answer::Refused(error) => {
                    // O2: what an earlier server had decided is stale here.
                    let shown = match unsettled {
                        true => self.shown(change, endpoint).await,
                        false => None,
                    };
                    return shown.map(|shown| shown.decided(None)).ok_or(error);
                }
            }
        }
        Err(unanswered(&reasons))
    }

    async fn hand_in(&self, endpoint: &Endpoint, bytes: &[u8]) -> Answer {
        let channel = match self.channel(endpoint).await {
            Ok(channel) => channel,
            Err(why) => return Answer::Unreached(why),
        };
        let request = SubmitRequest { change: bytes.to_vec().into() };
        match timeout(DECIDE_WITHIN, control(channel).submit(request)).await {
            Ok(Ok(reply)) => Answer::Decided(reply.into_inner()),
            Ok(Err(status)) if is_verdict(status.code()) => {
                let (rule, message) = named_rule(status.message());
                let message = format!("{message} (says {})", endpoint.label);
                let rule = rule.map(str::to_owned);
                Answer::Refused(CliError { kind: Kind::Refused, rule, message })
            }
            Ok(Err(status)) => Answer::Lost(status_text(&status)),
            Err(_) => Answer::Lost(format!("it was not decided within {DECIDE_WITHIN:?}")),
        }
    }

    /// Looks for the certified effect of `change` on all servers, `first` before the others.
    async fn shown(&self, change: &SignedChange, first: &Endpoint) -> Option<Shown> {
        let deadline = clock::monotonic() + SHOW_WITHIN;
        let mut pause = LOOK_PAUSE;
        let others = self.endpoints.iter().filter(|endpoint| *endpoint != first);
        let order: Vec<_> = [first].into_iter().chain(others).collect();
        loop {
            for endpoint in &order {
                let left = deadline.saturating_sub(clock::monotonic());
                if let Ok(Some(shown)) = timeout(left, self.look(change, endpoint)).await {
                    return Some(shown);
                }
            }
            if clock::monotonic() + pause >= deadline {
                return None;
            }
            sleep(pause).await;
            pause = (2 * pause).min(LOOK_PAUSE_MAX);
        }
    }

    /// Whether the certified state that one server holds shows the effect of `change`.
    async fn look(&self, change: &SignedChange, endpoint: &Endpoint) -> Option<Shown> {
        let channel = self.channel(endpoint).await.ok()?;
        let head = match &change.change.action {
            Action::Publish(publish) => {
                let interest = Interest::Bundles(vec![publish.bundle.clone()]);
                let replica = self.read_from(channel, &interest).await.ok()?;
                Some(published(&replica, publish)?)
            }
            Action::Retire(retire) => {
                let interest = Interest::Bundles(vec![retire.bundle.clone()]);
                let replica = self.read_from(channel, &interest).await.ok()?;
                let shows = self.is_fresh(&replica) && replica.heads().is_empty();
                shows.then_some(Some((replica.height(), 0)))?
            }
            Action::Govern(expected, act) => {
                let governance = self.governance_from(channel).await.ok()?;
                let shows = governance.version > *expected && governed(&governance, act);
                shows.then_some(None)?
            }
        };
        Some(Shown { head, by: endpoint.clone() })
    }

    /// Whether `replica` is of the present: a state from before a bundle was created shows its
    /// absence, too.
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
        Decided { height, version, by }
    }
}

fn is_verdict(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Aborted
            | Code::NotFound
            | Code::OutOfRange
    )
}

/// Height and version of the head that `publish` made, if `replica` holds it.
fn published(replica: &Replica, publish: &Publish) -> Option<(u64, u64)> {
    let head = replica.heads().get(&publish.bundle)?;
    let ours = head.root == publish.root && head.version == publish.expect_version + 1;
    ours.then_some((head.height, head.version))
}

/// Whether `governance` is as `act` makes it.
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
