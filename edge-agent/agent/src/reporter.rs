//! Signs the reports of this edge, one at a time, while the edge goes on.
//!
//! ```text
//!   begin ─▶ signing ── answered ──▶ the report, or why there is none ─▶ idle
//!              │ ▲
//!              └─┘ change: another report is due afterwards
//! ```
//!
//! The key may be in a device that hangs, or refuses for a while ([`satrap_identity::signer`]). A
//! report that is being signed is then the last one until the device answers, and a refused one is
//! not signed again: the next change makes a newer report. Neither holds up updates, activations or
//! a stop, because the signature is a future that the edge holds.
//!
//! # Deliberately absent
//!
//! Timeouts and retries: a report that comes late is no harm, and there is at most one.

use std::{future, pin::Pin, sync::Arc};

use satrap_certify::{Report, SignedReport};
use satrap_identity::signer::{self, Signer, SignerError};

/// A signed report, or why there is none.
pub type Signed = Result<Box<SignedReport>, SignerError>;

/// The report that is being signed, and whether another one is due.
#[derive(Default)]
pub struct Reporter {
    signing: Option<Pin<Box<dyn Future<Output = Signed> + Send>>>,
    due: bool,
}

impl Reporter {
    /// Sets whether a report is due: true when the state of this edge has changed while a server is connected.
    pub fn set_due(&mut self, due: bool) {
        self.due = due;
    }

    /// Whether a report is due and none is being signed.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        self.due && self.signing.is_none()
    }

    /// Begins to sign `report`, of the edge with this certificate.
    pub fn begin(&mut self, report: Report, certificate: Vec<u8>, signer: Arc<dyn Signer>) {
        self.due = false;
        self.signing = Some(Box::pin(async move {
            let signature = signer::sign(&*signer, &report.signed_bytes()).await?;
            Ok(Box::new(SignedReport { report, certificate, signature }))
        }));
    }

    /// Waits for the signature; forever if none is being made. May be dropped and called again.
    pub async fn signed(&mut self) -> Signed {
        let signed = match &mut self.signing {
            Some(signing) => signing.await,
            None => future::pending().await,
        };
        self.signing = None;
        signed
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use satrap_certify::{PublicKey, SignatureBytes, Timestamp};
    use satrap_identity::signer::SoftSigner;
    use satrap_sim::SimRealm;
    use tokio::sync::Semaphore;

    use super::*;

    /// A device that answers as often as it has permits, with the answer that it is made for.
    struct Device {
        key: SoftSigner,
        answers: Semaphore,
        refuses: bool,
    }

    impl Device {
        fn new(answers: usize, refuses: bool) -> Arc<Self> {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("key");
            satrap_runtime::files::write_secret(&path, hex::encode([7; 32]).as_bytes()).unwrap();
            let (key, answers) = (SoftSigner::read(&path).unwrap(), Semaphore::new(answers));
            Arc::new(Self { key, answers, refuses })
        }
    }

    #[async_trait::async_trait]
    impl Signer for Device {
        fn public(&self) -> PublicKey {
            self.key.public()
        }

        async fn sign(&self, message: &[u8]) -> Result<SignatureBytes, SignerError> {
            self.answers.acquire().await.unwrap().forget();
            if self.refuses {
                return Err(SignerError::Unavailable("no session".into()));
            }
            self.key.sign(message).await
        }
    }

    fn report(height: u64) -> Report {
        Report {
            genesis_hash: *SimRealm::new("reporter", 1).genesis.realm().genesis_hash(),
            region: "eu".parse().unwrap(),
            edge: "edge".parse().unwrap(),
            time: Timestamp(2),
            started: Timestamp(1),
            height,
            certified_time: Timestamp(1),
            running: Vec::new(),
            failed: Vec::new(),
            refusals: Vec::new(),
        }
    }

    /// The outcome, if it is there already.
    async fn poll(reporter: &mut Reporter) -> Option<Signed> {
        let mut signed = std::pin::pin!(reporter.signed());
        future::poll_fn(|context| {
            Poll::Ready(match signed.as_mut().poll(context) {
                Poll::Ready(signed) => Some(signed),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_signer_that_hangs_holds_one_report_and_the_next_is_of_the_newest_state() {
        let (device, mut reporter) = (Device::new(0, false), Reporter::default());
        assert!(!reporter.may_begin(), "nothing is due");
        reporter.set_due(true);
        reporter.begin(report(1), vec![1], device.clone());
        for _ in 2..9 {
            // The edge goes on, and gives up the wait as often as it likes.
            assert!(poll(&mut reporter).await.is_none());
            reporter.set_due(true);
            assert!(!reporter.may_begin(), "one report is being signed");
        }
        device.answers.add_permits(1);
        let signed = poll(&mut reporter).await.unwrap().unwrap();
        assert_eq!(signed.report.height, 1);
        assert!(device.public().verifies(&signed.report.signed_bytes(), &signed.signature));
        assert!(reporter.may_begin(), "the state changed meanwhile");
        device.answers.add_permits(1);
        reporter.begin(report(9), vec![1], device);
        assert_eq!(poll(&mut reporter).await.unwrap().unwrap().report.height, 9);
        assert!(!reporter.may_begin(), "nothing changed since");
    }

    #[tokio::test]
    async fn a_signer_that_fails_costs_one_report_and_nothing_is_tried_again_by_itself() {
        let mut reporter = Reporter::default();
        reporter.set_due(true);
        reporter.begin(report(1), vec![1], Device::new(1, true));
        let refused = poll(&mut reporter).await.unwrap().unwrap_err();
        assert_eq!(refused, SignerError::Unavailable("no session".into()));
        assert!(!reporter.may_begin() && poll(&mut reporter).await.is_none());
        reporter.set_due(true);
        assert!(reporter.may_begin());
        reporter.begin(report(2), vec![1], Device::new(1, false));
        assert_eq!(poll(&mut reporter).await.unwrap().unwrap().report.height, 2);
    }
}
