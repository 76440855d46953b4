//! Decides, at a resource, whether a request comes from the present holder of a role or from one
//! who does not know yet that it is no longer.
//!
//! The adversary is a paused process: it was granted a role, stood still beyond its lease, and goes
//! on writing before it looks at a clock. No lease and no lock can stop that; only the resource can,
//! by remembering the highest token it has seen and refusing everything below.
//!
//! ```text
//!   token 33 ──▶ admitted, seen = 33
//!   token 34 ──▶ admitted, seen = 34
//!   token 33 ──▶ StaleToken { presented: 33, seen: 34 }
//! ```
//!
//! # Invariants
//!
//! - **GUARD-1** Admitted tokens never decrease: after a token, only that token and greater ones.
//! - **GUARD-2** With a [`DurableGuard`], GUARD-1 holds across restarts: a greater token is remembered before
//!   the first request that carries it is admitted.
//! - **GUARD-3** Behind a [`GuardLayer`], no request is begun while one with a smaller token still runs.
//!
//! # Deliberately absent
//!
//! Asking the ring whether a token is still good: the answer could be old before it arrived, and the
//! resource would depend on the ring. A guard compares two numbers and makes no request.

use core::fmt;

use crate::token::FencingToken;

mod layer;

pub use layer::{GuardLayer, Guarded, MissingToken};

/// A token that is smaller than one which the resource has seen. The holder that presented it has
/// lost its role and must stop; asking again cannot help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stale fencing token {presented}: {seen} has been seen, so the role has a newer holder")]
pub struct StaleToken {
    /// The token of the request.
    pub presented: FencingToken,
    /// The highest one so far.
    pub seen: FencingToken,
}

/// A value that was let in under a token. Only a guard makes one, so a function that takes
/// `Fenced<T>` cannot be called without a check of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced<T> {
    token: FencingToken,
    value: T,
}

impl<T> Fenced<T> {
    /// Under which token.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The value that was let in.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value
    }

    /// The same admission, for what was made of the value.
    #[must_use]
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Fenced<U> {
        Fenced { token: self.token, value: make(self.value) }
    }
}

/// The guard of one resource, in memory.
///
/// Call [`Guard::admit`] under the same lock as the write itself: a check that is over before the
/// write begins leaves a gap in which a newer holder can write.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    seen: FencingToken,
}

impl Guard {
    /// A guard that has seen nothing. After a restart that forgets, which is safe only for a
    /// resource whose content is forgotten as well; otherwise see [`DurableGuard`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A guard that refuses everything below `seen`, such as what the ring says of the role.
    #[must_use]
    pub fn since(seen: FencingToken) -> Self {
        Self { seen }
    }

    /// The highest token so far.
    #[must_use]
    pub fn seen(&self) -> FencingToken {
        self.seen
    }

    /// Lets a request in, or not (GUARD-1).
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a greater token was seen; nothing changes.
    pub fn admit(&mut self, presented: FencingToken) -> Result<Fenced<()>, StaleToken> {
        if presented < self.seen {
            return Err(StaleToken { presented, seen: self.seen });
        }
        self.seen = presented;
        Ok(Fenced { token: presented, value: () })
    }
}

/// Stores the highest token with the data of a resource, so that its guard survives a restart.
pub trait Remember {
    /// Why the resource could not read or write.
    type Error: fmt::Display;

    /// The highest token that was remembered; zero if there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be read. A guard that does not know must not guess.
    fn recall(&mut self) -> Result<FencingToken, Self::Error>;

    /// Writes a token, greater than all before, and returns once it is on disk.
    ///
    /// # Errors
    ///
    /// If it may not be on disk.
    fn remember(&mut self, token: FencingToken) -> Result<(), Self::Error>;
}

/// Why a durable guard did not let a request in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E: fmt::Display> {
    /// The request comes from a former holder.
    #[error(transparent)]
    Stale(StaleToken),
    /// The token may be good, but it could not be remembered.
    #[error("cannot remember the fencing token: {0}")]
    Forgetful(E),
}

/// The guard of one resource that remembers across restarts (GUARD-2).
#[derive(Debug)]
pub struct DurableGuard<R> {
    guard: Guard,
    resource: R,
}

impl<R: Remember> DurableGuard<R> {
    /// A guard that goes on where the last one stopped.
    ///
    /// # Errors
    ///
    /// The error of the resource, if it cannot read its token.
    pub fn open(mut resource: R) -> Result<Self, R::Error> {
        Ok(Self { guard: Guard::since(resource.recall()?), resource })
    }

    /// The resource, for a caller that was admitted.
    pub fn resource(&mut self) -> &mut R {
        &mut self.resource
    }

    /// Lets a request in, or not. Writes only when a token is the first of a new holder.
    ///
    /// # Errors
    ///
    /// If the token is stale, or new and could not be remembered; then the guard is as before.
    pub fn admit(&mut self, token: FencingToken) -> Result<Fenced<()>, Refused<R::Error>> {
        let mut next = self.guard.clone();
        let fenced = next.admit(token).map_err(Refused::Stale)?;
        if next.seen > self.guard.seen {
            self.resource.remember(token).map_err(Refused::Forgetful)?;
        }
        self.guard = next;
        Ok(fenced)
    }
}

/// Decides for a [`GuardLayer`] whether a token is admitted.
pub trait Admit: Send + 'static {
    /// Lets a request in, or says in words why not.
    ///
    /// # Errors
    ///
    /// The [`Refused`] of the guard.
    fn admit(&mut self, token: FencingToken) -> Result<Fenced<()>, Refused<String>>;
}

impl Admit for Guard {
    fn admit(&mut self, token: FencingToken) -> Result<Fenced<()>, Refused<String>> {
        Self::admit(self, token).map_err(Refused::Stale)
    }
}

impl<R: Remember + Send + 'static> Admit for DurableGuard<R> {
    fn admit(&mut self, token: FencingToken) -> Result<Fenced<()>, Refused<String>> {
        Self::admit(self, token).map_err(|refused| match refused {
            Refused::Stale(stale) => Refused::Stale(stale),
            Refused::Forgetful(error) => Refused::Forgetful(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(counter: u32) -> FencingToken {
        FencingToken { epoch: 1, counter }
    }

    /// 001-47: the vector of the literature.
    #[test]
    fn after_34_the_holder_of_33_is_refused() {
        let mut guard = Guard::new();
        assert_eq!(guard.admit(token(33)).unwrap().token(), token(33));
        assert_eq!(guard.admit(token(34)).unwrap().token(), token(34));
        let stale = guard.admit(token(33)).unwrap_err();
        assert_eq!(stale, StaleToken { presented: token(33), seen: token(34) });
        assert_eq!(
            stale.to_string(),
            "stale fencing token 1-33: 1-34 has been seen, so the role has a newer holder"
        );
        assert!(guard.admit(token(34)).is_ok(), "the present holder goes on");
        assert!(guard.admit(FencingToken { epoch: 2, counter: 1 }).is_ok(), "restored ring");
        assert!(guard.admit(token(u32::MAX)).is_err(), "from before the restore");
    }

    #[derive(Default)]
    struct Disk {
        held: FencingToken,
        writes: usize,
        full: bool,
    }

    impl Remember for &mut Disk {
        type Error = &'static str;

        fn recall(&mut self) -> Result<FencingToken, Self::Error> {
            Ok(self.held)
        }

        fn remember(&mut self, token: FencingToken) -> Result<(), Self::Error> {
            if self.full {
                return Err("no space");
            }
            (self.held, self.writes) = (token, self.writes + 1);
            Ok(())
        }
    }

    #[test]
    fn a_restart_does_not_revive_a_former_holder() {
        let mut disk = Disk::default();
        let mut guard = DurableGuard::open(&mut disk).unwrap();
        for counter in [33, 34, 34, 34] {
            guard.admit(token(counter)).unwrap();
        }
        assert_eq!(guard.resource().writes, 2, "one write per holder");
        let mut guard = DurableGuard::open(&mut disk).unwrap();
        assert!(matches!(guard.admit(token(33)), Err(Refused::Stale(_))));
        guard.resource().full = true;
        assert_eq!(guard.admit(token(35)), Err(Refused::Forgetful("no space")));
        assert!(guard.admit(token(34)).is_ok(), "what was not remembered was not seen");
    }

    proptest! {
        /// 001-47 in general: what is admitted never goes down, and the highest is never refused.
        #[test]
        fn what_is_admitted_never_goes_down(counters in prop::collection::vec(0u32..50, 0..200)) {
            let (mut guard, mut highest) = (Guard::new(), 0);
            for counter in counters {
                let is_stale = counter < highest && highest > 0;
                let admitted = guard.admit(FencingToken { epoch: 0, counter });
                prop_assert_eq!(admitted.is_err(), is_stale);
                highest = highest.max(counter);
            }
        }
    }
}
