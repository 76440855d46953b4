//! Asks the signer for the signatures that the consensus thread requests, and asks again until it
//! answers or the height is decided.
//!
//! ```text
//!   consensus thread ─▶ SignQueue ─▶ signer task ─▶ Signer (a key in memory, an HSM)
//!          ▲                              │
//!          └──────────── inbox ◀──────────┘
//! ```
//!
//! A signer that fails ends nothing: this validator casts no votes, goes on following the others,
//! and says so in its log and status. It cannot equivocate meanwhile, because the engine requested
//! one message per height, round and step, and wrote that down before.
//!
//! The newest request comes first: it is the one that the others wait for. One request is under way
//! at a time, so a signer that is slow is not given more work than it can do.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use satrap_certify::SignatureBytes;
use satrap_identity::signer::{Signer, sign};
use satrap_pressure::FullJitter;
use satrap_runtime::{clock, rng};
use tokio::sync::Notify;

use crate::{
    guard::Place,
    inbox::Inbox,
    limits::{SIGN_REQUESTS_MAX, SIGN_RETRY, SIGN_TIMEOUT},
    malachite::SignRequest,
};

/// Since when the signer has failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Monotonic time of the first failure.
    pub since: Duration,
    /// The last failure.
    pub error: String,
    /// Failures since.
    pub failures: u64,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<Place, Vec<u8>>,
    outage: Option<Outage>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// The requests that wait for the signer. Clones share them.
#[derive(Clone, Default)]
pub struct SignQueue(Arc<Shared>);

impl SignQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section is a few moves, so the state is whole even after a panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request. Above [`SIGN_REQUESTS_MAX`] the oldest is given up: its round is long over.
    pub fn request(&self, request: SignRequest) {
        let mut state = self.lock();
        state.pending.insert(request.place, request.bytes);
        if state.pending.len() > SIGN_REQUESTS_MAX {
            state.pending.pop_first();
        }
        self.0.changed.notify_waiters();
    }

    /// Gives up the requests for heights up to `height`, which is decided.
    pub fn withdraw(&self, height: u64) {
        self.lock().pending.retain(|place, _| place.height > height);
        self.0.changed.notify_waiters();
    }

    /// The failure of the signer that has not ended yet.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.lock().outage.clone()
    }

    /// Completes once `find` returns something of the pending requests.
    async fn wait<T>(&self, find: impl Fn(&BTreeMap<Place, Vec<u8>>) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(found) = find(&self.lock().pending) {
                return found;
            }
            changed.await;
        }
    }

    /// Waits for a request and asks `signer` for the newest; fails if the signer does.
    async fn serve_one(&self, signer: &dyn Signer, inbox: &Inbox) -> Result<(), String> {
        let newest = |pending: &BTreeMap<Place, Vec<u8>>| {
            pending.last_key_value().map(|(place, bytes)| (*place, bytes.clone()))
        };
        let (place, bytes) = self.wait(newest).await;
        let answer = tokio::select! {
            () = self.wait(|pending| (!pending.contains_key(&place)).then_some(())) => return Ok(()),
            answer = tokio::time::timeout(SIGN_TIMEOUT, sign(signer, &bytes)) => answer,
        };
        let late = |_| format!("it did not answer within {SIGN_TIMEOUT:?}");
        let signature = answer.map_err(late)?.map_err(|error| error.to_string())?;
        self.answered(place, signature, inbox);
        Ok(())
    }

    fn answered(&self, place: Place, signature: SignatureBytes, inbox: &Inbox) {
        let mut state = self.lock();
        if let Some(Outage { since, failures, .. }) = state.outage.take() {
            let lasted = clock::monotonic().saturating_sub(since);
            tracing::info!(
                ?lasted,
                failures,
                "the signer answers again; this validator votes again"
            );
        }
        // Withdrawn meanwhile: the engine would ignore it.
        if state.pending.remove(&place).is_some() {
            inbox.signed(place, signature);
        }
    }

    fn failed(&self, error: String) {
        let mut state = self.lock();
        let now = clock::monotonic();
        let is_new = state.outage.is_none();
        let outage = state.outage.get_or_insert_with(|| Outage {
            since: now,
            error: String::new(),
            failures: 0,
        });
        outage.failures += 1;
        outage.error = error;
        let error = &outage.error;
        if is_new {
            tracing::error!(
                %error,
                "the signer failed; this validator casts no votes until it answers, and follows the \
                 others meanwhile; check the signer"
            );
        } else {
            tracing::debug!(%error, failures = outage.failures, "the signer failed again");
        }
    }
}

/// Serves `queue` with `signer` until `stop`, and hands the signatures to `inbox`.
///
/// # Errors
///
/// Never.
pub async fn run(
    queue: SignQueue,
    signer: Arc<dyn Signer>,
    inbox: Inbox,
    stop: impl Future<Output = ()>,
) -> Result<(), Infallible> {
    let retry = FullJitter::new(SIGN_RETRY, Duration::ZERO);
    let mut backoff = retry.clone();
    tokio::pin!(stop);
    loop {
        let pause = tokio::select! {
            () = &mut stop => return Ok(()),
            served = queue.serve_one(&*signer, &inbox) => match served {
                Ok(()) => {
                    backoff = retry.clone();
                    continue;
                }
                Err(error) => {
                    queue.failed(error);
                    backoff.next_delay(rng::u64()).min(SIGN_TIMEOUT)
                }
            },
        };
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ed25519_dalek::SigningKey;
    use satrap_certify::PublicKey;
    use satrap_identity::signer::{SignerError, SoftSigner};

    use super::*;
    use crate::{guard::Step, inbox::Next};

    /// Fails so many times, then signs; hangs on the messages that start with `hang`.
    struct Faulty {
        key: SoftSigner,
        failures: AtomicU64,
        asked: AtomicU64,
    }

    impl Faulty {
        fn new(failures: u64) -> Arc<Self> {
            let key = SoftSigner::new(SigningKey::from_bytes(&[1; 32]));
            Arc::new(Self { key, failures: failures.into(), asked: 0.into() })
        }
    }

    #[async_trait::async_trait]
    impl Signer for Faulty {
        fn public(&self) -> PublicKey {
            self.key.public()
        }

        async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if message.starts_with(b"hang") {
                std::future::pending::<()>().await;
            }
            if self.failures.load(Ordering::Relaxed) > 0 {
                self.failures.fetch_sub(1, Ordering::Relaxed);
                return Err(SignerError::Unavailable("no session".into()));
            }
            self.key.sign(message).await
        }
    }

    fn request(height: u64, round: u32, bytes: &[u8]) -> SignRequest {
        let place = Place { height, round, step: Step::Prevote };
        SignRequest { place, bytes: bytes.to_vec() }
    }

    fn taken(inbox: &Inbox) -> Option<Place> {
        match inbox.next(Duration::ZERO) {
            Next::Signed(place, _) => Some(place),
            Next::Idle => None,
            other => panic!("{other:?}"),
        }
    }

    /// Serves the queue until `done`, in virtual time.
    async fn serve(
        queue: &SignQueue,
        signer: &Arc<Faulty>,
        inbox: &Inbox,
        done: impl Fn() -> bool,
    ) {
        let until = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let served = run(queue.clone(), signer.clone(), inbox.clone(), until);
        let hour = Duration::from_secs(3_600);
        tokio::time::timeout(hour, served).await.expect("the condition is reached").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_signer_that_fails_is_asked_again_until_it_answers() {
        let (queue, inbox, signer) = (SignQueue::default(), Inbox::default(), Faulty::new(7));
        queue.request(request(1, 0, b"vote"));
        let start = tokio::time::Instant::now();
        serve(&queue, &signer, &inbox, || queue.outage().is_some_and(|o| o.failures == 5)).await;
        assert!(start.elapsed() >= 4 * FullJitter::FLOOR, "it backs off: {:?}", start.elapsed());
        let outage = queue.outage().unwrap();
        assert_eq!(outage.error, "the signer is unavailable: no session");
        assert_eq!(taken(&inbox), None);
        serve(&queue, &signer, &inbox, || queue.outage().is_none()).await;
        assert_eq!(taken(&inbox), Some(request(1, 0, b"").place));
        assert_eq!(signer.asked.load(Ordering::Relaxed), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_given_up_once_its_height_is_decided() {
        let (queue, inbox, signer) = (SignQueue::default(), Inbox::default(), Faulty::new(0));
        queue.request(request(1, 0, b"hang"));
        serve(&queue, &signer, &inbox, || {
            let asked = signer.asked.load(Ordering::Relaxed);
            if asked == 1 {
                queue.withdraw(1);
                queue.request(request(2, 0, b"vote"));
            }
            asked == 2 && queue.lock().pending.is_empty()
        })
        .await;
        assert_eq!(taken(&inbox), Some(request(2, 0, b"").place));
        assert_eq!(queue.outage(), None, "giving a request up is no failure");
    }

    #[tokio::test(start_paused = true)]
    async fn a_signer_that_hangs_counts_as_failing_and_newer_requests_come_first() {
        let (queue, inbox, signer) = (SignQueue::default(), Inbox::default(), Faulty::new(0));
        queue.request(request(1, 0, b"hang"));
        serve(&queue, &signer, &inbox, || queue.outage().is_some()).await;
        let outage = queue.outage().unwrap();
        assert!(outage.error.contains("did not answer within"), "{}", outage.error);
        queue.request(request(1, 1, b"vote"));
        serve(&queue, &signer, &inbox, || queue.outage().is_none()).await;
        assert_eq!(taken(&inbox), Some(request(1, 1, b"").place));
    }

    #[test]
    fn requests_at_the_limit_and_over_it() {
        let queue = SignQueue::default();
        let rounds = u32::try_from(SIGN_REQUESTS_MAX).unwrap();
        (0..=rounds).for_each(|round| queue.request(request(1, round, b"vote")));
        let state = queue.lock();
        assert_eq!(state.pending.len(), SIGN_REQUESTS_MAX);
        assert_eq!(state.pending.keys().next().unwrap().round, 1, "the oldest is given up");
    }
}
