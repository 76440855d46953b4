//! Stops a process, or makes it read its files again, as the operating system or its parent asks.

use std::io::{self, Read as _};

use tokio::signal::unix::{SignalKind, signal};

use super::TaskGroup;
use crate::Unusable;

/// The effect of SIGHUP on a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// As SIGTERM: the process belongs to a terminal, and the terminal is gone. Ignored if it was
    /// ignored when the process started, as under `nohup`.
    Stops,
    /// Files that may change while the process runs are read again; see [`TaskGroup::keep_fresh`].
    Reloads,
}

/// The event that ends a daemon, besides its own failure and SIGINT or SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunUntil {
    /// Nothing.
    Signal,
    /// The end of its standard input: it lives as long as the process that holds the other end.
    StdinCloses,
}

impl RunUntil {
    /// Makes `group` live as long.
    ///
    /// # Errors
    ///
    /// If the operating system refuses a signal handler or a thread.
    pub fn apply(self, group: &TaskGroup) -> Result<(), Unusable> {
        let refused = |error| Unusable::resources("run", &error);
        group.handle_signals(Hangup::Reloads).map_err(refused)?;
        match self {
            Self::Signal => Ok(()),
            Self::StdinCloses => group.shutdown_when_stdin_closes().map_err(refused),
        }
    }
}

impl TaskGroup {
    /// Asks the group to stop on SIGINT or SIGTERM, and does on SIGHUP what `hangup` says.
    ///
    /// # Errors
    ///
    /// If the operating system refuses the handlers.
    pub fn handle_signals(&self, hangup: Hangup) -> io::Result<()> {
        let hangup = Some(hangup).filter(|h| *h == Hangup::Reloads || !ignores_hangup());
        let mut hung_up = hangup.map(|_| signal(SignalKind::hangup())).transpose()?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (shutdown, reloads) = (self.shutdown(), self.0.reloads.clone());
        self.spawn_transient("signals", async move {
            loop {
                let hung_up = async {
                    match &mut hung_up {
                        Some(signal) => drop(signal.recv().await),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
                    _ = terminate.recv() => tracing::info!("stopping on SIGTERM"),
                    () = hung_up => {
                        if hangup == Some(Hangup::Reloads) {
                            tracing::info!(
                                "SIGHUP: reading certificates, keys and trust files again; a change \
                                 of the configuration file takes effect at the next start"
                            );
                            reloads.send_replace(());
                            continue;
                        }
                        tracing::info!("stopping on SIGHUP");
                    }
                    () = shutdown.requested() => {}
                }
                shutdown.request();
                return Ok::<(), std::convert::Infallible>(());
            }
        });
        Ok(())
    }

    /// Asks the group to stop when standard input ends, as it does when a parent that holds its
    /// other end is gone. Input that arrives before is thrown away.
    ///
    /// # Errors
    ///
    /// If the operating system refuses the thread.
    fn shutdown_when_stdin_closes(&self) -> io::Result<()> {
        let shutdown = self.shutdown();
        // Not one of the group: nothing can interrupt its read, so the group must not wait for it.
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut ignored = [0; 512];
            while io::stdin().lock().read(&mut ignored).is_ok_and(|count| count > 0) {}
            tracing::info!("stopping because standard input was closed");
            shutdown.request();
        })?;
        Ok(())
    }
}

/// Whether this process was started with SIGHUP ignored, which a handler would undo. Where the
/// system does not say, it was not.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is that of signal 1, SIGHUP.
    ignored.is_some_and(|mask| mask & 1 == 1)
}
