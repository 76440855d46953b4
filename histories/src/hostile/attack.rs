//! Attacks, and the thread that runs those of one principal.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use futures::future::join_all;
use satrap_certify::Genesis;
use satrap_identity::{mtls::Credentials, signer::Signer};
use satrap_runtime::runtime;
use tokio::sync::oneshot;

use crate::RunError;

/// A principal that attacks, and what it attacks.
#[derive(Clone)]
pub struct Attacker {
    /// Its certificate and key; a stranger has none.
    pub credentials: Option<Credentials>,
    /// The key that it signs changes with, if it may sign any.
    pub key: Option<Arc<dyn Signer>>,
    /// The realm.
    pub genesis: Genesis,
    /// The servers, as `https://HOST:PORT`.
    pub urls: Vec<String>,
    /// The listeners for validators only, for those who know a way in.
    pub mesh_urls: Vec<String>,
}

impl Attacker {
    /// The sockets behind the URLs.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address = |url: &String| url.strip_prefix("https://")?.parse().ok();
        self.urls.iter().chain(&self.mesh_urls).filter_map(address).collect()
    }
}

/// The count of one attack.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    /// Something of `bytes` was sent.
    pub fn sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A server refused, or ended a connection.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages sent, their bytes, and how many were refused.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.bytes), load(&self.refused))
    }
}

/// Something without end.
pub type Endless = Pin<Box<dyn Future<Output = ()>>>;

/// One attack.
#[derive(Clone, Copy)]
pub struct Attack {
    /// For the report.
    pub name: &'static str,
    /// Goes on until it is dropped, and counts what it does.
    pub run: fn(Arc<Attacker>, Arc<Tally>) -> Endless,
}

/// The attacks of one principal while they run.
pub struct Under {
    /// By attack.
    pub tallies: Vec<(&'static str, Arc<Tally>)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Under {
    /// Starts `attacks` on a thread of their own.
    ///
    /// # Errors
    ///
    /// If there is no thread for them.
    pub fn attack(attacker: Attacker, attacks: &[Attack]) -> Result<Self, RunError> {
        let attacker = Arc::new(attacker);
        let started: Vec<_> =
            attacks.iter().map(|attack| (*attack, Arc::new(Tally::default()))).collect();
        let tallies = started.iter().map(|(attack, tally)| (attack.name, tally.clone())).collect();
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::current_thread().map_err(RunError::io("a runtime"))?;
        let thread = thread::spawn(move || {
            let all =
                started.into_iter().map(|(attack, tally)| (attack.run)(attacker.clone(), tally));
            runtime.block_on(async {
                tokio::select! {
                    _ = join_all(all) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { tallies, stop: Some(stop), thread: Some(thread) })
    }

    /// Whether every attack has sent something.
    #[must_use]
    pub fn all_began(&self) -> bool {
        self.tallies.iter().all(|(_, tally)| tally.counts().0 > 0)
    }

    /// Whether the attacks still go on: a panic in one of them ends all.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed, and shows as an attack that stopped counting.
            drop(thread.join());
        }
    }
}
