//! Hashes passwords and verifies them, with Argon2id.
//!
//! A password is in memory from the arrival of its request until it is hashed or verified, and nowhere else: the log,
//! the state and snapshots hold hashes. Hashing is slow and takes memory by design. So it runs on blocking threads, a
//! few at a time; otherwise a flood of login attempts would take all CPUs and memory.
//!
//! # Invariants
//!
//! - **PASSWORD-1** A login attempt takes the same time whether or not the user exists.
//! - **PASSWORD-2** A password is zeroed once it is hashed or verified.

use std::sync::Arc;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use satrap_ring_core::Refusal;
use satrap_runtime::rng;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::calls::{Failure, Unavailable};
use crate::limits::{PASSWORD_BYTES_MAX, PASSWORDS_AT_ONCE_MAX, PASSWORDS_WAITING_MAX};

const SALT_BYTES: usize = 16;

/// The cost of hashing one password. The default is OWASP's first choice for Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordCost {
    /// Memory in KiB; at least 8.
    pub memory_kib: u32,
    /// Passes over the memory; at least 1.
    pub rounds: u32,
}

impl Default for PasswordCost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, rounds: 2 }
    }
}

/// Hashes and verifies passwords, a bounded number at a time. Clones share the bounds.
#[derive(Clone, Debug)]
pub(super) struct Passwords {
    params: Params,
    working: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    /// New hashes cost this much. Older hashes are verified at their own cost.
    ///
    /// # Panics
    ///
    /// If the cost is outside Argon2's bounds. Falling back to another cost would weaken hashes silently.
    pub fn new(cost: PasswordCost) -> Self {
        let params = Params::new(cost.memory_kib, cost.rounds, 1, None);
        Self {
            params: params.expect("the cost of password hashes is outside Argon2's bounds"),
            working: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE_MAX)),
            waiting: Arc::new(Semaphore::new(PASSWORDS_AT_ONCE_MAX + PASSWORDS_WAITING_MAX)),
        }
    }

    /// The hash of a new password.
    ///
    /// # Errors
    ///
    /// [`Refusal::RequestTooLarge`] for a password that is too long, and [`Unavailable::TooManyRequests`] if too many
    /// wait.
    pub async fn hash(&self, password: String) -> Result<String, Failure> {
        let params = self.params.clone();
        self.run(password, move |password| hash(params, password)).await
    }

    /// Whether `password` matches `hash`. Without a hash, because there is no such user, it takes as long and the answer
    /// is no (PASSWORD-1).
    ///
    /// # Errors
    ///
    /// As [`Self::hash`].
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Failure> {
        let params = self.params.clone();
        self.run(password, move |password| match hash {
            Some(hash) => verify(&hash, password),
            None => {
                drop(self::hash(params, password));
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        password: String,
        work: impl FnOnce(&[u8]) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let password = Zeroizing::new(password);
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Refusal::RequestTooLarge.into());
        }
        let _slot = self.waiting.try_acquire().map_err(|_| Unavailable::TooManyRequests)?;
        let working = self.working.clone().acquire_owned().await;
        let working = working.expect("BUG: the semaphore was closed");
        // The closure holds the permit: if the client leaves, the work still occupies its thread until it ends.
        let work = tokio::task::spawn_blocking(move || {
            let done = work(password.as_bytes());
            drop(working);
            done
        });
        // PASSWORD-2: the password was dropped with the closure. A join error means that the runtime stops.
        work.await.map_err(|_| Unavailable::Stopped.into())
    }
}

fn argon2(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(params: Params, password: &[u8]) -> String {
    let mut salt = [0; SALT_BYTES];
    rng::fill(&mut salt);
    let salt =
        SaltString::encode_b64(&salt).expect("BUG: the salt has a length that Argon2 refuses");
    let hashed = argon2(params).hash_password(password, &salt);
    hashed.expect("BUG: cost or salt are outside Argon2's bounds").to_string()
}

fn verify(hash: &str, password: &[u8]) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else { return false };
    // The cost is part of the hash. The comparison takes constant time.
    argon2(Params::default()).verify_password(password, &hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: PasswordCost = PasswordCost { memory_kib: 8, rounds: 1 };

    fn block<T>(task: impl Future<Output = T>) -> T {
        satrap_runtime::runtime::current_thread().unwrap().block_on(task)
    }

    #[test]
    fn only_the_password_itself_opens() {
        block(async {
            let passwords = Passwords::new(CHEAP);
            let hash = passwords.hash("open sesame".to_owned()).await.unwrap();
            assert!(!hash.contains("sesame") && hash.starts_with("$argon2id$"), "{hash}");
            let again = passwords.hash("open sesame".to_owned()).await.unwrap();
            assert_ne!(hash, again, "salted");
            for (guess, stored, opens) in [
                ("open sesame", Some(hash.clone()), true),
                ("open sesame ", Some(hash.clone()), false),
                ("", Some(hash), false),
                ("", Some(String::new()), false),
                ("open sesame", None, false),
            ] {
                assert_eq!(
                    passwords.verify(guess.to_owned(), stored).await,
                    Ok(opens),
                    "{guess:?}"
                );
            }
        });
    }

    #[test]
    fn a_hash_is_checked_at_the_cost_it_was_made_with() {
        block(async {
            let old = Passwords::new(CHEAP).hash("pw".to_owned()).await.unwrap();
            let now = Passwords::new(PasswordCost { memory_kib: 16, rounds: 2 });
            assert_eq!(now.verify("pw".to_owned(), Some(old)).await, Ok(true));
        });
    }

    #[test]
    fn a_flood_is_refused_beyond_its_bound() {
        block(async {
            let passwords = Passwords::new(CHEAP);
            let guesses = PASSWORDS_AT_ONCE_MAX + PASSWORDS_WAITING_MAX + 1;
            let guess = || passwords.verify("pw".to_owned(), None);
            let answers = futures::future::join_all((0..guesses).map(|_| guess())).await;
            let (last, others) = answers.split_last().unwrap();
            assert!(others.iter().all(|answer| *answer == Ok(false)));
            assert_eq!(*last, Err(Unavailable::TooManyRequests.into()));
        });
    }

    #[test]
    fn passwords_have_a_longest() {
        block(async {
            let passwords = Passwords::new(CHEAP);
            assert!(passwords.hash("x".repeat(PASSWORD_BYTES_MAX)).await.is_ok());
            let long = passwords.hash("x".repeat(PASSWORD_BYTES_MAX + 1)).await;
            assert_eq!(long, Err(Refusal::RequestTooLarge.into()));
        });
    }
}
