//! The experiment with roles: holders that are stopped past their lease, and resources that check
//! their tokens, or do not.
//!
//! There are several roles with different times to live, and two holders and one resource for each.
//!
//! ```text
//!   referee     ◀── want, got TOKEN, ready TOKEN, wrote TOKEN STATUS ── holders ──▶ ring
//!      └── SIGSTOP between `ready` and the write                           │
//!                                              resource ◀── writes ────────┘
//! ```
//!
//! With the guard nothing may go wrong, also when the resource, the ring's leader or all of the ring
//! dies while a holder is stopped. Without it something must, or the experiment shows nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use satrap_client::FencingToken;
use satrap_history::{
    Nanos, Violation,
    fencing::{Access, Grant, Token, check},
};
use satrap_realm::description::Client;

use crate::{
    RunError,
    cluster::{Store, directory},
    nemesis::Nemesis,
    resource::{Guard, LISTENING, journal},
    run::start,
    session::Dialer,
    shared::{Shared, now_ns},
};

/// The roles, with their times to live in seconds. Two is the shortest that default settings grant.
const ROLES: [(&str, u32); 6] = [
    ("writer", 2),
    ("billing", 3),
    ("reports", 4),
    ("cleanup", 5),
    ("migration", 2),
    ("scheduler", 3),
];
const HOLDERS_PER_ROLE: usize = 2;
/// Where the resource of the first role listens, in the namespace of the clients.
const RESOURCE_PORT: u16 = 8080;
/// How long anything of the experiment may take.
const PATIENCE_NS: Nanos = 30_000_000_000;
const TAKEN: u16 = 200;
const REFUSED: u16 = 412;

/// The result of an experiment.
#[derive(Debug)]
pub struct Outcome {
    /// How often the role was granted.
    pub grants: usize,
    /// How many writes the resource took.
    pub admitted: usize,
    /// How many it refused.
    pub refused: usize,
    /// For each holder that was stopped past its lease, whether its late write was taken.
    pub late: Vec<bool>,
    /// The violations that the checker found.
    pub violations: Vec<Violation>,
}

/// The role of a holder, by its index.
fn role_of(holder: u32) -> usize {
    holder as usize % ROLES.len()
}

/// Where the resource of a role listens.
fn resource_address(role: usize) -> SocketAddr {
    let port = RESOURCE_PORT + u16::try_from(role).expect("there are few roles");
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A write that was answered.
#[derive(Clone, Copy, Debug)]
struct Written {
    holder: u32,
    token: FencingToken,
    status: u16,
}

/// The record that the referee keeps.
#[derive(Default)]
struct Book {
    pids: Vec<u32>,
    grants: Vec<Grant>,
    written: Vec<Written>,
    /// The role whose next holder that is ready is to be stopped.
    stop_next: Option<usize>,
    stopped: Option<(u32, FencingToken)>,
}

/// The referee: gives holders leave to go on, or stops them, and keeps the book.
#[derive(Default)]
struct Referee(Mutex<Book>);

fn token_of(token: FencingToken) -> Token {
    (token.epoch.into(), token.counter.into())
}

impl Referee {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one connection of a holder until it hangs up.
    fn listen(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut out = stream.try_clone()?;
        let mut holder = 0;
        let mut wanted_ns = 0;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let mut words = line.split(' ');
            let word = words.next().unwrap_or_default();
            let second = words.next().unwrap_or_default();
            let token = second.parse().unwrap_or_default();
            match word {
                "holder" => holder = second.parse().unwrap_or_default(),
                "want" => wanted_ns = now_ns(),
                "got" => self.granted(holder, wanted_ns, token),
                "ready" => self.ready(holder, token),
                _ => {
                    let status = words.next().and_then(|status| status.parse().ok());
                    let status = status.unwrap_or_default();
                    self.book().written.push(Written { holder, token, status });
                }
            }
            writeln!(out, "go")?;
        }
        Ok(())
    }

    fn granted(&self, holder: u32, call_ns: Nanos, token: FencingToken) {
        let (lock, token) = (ROLES[role_of(holder)].0.to_owned(), token_of(token));
        let grant = Grant { lock, holder, call_ns, return_ns: now_ns(), token };
        self.book().grants.push(grant);
    }

    /// Stops a holder before it hears that it may go on, if one is to be stopped.
    fn ready(&self, holder: u32, token: FencingToken) {
        let mut book = self.book();
        let own = |w: &&Written| w.holder == holder && w.token == token;
        let is_working = book.written.iter().filter(own).any(|w| w.status == TAKEN);
        if book.stop_next == Some(role_of(holder)) && is_working {
            book.stop_next = None;
            book.stopped = Some((holder, token));
            signal(&book.pids, holder, Signal::STOP);
            // The signal is on its way. Until every thread is stopped, one of them could still hear
            // that it may go on.
            while !book.pids.get(holder as usize).is_none_or(|pid| stands_still(*pid)) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn wait(&self, what: &str, met: impl Fn(&Book) -> bool) -> Result<(), RunError> {
        let deadline = now_ns() + PATIENCE_NS;
        while !met(&self.book()) {
            if now_ns() > deadline {
                return Err(RunError::Ring(what.to_owned()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether all threads of a process are stopped, or gone with it.
fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name, which may hold anything but ends with the last parenthesis.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_none_or(|state| matches!(state, 'T' | 'Z' | 'X'))
    })
}

/// A holder that is gone needs no signal, and is missed soon enough.
fn signal(pids: &[u32], holder: u32, signal: Signal) {
    let pid = pids.get(holder as usize).and_then(|pid| i32::try_from(*pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Runs holders against a ring, and stops the holder of one role after the other, `pauses` times in
/// all. `program` is the binary that has the commands `holder` and `resource`.
///
/// # Errors
///
/// If the experiment cannot be made, or was none: no holder was overtaken while it was stopped.
pub fn experiment(
    store: Box<dyn Store>,
    program: &Path,
    guard: Guard,
    pauses: usize,
) -> Result<Outcome, RunError> {
    thread::scope(|scope| {
        let run = scope.spawn(|| on_this_thread(store, program, guard, pauses));
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_this_thread(
    store: Box<dyn Store>,
    program: &Path,
    guard: Guard,
    pauses: usize,
) -> Result<Outcome, RunError> {
    let shared = Arc::new(Shared::new(Dialer::new(store.credentials())?));
    let credentials = store.credentials().cloned();
    // This thread goes into the namespace of the clients, and so does all that it starts.
    let mut nemesis = start(store, &shared, 1)?;
    let files = directory()?;
    let mut resources = Vec::new();
    for role in 0..ROLES.len() {
        resources.push(Resource::start(program, guard, role, files.path())?);
    }
    let referee = Arc::new(Referee::default());
    let holders = Holders::start(program, &referee, &shared, credentials.as_ref())?;
    let mut late = Vec::new();
    for pause in 0..pauses {
        late.push(overtake(&referee, pause, &mut resources, &mut nemesis)?);
    }
    drop(holders);
    drop(nemesis);
    drop(resources);
    let book = referee.book();
    let accesses = accesses(&book, files.path())?;
    let admitted = accesses.iter().filter(|access| access.admitted).count();
    let refused = accesses.len() - admitted;
    let violations = check(&book.grants, &accesses);
    Ok(Outcome { grants: book.grants.len(), admitted, refused, late, violations })
}

/// Stops the holder of a role until another one holds it and has written. Returns whether the
/// resource took the write that the stopped one had been about to make.
fn overtake(
    referee: &Referee,
    pause: usize,
    resources: &mut [Resource],
    nemesis: &mut Nemesis,
) -> Result<bool, RunError> {
    // Each kind of death below comes to several roles.
    let role = (pause + pause / ROLES.len()) % ROLES.len();
    referee.book().stop_next = Some(role);
    let what = format!("give the role {} to a holder that writes", ROLES[role].0);
    referee.wait(&what, |book| book.stopped.is_some())?;
    let Some((holder, old)) = referee.book().stopped.take() else { return Ok(false) };
    // The token that keeps the old holder out must survive the death of the resource and the ring.
    match pause % 4 {
        1 => resources[role].restart()?,
        2 => {
            nemesis.kill_leader()?;
            nemesis.heal()?;
        }
        3 => {
            for slot in nemesis.cluster.active() {
                nemesis.kill(slot)?;
            }
            nemesis.heal()?;
        }
        _ => {}
    }
    let by_another = |w: &Written| role_of(w.holder) == role && w.token > old && w.status == TAKEN;
    let overtaken = referee.wait("give the role of a stopped holder to another", |book| {
        book.written.iter().any(by_another)
    });
    let (before, pids) = {
        let book = referee.book();
        (book.written.len(), book.pids.clone())
    };
    signal(&pids, holder, Signal::CONT);
    overtaken?;
    // It goes on where it was stopped, and does not know that its time is over.
    let is_late = |w: &&Written| w.holder == holder && w.token == old;
    referee.wait("let a stopped holder go on", |book| {
        book.written[before..].iter().any(|w| is_late(&w))
    })?;
    let book = referee.book();
    let written = book.written[before..].iter().find(is_late).copied();
    match written.map(|written| written.status) {
        Some(TAKEN) => Ok(true),
        Some(REFUSED) => Ok(false),
        other => Err(RunError::Inconclusive(format!("a late write was answered with {other:?}"))),
    }
}

/// The writes that each resource took, in its order, and then those that were refused.
fn accesses(book: &Book, files: &Path) -> Result<Vec<Access>, RunError> {
    let mut accesses = Vec::new();
    for (role, _) in ROLES {
        let journal = fs::read_to_string(journal(&files.join(role)));
        for line in journal.map_err(RunError::io("the journal"))?.lines() {
            let parsed = line.split_once(' ').and_then(|(holder, token)| {
                Some((holder.parse().ok()?, token.parse::<FencingToken>().ok()?))
            });
            let Some((holder, token)) = parsed else {
                return Err(RunError::Inconclusive(format!("the journal says {line:?}")));
            };
            let token = token_of(token);
            accesses.push(Access { lock: role.to_owned(), holder, token, admitted: true });
        }
    }
    let refused = book.written.iter().filter(|written| written.status == REFUSED);
    accesses.extend(refused.map(|written| Access {
        lock: ROLES[role_of(written.holder)].0.to_owned(),
        holder: written.holder,
        token: token_of(written.token),
        admitted: false,
    }));
    Ok(accesses)
}

/// The process that guards, which ends with the experiment.
struct Resource {
    program: PathBuf,
    guard: Guard,
    role: usize,
    files: PathBuf,
    child: Child,
}

impl Resource {
    fn start(program: &Path, guard: Guard, role: usize, files: &Path) -> Result<Self, RunError> {
        let files = files.join(ROLES[role].0);
        fs::create_dir_all(&files).map_err(RunError::io("the directory of a resource"))?;
        let child = Self::spawn(program, guard, role, &files)?;
        Ok(Self { program: program.to_owned(), guard, role, files, child })
    }

    fn spawn(program: &Path, guard: Guard, role: usize, files: &Path) -> Result<Child, RunError> {
        let mut command = Command::new(program);
        command.args(["resource", "--listen", &resource_address(role).to_string()]);
        command.args(["--guard", guard.name()]).arg("--dir").arg(files);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(RunError::io("starting the resource"))?;
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            let read = BufReader::new(out).read_line(&mut said);
            read.map_err(RunError::io("listening to the resource"))?;
        }
        match said.trim() == LISTENING {
            true => Ok(child),
            false => Err(RunError::Inconclusive(format!("the resource says {said:?}"))),
        }
    }

    /// Kills it at whatever instruction it is, and starts it on what it had written.
    fn restart(&mut self) -> Result<(), RunError> {
        self.stop();
        self.child = Self::spawn(&self.program, self.guard, self.role, &self.files)?;
        Ok(())
    }

    fn stop(&mut self) {
        // An error says that the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The processes that want the roles, which end with the experiment.
struct Holders(Vec<Child>);

impl Holders {
    fn start(
        program: &Path,
        referee: &Arc<Referee>,
        shared: &Shared,
        credentials: Option<&Client>,
    ) -> Result<Self, RunError> {
        let port = RunError::io("the referee's port");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(port)?;
        let address = listener.local_addr().map_err(RunError::io("the referee's port"))?;
        let mut holders = Self(Vec::new());
        for number in 0..ROLES.len() * HOLDERS_PER_ROLE {
            let role = number % ROLES.len();
            let (name, ttl_s) = ROLES[role];
            let mut command = Command::new(program);
            command.arg("holder").args(["--number", &number.to_string(), "--role", name]);
            command.args(["--ttl-s", &ttl_s.to_string()]);
            command.args(["--referee", &address.to_string()]).stdin(Stdio::null());
            command.args(["--resource", &resource_address(role).to_string()]);
            for peer in shared.peers() {
                command.args(["--url", &peer.url]);
            }
            if let Some(Client { ca, cert, key }) = credentials {
                command.arg("--ca").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
            }
            let child = command.spawn().map_err(RunError::io("starting a holder"))?;
            referee.book().pids.push(child.id());
            holders.0.push(child);
            // One connection on which it asks for the role, and one on which it writes.
            for _ in 0..2 {
                let accepted = listener.accept();
                let (stream, _) = accepted.map_err(RunError::io("a holder's connection"))?;
                let referee = Arc::clone(referee);
                // It ends with the holder at its other end.
                thread::spawn(move || drop(referee.listen(stream)));
            }
        }
        Ok(holders)
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
