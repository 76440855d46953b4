//! Limits what one caller of a service may cost, so that its flood is refused to it alone.
//!
//! A caller pays by what its certificate proves. The CA of a region can mint any number of names, so a
//! region's members and edges pay together; every other name pays for itself.
//!
//! # Invariants
//!
//! - **CHARGE-1** A call is charged before any work is done for it, and a refused one costs extra.
//! - **CHARGE-2** A payer that has spent its budget costs no other payer anything; the refusal says when
//!   to come back.
//! - **CHARGE-3** Calls in progress are bounded per scope and per name, and no scope's are another's.
//! - **CHARGE-4** A reply is charged by its bytes once they are known; its payer waits them off (BUCKET-4).

mod requests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use satrap_pressure::{Budgets, Full, Permit, Permits, Quota, Rate};
use satrap_proto::fault;
use tonic::Status;

use crate::pki::{PeerIdentity, Scope, SpiffeId};
use satrap_runtime::clock;

pub use requests::{Limited, RequestPermits};

/// Payers whose spending is remembered; each takes less than 256 bytes.
const PAYERS_MAX: usize = 4_096;
/// The cost of a submission to its payer besides its bytes: its signatures are checked.
pub const SUBMIT_FLAT_BYTES: usize = 1024;
/// A refused one costs its payer this besides: it was checked for nothing.
pub const SUBMIT_REFUSED_BYTES: usize = 64 * 1024;
/// Requests in progress of one scope; with the largest change in each they take 49 MiB.
pub const REQUESTS: Quota = Quota { group_max: 64, holder_max: 16 };

/// Permits grouped by scope, which a CA vouches for: a CA can mint names, but no scope.
pub type PeerPermits = Permits<Scope, Arc<SpiffeId>>;
/// One of [`PeerPermits`].
pub type PeerPermit = Permit<Scope, Arc<SpiffeId>>;

/// The account that a call is charged to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payer {
    /// All members and edges of a region.
    Region(String),
    /// An operator or a validator.
    Name(Arc<SpiffeId>),
}

impl Payer {
    /// The payer for the calls of `peer`.
    #[must_use]
    pub fn of(peer: &PeerIdentity) -> Self {
        match peer.id.region() {
            Some(region) => Self::Region(region.to_owned()),
            None => Self::Name(peer.id.clone()),
        }
    }
}

/// Takes a permit for `peer`.
///
/// # Errors
///
/// `RESOURCE_EXHAUSTED`, naming the holder or scope that has no permit left.
pub fn take_permit(
    permits: &PeerPermits,
    peer: &PeerIdentity,
    quota: Quota,
    what: &str,
) -> Result<PeerPermit, Status> {
    let scope = peer.id.scope();
    permits.take(scope.clone(), peer.id.clone(), quota).map_err(|full| {
        let (whose, max) = match full {
            Full::Group(max) => (scope.to_string(), max),
            Full::Holder(max) => (peer.id.to_string(), max),
        };
        let why = format!("{whose} has {max} {what} here, the most it may; end one or ask another");
        fault::limited(why, None)
    })
}

/// Bytes that payers spend on one kind of work. Clones share them.
#[derive(Clone)]
pub struct Charges {
    budgets: Arc<Mutex<Budgets<Payer>>>,
    what: &'static str,
}

impl Charges {
    /// `rate` in bytes for each payer; `what` names the work in refusals.
    #[must_use]
    pub fn new(what: &'static str, rate: Rate) -> Self {
        Self { budgets: Arc::new(Mutex::new(Budgets::new(rate, PAYERS_MAX))), what }
    }

    /// Charges `payer` for `bytes` if it can pay (CHARGE-1).
    ///
    /// # Errors
    ///
    /// How long until it can; `None` if it never will.
    pub fn take(&self, payer: &Payer, bytes: usize) -> Result<(), Option<Duration>> {
        self.with(|budgets, now| budgets.take(payer, tokens(bytes), now))
    }

    /// As [`Self::take`], for a service.
    ///
    /// # Errors
    ///
    /// `RESOURCE_EXHAUSTED` with a hint when to come back (CHARGE-2).
    pub fn charge(&self, payer: &Payer, bytes: usize) -> Result<(), Status> {
        self.take(payer, bytes).map_err(|wait| self.later(payer, wait))
    }

    /// Charges `payer` for `bytes` that it caused already (CHARGE-1, CHARGE-4).
    pub fn owe(&self, payer: &Payer, bytes: usize) {
        self.with(|budgets, now| budgets.owe(payer, tokens(bytes), now));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Budgets<Payer>, Duration) -> T) -> T {
        // A bucket is whole after every statement, also after a panic.
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut budgets, clock::monotonic())
    }

    fn later(&self, payer: &Payer, wait: Option<Duration>) -> Status {
        let whose = match payer {
            Payer::Region(region) => format!("region {region}"),
            Payer::Name(id) => id.to_string(),
        };
        match wait {
            Some(wait) => {
                let what = self.what;
                fault::limited(format!("{whose} has spent its budget for {what}"), Some(wait))
            }
            None => {
                let why = format!("one call of {whose} exceeds its whole budget for {}", self.what);
                fault::limited(why, None)
            }
        }
    }
}

fn tokens(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The budget of callers for one service.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Calls in progress.
    pub at_once: Quota,
    /// Bytes of replies.
    pub rate: Rate,
    /// The cost of a call before its reply is known, in bytes.
    pub flat_bytes: usize,
}

/// The calls of one service. Clones share them.
#[derive(Clone)]
pub struct Calls {
    limits: CallLimits,
    permits: PeerPermits,
    charges: Charges,
    what: &'static str,
}

/// One admitted call.
pub struct Call {
    charges: Charges,
    payer: Payer,
    _permit: PeerPermit,
}

impl Calls {
    /// Calls within `limits`; `what` names them in refusals.
    #[must_use]
    pub fn new(what: &'static str, limits: CallLimits) -> Self {
        let charges = Charges::new(what, limits.rate);
        Self { limits, permits: Permits::default(), charges, what }
    }

    /// Admits one call of `peer`; it is in progress until the [`Call`] is dropped (CHARGE-3).
    ///
    /// # Errors
    ///
    /// `RESOURCE_EXHAUSTED`.
    pub fn begin(&self, peer: &PeerIdentity) -> Result<Call, Status> {
        let payer = Payer::of(peer);
        let permit = take_permit(&self.permits, peer, self.limits.at_once, self.what)?;
        self.charges.charge(&payer, self.limits.flat_bytes)?;
        Ok(Call { charges: self.charges.clone(), payer, _permit: permit })
    }
}

impl Call {
    /// Charges a reply, or one message of it (CHARGE-4).
    pub fn replied(&self, bytes: usize) {
        self.charges.owe(&self.payer, bytes);
    }

    /// Waits until the payer has paid for `bytes`: a long reply is slowed down, not refused.
    pub async fn paid(&self, bytes: usize) {
        while let Err(Some(wait)) = self.charges.take(&self.payer, bytes) {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use satrap_proto::fault::Fault;

    use super::*;

    const LIMITS: CallLimits = CallLimits {
        at_once: Quota { group_max: 3, holder_max: 2 },
        rate: Rate { burst: 1_000, per_s: 1 },
        flat_bytes: 10,
    };

    fn peer(id: &str) -> PeerIdentity {
        let id = Arc::new(format!("spiffe://c/{id}").parse().unwrap());
        PeerIdentity { id, leaf_der: Arc::from([]), public_key: [0; 32] }
    }

    #[test]
    fn a_region_pays_together_and_leaves_others_their_budget() {
        let charges = Charges::new("submissions", Rate { burst: 100, per_s: 1 });
        let pays = |id: &str, bytes| charges.charge(&Payer::of(&peer(id)), bytes);
        pays("region/eu/member/a", 60).unwrap();
        pays("region/eu/member/minted", 40).unwrap();
        let refused = pays("region/eu/edge/minted", 1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let wait = Fault::of(&refused).wait().unwrap();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(1_001), "{wait:?}");
        pays("region/us/member/a", 100).unwrap();
        pays("operator/alice", 100).unwrap();
        pays("operator/bob", 50).unwrap();
        charges.owe(&Payer::of(&peer("operator/bob")), 100);
        assert!(pays("operator/bob", 1).is_err(), "a refusal costs extra");
        let never = pays("operator/carol", 101).unwrap_err();
        assert_eq!(Fault::of(&never).wait(), None, "over the burst: {never}");
    }

    #[test]
    fn calls_in_progress_at_the_limit_and_over_it() {
        let calls = Calls::new("calls", LIMITS);
        let alice = [(); 2].map(|()| calls.begin(&peer("operator/alice")).unwrap());
        assert!(calls.begin(&peer("operator/alice")).is_err(), "over the limit of a name");
        let _bob = calls.begin(&peer("operator/bob")).unwrap();
        assert!(calls.begin(&peer("operator/bob")).is_err(), "over the limit of a scope");
        let _validator = calls.begin(&peer("validator/v1")).unwrap();
        drop(alice);
        calls.begin(&peer("operator/bob")).unwrap();
    }

    #[test]
    fn a_reply_is_paid_for_after_it_was_made() {
        let calls = Calls::new("calls", LIMITS);
        calls.begin(&peer("operator/alice")).unwrap().replied(1_500);
        assert!(calls.begin(&peer("operator/alice")).is_err());
        calls.begin(&peer("operator/bob")).unwrap();
    }

    #[tokio::test]
    async fn a_long_reply_waits_until_it_is_paid_for() {
        let limits = CallLimits { rate: Rate { burst: 1_000, per_s: 100_000 }, ..LIMITS };
        let call = Calls::new("calls", limits).begin(&peer("operator/alice")).unwrap();
        let started = clock::monotonic();
        for _ in 0..4 {
            call.paid(1_000).await;
        }
        assert!(clock::monotonic() - started >= Duration::from_millis(25));
    }
}
