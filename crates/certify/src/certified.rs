//! Proof in the type: a value that passed verification.

use core::ops::Deref;

/// A `T` that was verified against the realm's genesis.
///
/// There is one constructor, and only [`crate::Replica::verify`] calls it. Storage and activation
/// accept nothing else, so a path that forgets to verify does not compile:
///
/// ```compile_fail
/// let forged = satrap_certify::Certified(7_u32);
/// ```
#[derive(Debug)]
#[must_use = "verified but neither stored nor activated"]
pub struct Certified<T>(T);

impl<T> Certified<T> {
    /// Only for [`crate::Replica::verify`].
    pub(crate) fn by_verification(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Certified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
