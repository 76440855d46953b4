//! etcd's own `etcdctl`, set up as `satrap etcd env` says.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use super::drill::until;

/// How long a watch has to end that must.
const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// A watch that is open.
pub struct Watch {
    child: Child,
    events: mpsc::Receiver<String>,
}

/// The program, and the environment that an operator gives it.
pub struct Etcdctl {
    program: PathBuf,
    environment: Vec<(String, String)>,
}

/// The status of a member, as it reports it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
    pub id: u64,
    pub leader: u64,
    pub revision: i64,
}

impl Etcdctl {
    /// Reads the `export` lines that `satrap etcd env` prints.
    pub fn of(program: PathBuf, environment: &str) -> Self {
        let variable = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once("='")?;
            Some((name.to_owned(), value.strip_suffix('\'')?.to_owned()))
        };
        let environment: Vec<_> = environment.lines().filter_map(variable).collect();
        assert!(environment.iter().any(|(name, _)| name == "ETCDCTL_ENDPOINTS"));
        Self { program, environment }
    }

    fn command(&self, url: Option<&str>, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(url) = url {
            command.env("ETCDCTL_ENDPOINTS", url);
        }
        command
    }

    /// Runs one command, at one endpoint or all; an error is what it prints as such.
    fn at(&self, url: Option<&str>, words: &[&str]) -> Result<String, String> {
        let ran = self.command(url, words).output().unwrap();
        let (out, err) =
            (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        if ran.status.success() {
            return Ok(out);
        }
        let error = err.lines().rev().find_map(|line| line.strip_prefix("Error: "));
        Err(error.unwrap_or(&err).to_owned())
    }

    /// Runs the words of a page.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        self.at(None, words)
    }

    fn json(&self, words: &[&str]) -> Result<Value, String> {
        let printed = self.run(&[words, &["-w", "json"]].concat())?;
        Ok(serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{words:?}: {e}: {printed}")))
    }

    /// `alarm list`: members and the alarms that they raised.
    pub fn alarms(&self) -> Result<Vec<(u64, &'static str)>, String> {
        let listed = self.json(&["alarm", "list"])?;
        let raised = listed["alarms"].as_array().cloned().unwrap_or_default();
        let name = |alarm: &Value| match alarm["alarm"].as_u64() {
            Some(1) => "NOSPACE",
            Some(2) => "CORRUPT",
            other => panic!("alarm {other:?}"),
        };
        let alarm = |alarm: &Value| (alarm["memberID"].as_u64().unwrap(), name(alarm));
        Ok(raised.iter().map(alarm).collect())
    }

    /// `endpoint status`.
    pub fn status(&self) -> Result<Vec<Endpoint>, String> {
        let listed = self.json(&["endpoint", "status"])?;
        let endpoint = |one: &Value| {
            let status = &one["Status"];
            Endpoint {
                url: one["Endpoint"].as_str().unwrap().to_owned(),
                id: status["header"]["member_id"].as_u64().unwrap(),
                // Left out if there is none.
                leader: status["leader"].as_u64().unwrap_or_default(),
                revision: status["header"]["revision"].as_i64().unwrap(),
            }
        };
        Ok(listed.as_array().unwrap().iter().map(endpoint).collect())
    }

    /// `endpoint hashkv`: the hash and the revision it is of, by member.
    pub fn hashes(&self) -> Result<Vec<(u64, u32, i64)>, String> {
        let listed = self.json(&["endpoint", "hashkv"])?;
        let hash = |one: &Value| {
            let (hash, header) = (&one["HashKV"]["hash"], &one["HashKV"]["header"]);
            let member = header["member_id"].as_u64().unwrap();
            let hash = u32::try_from(hash.as_u64().unwrap()).unwrap();
            (member, hash, header["revision"].as_i64().unwrap())
        };
        Ok(listed.as_array().unwrap().iter().map(hash).collect())
    }

    /// `put`.
    pub fn put(&self, key: &str, value: &str) -> Result<(), String> {
        self.at(None, &["put", key, value]).map(drop)
    }

    /// `put` at one endpoint.
    pub fn put_at(&self, url: &str, key: &str, value: &str) -> Result<(), String> {
        self.at(Some(url), &["put", key, value]).map(drop)
    }

    /// `get`: the value.
    pub fn get(&self, key: &str) -> Result<Option<String>, String> {
        self.at(None, &["get", key, "--print-value-only"]).map(value)
    }

    /// `get` at one endpoint.
    pub fn get_at(&self, url: &str, key: &str) -> Result<Option<String>, String> {
        self.at(Some(url), &["get", key, "--print-value-only"]).map(value)
    }

    /// `del`: how many keys.
    pub fn del(&self, key: &str) -> Result<i64, String> {
        Ok(self.run(&["del", key])?.trim().parse().unwrap())
    }

    /// `watch` at one endpoint, which ends it when it has no leader, as etcdctl asks. Returns once an
    /// event of a put has come.
    pub fn watch_at(&self, url: &str, key: &str) -> Watch {
        let mut command = self.command(Some(url), &["watch", key]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            // The test has ended if there is no receiver.
            out.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        until("the event of a put", || {
            self.put_at(url, key, "watched").ok()?;
            events.try_recv().ok()
        });
        Watch { child, events }
    }
}

fn value(printed: String) -> Option<String> {
    printed.strip_suffix('\n').map(str::to_owned)
}

impl Watch {
    /// The output of etcdctl when the watch has ended.
    pub fn end(mut self) -> String {
        let end = thread::spawn({
            let mut err = self.child.stderr.take().unwrap();
            move || {
                let mut text = String::new();
                err.read_to_string(&mut text).unwrap();
                text
            }
        });
        // Events come until its output is closed.
        while self.events.recv_timeout(WATCH_TIMEOUT).is_ok() {}
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        end.join().unwrap()
    }
}
