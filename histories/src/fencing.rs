//! The experiment with locks: holders that are stopped past their lease, and a resource that looks
//! at their tokens, or does not.
//!
//! With the guard nothing may go wrong. Without it something must, or the experiment shows nothing.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use satrap_cli::realm::description::Client;
use satrap_history::{
    Nanos, Violation,
    fencing::{Access, Grant, Token, check},
};

use crate::{
    Trouble,
    cluster::Store,
    holder::TTL_S,
    run::start,
    session::Dialer,
    shared::{Shared, now_ns},
};

const HOLDERS: usize = 3;
const LOCK: &str = "lock";

/// What the resource does with tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// It takes a write only with a token that is no older than any it has seen.
    Tokens,
    /// It takes every write.
    Nothing,
}

/// What came of an experiment.
#[derive(Debug)]
pub struct Outcome {
    /// How often the lock was given.
    pub grants: usize,
    /// How many writes the resource took.
    pub admitted: usize,
    /// How many it refused.
    pub refused: usize,
    /// How many holders were stopped past their lease.
    pub pauses: usize,
    /// What the checker found.
    pub violations: Vec<Violation>,
}

/// What the referee writes down.
#[derive(Default)]
struct Book {
    grants: Vec<Grant>,
    accesses: Vec<Access>,
    newest: Token,
}

/// The referee: gives holders leave to go on, keeps the book, and is the resource.
struct Referee {
    guard: Guard,
    book: Mutex<Book>,
}

impl Referee {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to one holder until it hangs up.
    fn listen(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut out = stream.try_clone()?;
        let mut holder = 0;
        let mut wanted_ns = 0;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let (word, number) = line.split_once(' ').unwrap_or((&line, "0"));
            let number: i64 = number.parse().unwrap_or_default();
            let yes = match word {
                "holder" => {
                    holder = u32::try_from(number).unwrap_or_default();
                    true
                }
                "want" => {
                    wanted_ns = now_ns();
                    true
                }
                "got" => {
                    self.granted(holder, wanted_ns, (0, number));
                    true
                }
                _ => self.write(holder, (0, number)),
            };
            writeln!(out, "{}", if yes { "yes" } else { "no" })?;
        }
        Ok(())
    }

    fn granted(&self, holder: u32, call_ns: Nanos, token: Token) {
        let lock = LOCK.to_owned();
        let grant = Grant { lock, holder, call_ns, return_ns: now_ns(), token };
        self.book().grants.push(grant);
    }

    fn write(&self, holder: u32, token: Token) -> bool {
        let mut book = self.book();
        let admitted = self.guard == Guard::Nothing || token >= book.newest;
        book.newest = book.newest.max(token);
        book.accesses.push(Access { lock: LOCK.to_owned(), holder, token, admitted });
        admitted
    }
}

/// Runs holders against a ring, and stops whoever has the lock, `pauses` times. `program` is the
/// binary that has the `holder` command.
///
/// # Errors
///
/// If the experiment cannot be made, or was none: no holder was overtaken while it was stopped.
pub fn experiment(
    store: Box<dyn Store>,
    program: &Path,
    guard: Guard,
    pauses: usize,
) -> Result<Outcome, Trouble> {
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
) -> Result<Outcome, Trouble> {
    let shared = Arc::new(Shared::new(Dialer::new(store.credentials())?));
    let credentials = store.credentials().cloned();
    let nemesis = start(store, &shared, 1)?;
    // This thread is in the namespace of the clients now, and so is all that it starts.
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Trouble::io("the referee's port"))?;
    let address = listener.local_addr().map_err(Trouble::io("the referee's port"))?;
    let referee = Arc::new(Referee { guard, book: Mutex::default() });
    let mut holders = Holders(Vec::new());
    for number in 0..HOLDERS {
        let mut command = Command::new(program);
        command.arg("holder").args(["--number", &number.to_string(), "--lock", LOCK]);
        command.args(["--referee", &address.to_string()]).stdin(Stdio::null());
        for peer in shared.peers() {
            command.args(["--url", &peer.url]);
        }
        if let Some(Client { ca, cert, key }) = &credentials {
            command.arg("--ca").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
        holders.0.push(command.spawn().map_err(Trouble::io("starting a holder"))?);
        let (stream, _) = listener.accept().map_err(Trouble::io("a holder's line"))?;
        let referee = Arc::clone(&referee);
        // It ends with the holder at its other end.
        thread::spawn(move || drop(referee.listen(stream)));
    }
    for _ in 0..pauses {
        overtake(&referee, &holders)?;
    }
    drop(holders);
    drop(nemesis);
    let book = referee.book();
    let admitted = book.accesses.iter().filter(|access| access.admitted).count();
    let refused = book.accesses.len() - admitted;
    let violations = check(&book.grants, &book.accesses);
    Ok(Outcome { grants: book.grants.len(), admitted, refused, pauses, violations })
}

/// Stops whoever has the lock until another one has it and wrote, and longer than the lease.
fn overtake(referee: &Referee, holders: &Holders) -> Result<(), Trouble> {
    let wait = |what: &str, met: &dyn Fn(&Book) -> bool| {
        let deadline = now_ns() + 20_000_000_000;
        while !met(&referee.book()) {
            if now_ns() > deadline {
                return Err(Trouble::Ring(what.to_owned()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let before = referee.book().grants.len();
    let writes = referee.book().accesses.len();
    wait("give the lock to anybody", &|book| {
        book.grants.len() > before && book.accesses.len() > writes + 1
    })?;
    let Some(last) = referee.book().grants.last().cloned() else { return Ok(()) };
    holders.signal(last.holder, Signal::STOP)?;
    thread::sleep(Duration::from_secs(TTL_S.unsigned_abs()));
    let overtaken = wait("give the lock of a stopped holder to another", &|book| {
        book.accesses.last().is_some_and(|access| access.token > last.token)
    });
    let before = referee.book().accesses.len();
    holders.signal(last.holder, Signal::CONT)?;
    overtaken?;
    // It goes on writing where it was stopped, and nobody has told it.
    wait("let a stopped holder go on", &|book| {
        book.accesses[before..].iter().any(|access| access.token == last.token)
    })
}

/// The processes, which end with the experiment.
struct Holders(Vec<Child>);

impl Holders {
    fn signal(&self, holder: u32, signal: Signal) -> Result<(), Trouble> {
        let child = self.0.get(holder as usize).map(Child::id);
        let pid = child.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Err(Trouble::Worthless("an unknown holder".into())) };
        let sent = kill_process(pid, signal).map_err(std::io::Error::from);
        sent.map_err(Trouble::io("signaling a holder"))
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
