//! Starts the realm's processes, restarts one that dies, and stops them all in order.
//!
//! Each process is this very binary with another verb, so the realm is the production code. A
//! process that dies (a user is invited to kill one) comes back after a moment; one that dies at
//! once again and again is reported with the end of its log.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use satrap_host::{TaskGroup, clock};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time,
};

/// A process that lived for less than this failed to start.
const STARTED_AFTER: Duration = Duration::from_secs(3);
/// So many failed starts in a row end the realm.
const FAILED_STARTS_MAX: u32 = 3;
/// How long a process may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// A short rest before a dead process is started again.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// Events that wait for the console.
const EVENTS_MAX: usize = 256;

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name for people, log file and realm.json.
    pub name: String,
    /// Arguments of this binary.
    pub args: Vec<String>,
}

/// What happened to a process.
#[derive(Debug)]
pub enum ProcessEvent {
    /// It runs.
    Started {
        /// Which one.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// It ended without being told to.
    Died {
        /// Which one.
        name: String,
        /// How.
        status: String,
    },
    /// It cannot be kept running.
    Failed {
        /// Which one.
        name: String,
        /// The end of its log.
        log_tail: String,
    },
}

/// All processes of a realm.
#[derive(Debug)]
pub struct Processes {
    stop: watch::Sender<bool>,
    /// What happens to them.
    pub events: mpsc::Receiver<ProcessEvent>,
    running: mpsc::Receiver<()>,
}

impl Processes {
    /// Starts `specs`, with one log file each in `logs`.
    ///
    /// # Errors
    ///
    /// If the log directory or this binary's path cannot be used.
    pub fn start(tasks: &TaskGroup, specs: Vec<Spec>, logs: &Path) -> io::Result<Self> {
        fs::create_dir_all(logs)?;
        let binary = std::env::current_exe()?;
        let stop = watch::Sender::new(false);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        // Closes when the last supervisor has ended.
        let (alive, running) = mpsc::channel(1);
        for spec in specs {
            let supervisor = Supervisor {
                binary: binary.clone(),
                log: logs.join(format!("{}.log", spec.name)),
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
        // Nobody reads events any more; a full channel must not hold a supervisor up.
        self.events.close();
        while self.running.recv().await.is_some() {}
    }
}

struct Supervisor {
    binary: PathBuf,
    log: PathBuf,
    spec: Spec,
    stop: watch::Receiver<bool>,
    events: mpsc::Sender<ProcessEvent>,
    _alive: mpsc::Sender<()>,
}

impl Supervisor {
    async fn run(mut self) -> io::Result<()> {
        let mut failed_starts = 0;
        loop {
            let mut child = self.spawn()?;
            let started = clock::monotonic();
            let (name, pid) = (self.spec.name.clone(), child.id().unwrap_or_default());
            self.tell(ProcessEvent::Started { name, pid }).await;
            let status = tokio::select! {
                status = child.wait() => status?,
                () = stopped(&mut self.stop) => return end(child).await,
            };
            let lived = clock::monotonic().saturating_sub(started);
            failed_starts = if lived < STARTED_AFTER { failed_starts + 1 } else { 0 };
            self.tell(self.died(status)).await;
            if failed_starts == FAILED_STARTS_MAX {
                let (name, log_tail) = (self.spec.name.clone(), self.log_tail());
                self.tell(ProcessEvent::Failed { name, log_tail }).await;
                return Ok(());
            }
            tokio::select! {
                () = time::sleep(RESTART_AFTER) => {}
                () = stopped(&mut self.stop) => return Ok(()),
            }
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        Command::new(&self.binary)
            .args(&self.spec.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-c in the terminal reaches the whole process group; only `dev` is to act on it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    fn died(&self, status: ExitStatus) -> ProcessEvent {
        ProcessEvent::Died { name: self.spec.name.clone(), status: status.to_string() }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(2_000)..];
        format!("{}\n(whole log: {})", String::from_utf8_lossy(tail), self.log.display())
    }

    async fn tell(&self, event: ProcessEvent) {
        // The console is gone only while everything is being stopped.
        let _ = self.events.send(event).await;
    }
}

/// Completes once everything is to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender is dropped only after it has asked for the end.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// SIGTERM, then SIGKILL if that is not enough.
async fn end(mut child: Child) -> io::Result<()> {
    if let Some(pid) = child.id() {
        // Without unsafe code the way to send SIGTERM is the tool that every system has.
        let kill = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
        if kill.is_ok_and(|status| status.success())
            && time::timeout(STOP_WITHIN, child.wait()).await.is_ok()
        {
            return Ok(());
        }
    }
    child.kill().await
}
