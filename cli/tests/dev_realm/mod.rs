//! A `satrap dev` that stays up, for tests that start it again.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::common::{Ran, command, satrap};

/// Generous, because the machine may be busy; reaching it is a failure.
pub const WAIT: Duration = Duration::from_secs(120);

/// A `satrap dev` that stays up, and what it says.
pub struct Dev {
    pub child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Dev {
    pub fn start(dir: &Path, more: &[&str]) -> Self {
        let mut child = command(dir)
            .args(["dev", "--state-dir", "realm"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        Self { child, lines, said: Vec::new() }
    }

    /// Waits until it says `text`.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(WAIT);
            let line = line.unwrap_or_else(|_| panic!("`{text}` was not said: {:#?}", self.said));
            let found = line.contains(text);
            self.said.push(line);
            if found {
                return;
            }
        }
    }

    pub fn signal(&self, signal: &str) {
        kill(signal, self.child.id());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It has ended in the course of the test, unless that failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Gives a verb as both operators of the realm in `dir`.
pub fn as_operators(dir: &Path, verb: &[&str]) -> Ran {
    let realm = dir.join("realm");
    let plan = fs::read_to_string(realm.join("realm.toml")).unwrap();
    let plan = satrap_realm::RealmPlan::from_toml(&plan).unwrap();
    let operators = satrap_realm::RealmFiles::of(&plan, &realm).operators;
    let keys: Vec<_> = operators.iter().map(|o| o.operator_key.display().to_string()).collect();
    let more = ["--realm", "realm", "--operator", &keys[0], "--operator", &keys[1]];
    satrap(dir, &[verb, &more].concat())
}
