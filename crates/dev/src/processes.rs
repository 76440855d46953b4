//! Starts the realm's processes, restarts one that dies, and stops them all in order.
//!
//! Each process is this very binary with another verb, so the realm is the production code. A
//! process that dies (a user is invited to kill one) comes back after a moment; one that keeps
//! dying comes back after pauses that double. The supervisor never stops the other processes because one
//! died: `Dev` decides that.

use std::{fs, io, path::Path, time::Duration};

use satrap_runtime::{
    TaskGroup,
    child::{Daemon, Running},
    clock,
};
use tokio::{
    sync::{mpsc, watch},
    time,
};

/// A process that lived for less than this failed to start.
const STARTED_AFTER: Duration = Duration::from_secs(3);
/// How long a process may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// The pause before a dead process is started again, doubled after each failed start.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// The longest pause.
const RESTART_AFTER_MAX: Duration = Duration::from_secs(32);
/// Capacity of the channel of events.
const EVENTS_MAX: usize = 256;

/// One process to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name for people, log file and realm.json.
    pub name: String,
    /// How it is started.
    pub daemon: Daemon,
}

/// A start or end of a process.
#[derive(Debug)]
pub enum ProcessEvent {
    /// It runs.
    Started {
        /// Which one.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// It ended without being told to, or did not start.
    Died(Death),
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Death {
    /// Which one.
    pub name: String,
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// How it ended, and the last lines of its log.
    pub how: String,
    /// How many starts in a row have failed, this one included.
    pub failed_starts: u32,
}

/// All processes of a realm.
#[derive(Debug)]
pub struct Processes {
    stop: watch::Sender<bool>,
    /// Their starts and ends.
    pub events: mpsc::Receiver<ProcessEvent>,
    running: mpsc::Receiver<()>,
}

impl Processes {
    /// Starts `specs`, whose log files are in `logs`.
    ///
    /// # Errors
    ///
    /// If the log directory cannot be made.
    pub fn start(tasks: &TaskGroup, specs: Vec<Spec>, logs: &Path) -> io::Result<Self> {
        fs::create_dir_all(logs)?;
        let stop = watch::Sender::new(false);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        // Closes when the last supervisor has ended.
        let (alive, running) = mpsc::channel(1);
        for spec in specs {
            let supervisor = Supervisor {
                spec,
                stop: stop.subscribe(),
                events: sender.clone(),
                _alive: alive.clone(),
            };
            let name = format!("supervise {}", supervisor.spec.name);
            tasks.spawn_transient(name, supervisor.run());
        }
        Ok(Self { stop, events, running })
    }

    /// Asks all processes to end and waits until they have.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // No event is read any more; a full channel must not hold a supervisor up.
        self.events.close();
        while self.running.recv().await.is_some() {}
    }
}

struct Supervisor {
    spec: Spec,
    stop: watch::Receiver<bool>,
    events: mpsc::Sender<ProcessEvent>,
    _alive: mpsc::Sender<()>,
}

impl Supervisor {
    async fn run(mut self) -> io::Result<()> {
        let mut failed_starts = 0;
        loop {
            let started = clock::monotonic();
            let (code, how) = match self.spec.daemon.spawn() {
                Ok(mut child) => {
                    let (name, pid) = (self.spec.name.clone(), child.process.id());
                    let pid = pid.unwrap_or_default();
                    self.tell(ProcessEvent::Started { name, pid }).await;
                    let status = tokio::select! {
                        status = child.process.wait() => status?,
                        () = stopped(&mut self.stop) => return end(child).await,
                    };
                    (status.code(), self.spec.daemon.how_it_ended(status))
                }
                Err(error) => (None, format!("it cannot be started: {error}")),
            };
            let lived = clock::monotonic().saturating_sub(started);
            failed_starts = if lived < STARTED_AFTER { failed_starts + 1 } else { 0 };
            let name = self.spec.name.clone();
            let death = Death { name, code, how, failed_starts };
            self.tell(ProcessEvent::Died(death)).await;
            let doubled = RESTART_AFTER * (1 << failed_starts.saturating_sub(1).min(6));
            tokio::select! {
                () = time::sleep(doubled.min(RESTART_AFTER_MAX)) => {}
                () = stopped(&mut self.stop) => return Ok(()),
            }
        }
    }

    async fn tell(&self, event: ProcessEvent) {
        // The receiver is dropped only while everything is being stopped.
        let _ = self.events.send(event).await;
    }
}

/// Completes once everything is to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender is dropped only after it has asked for the end.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Asks a process to stop, and kills it if that is not enough.
async fn end(child: Running) -> io::Result<()> {
    let mut process = child.ask_to_stop();
    match time::timeout(STOP_WITHIN, process.wait()).await {
        Ok(ended) => ended.map(drop),
        Err(_) => process.kill().await,
    }
}
