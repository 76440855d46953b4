//! Decides what one caller of a service may cost, so that its flood is refused to it alone.
//!
//! A caller pays by what its certificate proves. The CA of a region can mint any number of names, so a
//! region's members and edges pay together; every other name pays for itself.
//!
//! # Invariants
//!
//! - **U1** A call is charged before any work is done for it, and a refused one costs extra.
//! - **U2** A payer that has spent its budget costs no other payer anything; the refusal says when
//!   to come back.
//! - **U3** Calls in progress are bounded per scope and per name, and no scope's are another's.
//! - **U4** A reply is charged by its bytes once they are known; its payer waits them off (P7).

mod requests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use satrap_pressure::{Budgets, Full, Quota, Rate, Seat, Seats};
use tonic::{Status, metadata::MetadataValue};

use crate::{
    clock,
    pki::{PeerIdentity, Scope, SpiffeId},
};

pub use requests::{RequestSeats, Seated};

/// Payers whose spending is remembered; each takes less than 256 bytes.
const PAYERS_MAX: usize = 4_096;
/// The cost of a submission to its payer besides its bytes: its signatures are checked.
pub const SUBMIT_FLAT_BYTES: usize = 1024;
/// A refused one costs its payer this besides: it was checked for nothing.
pub const SUBMIT_REFUSED_BYTES: usize = 64 * 1024;
/// Requests in progress of one scope; with the largest change in each they take 49 MiB.
pub const REQUESTS: Quota = Quota { group_max: 64, holder_max: 16 };
/// The header in which gRPC carries a retry hint, in milliseconds.
const RETRY_HEADER: &str = "grpc-retry-pushback-ms";

/// Seats by what CAs vouch for: a scope cannot be minted.
pub type PeerSeats = Seats<Scope, Arc<SpiffeId>>;
/// One of [`PeerSeats`].
pub type PeerSeat = Seat<Scope, Arc<SpiffeId>>;

/// Who pays for a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payer {
    /// All members and edges of a region.
    Region(String),
    /// An operator or a validator.
    Name(Arc<SpiffeId>),
}

impl Payer {
    /// Who pays for what `peer` asks.
    #[must_use]
    pub fn of(peer: &PeerIdentity) -> Self {
        match peer.id.region() {
            Some(region) => Self::Region(region.to_owned()),
            None => Self::Name(peer.id.clone()),
        }
    }
}

/// Takes a seat for `peer`.
///
/// # Errors
///
/// `RESOURCE_EXHAUSTED`, with whose seats are taken.
pub fn take_seat(
    seats: &PeerSeats,
    peer: &PeerIdentity,
    quota: Quota,
    what: &str,
) -> Result<PeerSeat, Status> {
    let scope = peer.id.scope();
    seats.take(scope.clone(), peer.id.clone(), quota).map_err(|full| {
        let (whose, max) = match full {
            Full::Group(max) => (scope.to_string(), max),
            Full::Holder(max) => (peer.id.to_string(), max),
        };
        let why = format!("{whose} has {max} {what} here, the most it may; end one or ask another");
        Status::resource_exhausted(why)
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

    /// Charges `payer` for `bytes` if it can pay (U1).
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
    /// `RESOURCE_EXHAUSTED` with a hint when to come back (U2).
    pub fn charge(&self, payer: &Payer, bytes: usize) -> Result<(), Status> {
        self.take(payer, bytes).map_err(|wait| self.later(payer, wait))
    }

    /// Charges `payer` for `bytes` that it caused already (U1, U4).
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
        let Some(wait) = wait else {
            let why = format!("one call of {whose} exceeds its whole budget for {}", self.what);
            return Status::resource_exhausted(why);
        };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let what = self.what;
        let why = format!("{whose} has spent its budget for {what}; try again in {wait_ms} ms");
        let mut status = Status::resource_exhausted(why);
        status.metadata_mut().insert(RETRY_HEADER, MetadataValue::from(wait_ms));
        status
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
    seats: PeerSeats,
    charges: Charges,
    what: &'static str,
}

/// One admitted call.
pub struct Call {
    charges: Charges,
    payer: Payer,
    _seat: PeerSeat,
}

impl Calls {
    /// Calls within `limits`; `what` names them in refusals.
    #[must_use]
    pub fn new(what: &'static str, limits: CallLimits) -> Self {
        let charges = Charges::new(what, limits.rate);
        Self { limits, seats: Seats::default(), charges, what }
    }

    /// Admits one call of `peer`; it is in progress until the [`Call`] is dropped (U3).
    ///
    /// # Errors
    ///
    /// `RESOURCE_EXHAUSTED`.
    pub fn begin(&self, peer: &PeerIdentity) -> Result<Call, Status> {
        let payer = Payer::of(peer);
        let seat = take_seat(&self.seats, peer, self.limits.at_once, self.what)?;
        self.charges.charge(&payer, self.limits.flat_bytes)?;
        Ok(Call { charges: self.charges.clone(), payer, _seat: seat })
    }
}

impl Call {
    /// Charges a reply, or one message of it (U4).
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
        let hint: u64 =
            refused.metadata().get(RETRY_HEADER).unwrap().to_str().unwrap().parse().unwrap();
        assert!((1..=1_001).contains(&hint), "{hint} ms");
        pays("region/us/member/a", 100).unwrap();
        pays("operator/alice", 100).unwrap();
        pays("operator/bob", 50).unwrap();
        charges.owe(&Payer::of(&peer("operator/bob")), 100);
        assert!(pays("operator/bob", 1).is_err(), "a refusal costs extra");
        let never = pays("operator/carol", 101).unwrap_err();
        assert!(never.metadata().get(RETRY_HEADER).is_none(), "over the burst: {never}");
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
