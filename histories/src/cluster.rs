//! The processes of a ring, one in each namespace and on each disk.
//!
//! A [`Store`] says how to start one member. The rest, killing, pausing, wiping and
//! starting again, is the same for every store that speaks the etcd API.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use satrap_history::Nanos;
use satrap_realm::description::Client;

use crate::{
    RunError,
    disk::Disk,
    net::{Network, Node, address},
    shared::now_ns,
};

/// Members that a ring has, and one place for a member that is to come.
pub const MEMBERS: usize = 3;
/// All places.
pub const SLOTS: usize = MEMBERS + 1;

/// How one member is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// The member's name, which is never used twice.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Where it keeps its data.
    pub data: PathBuf,
    /// Names and addresses of all members, itself included.
    pub ring: Vec<(String, String)>,
    /// Whether it joins a ring that already runs.
    pub joins: bool,
}

/// A program that is a member of a ring and speaks the etcd API.
pub trait Store: Send + Sync {
    /// The store's name.
    fn name(&self) -> &'static str;
    /// The program and its arguments.
    ///
    /// # Errors
    ///
    /// If what the program needs cannot be written.
    fn command(&self, start: &Start) -> Result<Command, RunError>;
    /// The name of the member that comes to a place as the `generation`-th.
    fn member_name(&self, slot: usize, generation: u32) -> String {
        format!("m{slot}g{generation}")
    }
    /// The credentials of clients; none if they connect without.
    fn credentials(&self) -> Option<&Client> {
        None
    }
    /// Where clients reach a member.
    fn client_url(&self, address: &str) -> String {
        format!("http://{address}:2379")
    }
    /// The address that the membership API knows a member by.
    fn peer_url(&self, address: &str) -> String {
        format!("http://{address}:2380")
    }
    /// Whether it serves the store API besides that of etcd.
    fn serves_store_api(&self) -> bool {
        true
    }
}

/// etcd itself, which the harness is proven with.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The program.
    pub binary: PathBuf,
    /// Milliseconds without a heartbeat until a follower becomes a candidate.
    pub election_ms: u32,
}

impl Store for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn serves_store_api(&self) -> bool {
        false
    }

    fn command(&self, start: &Start) -> Result<Command, RunError> {
        let (client, peer) = (self.client_url(&start.address), self.peer_url(&start.address));
        let ring: Vec<_> = start
            .ring
            .iter()
            .map(|(name, address)| format!("{name}={}", self.peer_url(address)))
            .collect();
        let mut command = Command::new(&self.binary);
        command
            .args(["--name", &start.name])
            .arg("--data-dir")
            .arg(&start.data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &ring.join(",")])
            .args(["--initial-cluster-state", if start.joins { "existing" } else { "new" }])
            .args(["--election-timeout", &self.election_ms.to_string()])
            .args(["--heartbeat-interval", &(self.election_ms / 10).to_string()])
            // Few entries between snapshots, so that members that were away need one.
            .args(["--snapshot-count", "1000", "--snapshot-catchup-entries", "500"])
            .args(["--strict-reconfig-check=false", "--log-level", "warn"]);
        Ok(command)
    }
}

/// How much of its log is shown of each member of a run that failed, and of one that crashed.
const LAST_LINES: usize = 6;
const CRASH_LINES: usize = 60;
const LINE_CHARS: usize = 400;

/// How long a member that failed may take to end.
const EXIT_NS_MAX: Nanos = 12_000_000_000;

/// Directories of runs start with this and the process id.
const PREFIX: &str = "satrap-histories-";

/// Removes the disks of processes that are gone.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            Disk::sweep(&entry.path());
            // Files that are left over do no harm but take memory.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// A directory of this run, which goes with it or is swept by a later one.
pub(crate) fn directory() -> Result<tempfile::TempDir, RunError> {
    // In memory where there is some: what is tested is not this machine's disk.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    sweep(&place);
    let directory = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(place);
    directory.map_err(RunError::io("a directory for a run"))
}

/// One place for a member.
#[derive(Debug)]
struct Slot {
    name: String,
    generation: u32,
    child: Option<Child>,
    /// Whether the last process here ended by itself.
    ended: bool,
    /// Until when an exit by itself is no surprise: its disk fails or failed of late, or it was
    /// removed.
    may_exit_until: Nanos,
    /// Whether it belongs to the ring.
    active: bool,
    /// Whether it was added to a ring that already ran.
    joins: bool,
}

/// A ring with its network and disks.
pub struct Cluster {
    store: Box<dyn Store>,
    slots: Vec<Slot>,
    /// The network, for cuts.
    pub network: Network,
    /// The disks by slot.
    pub disks: Vec<Disk>,
    logs: PathBuf,
    /// Members that ended by themselves without a reason known to the run.
    pub crashes: Vec<String>,
    // Last, because the disks are mounted in it.
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Makes network and disks, and starts the members.
    ///
    /// # Errors
    ///
    /// If the operating system refuses, which it does without root.
    pub fn start(store: Box<dyn Store>) -> Result<Self, RunError> {
        let directory = directory()?;
        let network = Network::new(SLOTS)?;
        let mut disks = Vec::new();
        for slot in 0..SLOTS {
            let group = format!("{}m{slot}", network.name());
            disks.push(Disk::new(directory.path(), &format!("m{slot}"), &group)?);
        }
        let slots = (0..SLOTS)
            .map(|slot| Slot {
                name: store.member_name(slot, 0),
                generation: 0,
                child: None,
                ended: false,
                may_exit_until: 0,
                active: slot < MEMBERS,
                joins: false,
            })
            .collect();
        let logs = directory.path().to_owned();
        let crashes = Vec::new();
        let mut cluster =
            Self { store, slots, network, disks, logs, crashes, _directory: directory };
        for slot in 0..MEMBERS {
            cluster.run(slot)?;
        }
        Ok(cluster)
    }

    /// The store that runs.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The slots that belong to the ring.
    #[must_use]
    pub fn active(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.slots[*slot].active).collect()
    }

    /// A slot that does not.
    #[must_use]
    pub fn spare(&self) -> Option<usize> {
        (0..SLOTS).find(|slot| !self.slots[*slot].active)
    }

    /// Where clients reach the member in a slot.
    #[must_use]
    pub fn client_url(&self, slot: usize) -> String {
        self.store.client_url(&address(slot))
    }

    /// Starts the member in a slot if it does not run.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn run(&mut self, slot: usize) -> Result<(), RunError> {
        self.notice_exit(slot);
        if self.slots[slot].child.is_some() {
            return Ok(());
        }
        let ring = self
            .active()
            .into_iter()
            .map(|other| (self.slots[other].name.clone(), address(other)))
            .collect();
        let start = Start {
            name: self.slots[slot].name.clone(),
            address: address(slot),
            data: self.disks[slot].path().join("data"),
            ring,
            joins: self.slots[slot].joins,
        };
        let wanted = self.store.command(&start)?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.logs.join(format!("m{slot}.log")))
            .map_err(RunError::io("a log file"))?;
        let space = format!("--net=/run/netns/{}", self.network.namespace(Node::Member(slot)));
        // Both replace themselves with the member, so that its process id is the one known here.
        // Not `ip netns exec`, which gives the member copies of all mounts: a disk that others
        // hold cannot be repaired.
        let child = Command::new("nsenter")
            .args([&space, "setpriv", "--pdeathsig", "KILL"])
            .arg(wanted.get_program())
            .args(wanted.get_args())
            // A backtrace would push the message of a panic out of the lines that are shown.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(RunError::io("a log file"))?)
            .stderr(log)
            .spawn()
            .map_err(RunError::io("starting a member"))?;
        self.disks[slot].adopt(child.id())?;
        (self.slots[slot].child, self.slots[slot].ended) = (Some(child), false);
        Ok(())
    }

    /// Notes whether the member in a slot ended by itself.
    fn notice_exit(&mut self, slot: usize) {
        let place = &mut self.slots[slot];
        let Some(child) = &mut place.child else { return };
        if let Ok(Some(status)) = child.try_wait() {
            (place.child, place.ended) = (None, true);
            if now_ns() > place.may_exit_until {
                let signal = status.signal();
                let what = format!("{} ended by itself: {status}, signal {signal:?}", place.name);
                self.crashes.push(format!("{what}\n{}", self.log_tail_of(slot, CRASH_LINES)));
            }
        }
    }

    /// Says that the member in a slot may end by itself, until [`Self::expect_life`].
    pub fn expect_exit(&mut self, slot: usize) {
        self.slots[slot].may_exit_until = Nanos::MAX;
    }

    /// Says that the disk in a slot is well again; who failed on it may still be about to end.
    pub fn expect_life(&mut self, slot: usize) {
        self.slots[slot].may_exit_until = now_ns() + EXIT_NS_MAX;
    }

    /// Whether the member in a slot ended by itself and was not started again.
    pub fn has_ended(&mut self, slot: usize) -> bool {
        self.notice_exit(slot);
        self.slots[slot].ended
    }

    /// Whether the member in a slot runs.
    pub fn is_running(&mut self, slot: usize) -> bool {
        self.notice_exit(slot);
        self.slots[slot].child.is_some()
    }

    /// Kills the member in a slot without warning. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If the process cannot be waited for.
    pub fn kill(&mut self, slot: usize) -> Result<bool, RunError> {
        self.notice_exit(slot);
        let Some(mut child) = self.slots[slot].child.take() else { return Ok(false) };
        child.kill().map_err(RunError::io("killing a member"))?;
        child.wait().map_err(RunError::io("waiting for a member"))?;
        Ok(true)
    }

    /// Pauses the member in a slot. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// If the signal cannot be sent.
    pub fn pause(&mut self, slot: usize) -> Result<bool, RunError> {
        self.signal(slot, Signal::STOP)
    }

    /// Lets a paused member go on.
    ///
    /// # Errors
    ///
    /// If the signal cannot be sent.
    pub fn resume(&mut self, slot: usize) -> Result<bool, RunError> {
        self.signal(slot, Signal::CONT)
    }

    fn signal(&mut self, slot: usize, signal: Signal) -> Result<bool, RunError> {
        self.notice_exit(slot);
        let Some(child) = &self.slots[slot].child else { return Ok(false) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(false) };
        let sent = kill_process(pid, signal).map_err(std::io::Error::from);
        sent.map_err(RunError::io("signaling a member")).map(|()| true)
    }

    /// Makes a slot part of the ring; the member is started with [`Self::run`].
    pub fn activate(&mut self, slot: usize) {
        let place = &mut self.slots[slot];
        place.generation += 1;
        place.name = self.store.member_name(slot, place.generation);
        place.active = true;
        place.may_exit_until = 0;
        place.joins = true;
    }

    /// Takes a slot out of the ring, with all that it held.
    ///
    /// # Errors
    ///
    /// If its process or its data cannot be removed.
    pub fn retire(&mut self, slot: usize) -> Result<(), RunError> {
        self.slots[slot].active = false;
        self.expect_exit(slot);
        self.kill(slot)?;
        self.disks[slot].wipe()
    }

    /// The last lines that each member wrote.
    #[must_use]
    pub fn log_tails(&self) -> String {
        (0..SLOTS).map(|slot| self.log_tail_of(slot, LAST_LINES)).collect()
    }

    /// The last lines that the member in a slot wrote.
    #[must_use]
    pub fn log_tail_of(&self, slot: usize, lines: usize) -> String {
        let log = fs::read_to_string(self.logs.join(format!("m{slot}.log"))).unwrap_or_default();
        // Runs have no validator, and members log that.
        let lines: Vec<_> =
            log.lines().rev().filter(|l| !l.contains("validator")).take(lines).collect();
        let shown = |line: &str| line.chars().take(LINE_CHARS).collect::<String>();
        lines.into_iter().rev().map(|line| format!("m{slot}: {}\n", shown(line))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for slot in 0..SLOTS {
            drop(self.kill(slot));
        }
    }
}
