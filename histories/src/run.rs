//! One run: start a ring, load it, torment it, heal it, and judge what everyone saw.

use std::{fs, sync::Arc, thread, time::Duration};

use satrap_history::{
    Healed, LeaseLimits, Operation, Outcome, Put, Range, Recording, Request, Span, Violation,
    workload::SHARED,
};

use crate::{
    Trouble,
    admin::Admin,
    clients::Client,
    cluster::{Cluster, SLOTS, Store},
    fault,
    nemesis::{Fired, Nemesis},
    net::{Network, Node},
    session::Dialer,
    shared::{Shared, now_ns},
    watchers,
};

const CLIENTS: u32 = 8;
const KEEPERS: u32 = 2;
const WATCHERS: u32 = 8;
/// Fewer completed operations make a run worthless.
pub const OPERATIONS_MIN: u64 = 10_000;
/// Operations come at least this fast on average, or the run is given up.
const RUN_NS_MAX: u64 = 300_000_000_000;
/// By when open watches have the last revision.
const CATCH_UP_NS: u64 = 15_000_000_000;
/// How late a lease may end: a leader that was just elected grants a whole new term, and looks for
/// ended leases every half second.
const LATE_NS_MAX: u64 = 4_000_000_000;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides what clients ask and which faults come.
    pub seed: u64,
    /// How many rounds of faults.
    pub rounds: usize,
}

/// What came of a run.
#[derive(Debug)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Operations with an answer.
    pub completed: u64,
    /// Operations without.
    pub unknown: usize,
    /// Events that watchers saw.
    pub events: usize,
    /// The faults.
    pub faults: Vec<Fired>,
    /// The last revision.
    pub head: i64,
    /// How long it took, in seconds, and how long the checkers took.
    pub seconds: (f64, f64),
    /// What the checkers found.
    pub violations: Vec<Violation>,
}

/// Puts the calling thread into the namespace of a node.
///
/// # Errors
///
/// If the kernel refuses.
pub fn enter(network: &Network, node: Node) -> Result<(), Trouble> {
    let path = format!("/run/netns/{}", network.namespace(node));
    let space = fs::File::open(path).map_err(Trouble::io("opening a namespace"))?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), kind)
        .map_err(std::io::Error::from)
        .map_err(Trouble::io("entering a namespace"))
}

/// Starts a ring, and waits until it has a leader. The calling thread moves into the namespace of
/// its clients, and must live as long as the ring.
///
/// # Errors
///
/// If the ring cannot be made or elects nobody.
pub fn start(store: Box<dyn Store>, shared: &Arc<Shared>, seed: u64) -> Result<Nemesis, Trouble> {
    let cluster = Cluster::start(store)?;
    enter(&cluster.network, Node::Clients)?;
    let mut nemesis =
        Nemesis::new(cluster, Admin::new(shared.dialer.clone())?, Arc::clone(shared), seed);
    match nemesis.heal() {
        Ok(()) => Ok(nemesis),
        Err(trouble) => {
            eprintln!("{}", nemesis.cluster.last_words());
            Err(trouble)
        }
    }
}

/// Makes one run on a thread of its own.
///
/// # Errors
///
/// If the run could not be made, or is worthless. What the checkers found is in the summary.
pub fn run(store: Box<dyn Store>, options: Options) -> Result<Summary, Trouble> {
    thread::scope(|scope| {
        let run = scope.spawn(|| on_this_thread(store, options));
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_this_thread(store: Box<dyn Store>, options: Options) -> Result<Summary, Trouble> {
    let begun = now_ns();
    let shared = Arc::new(Shared::new(Dialer::new(store.credentials())?));
    let mut nemesis = start(store, &shared, options.seed)?;
    let recorded = thread::scope(|scope| {
        let load = {
            let shared = Arc::clone(&shared);
            scope.spawn(move || load(shared, options.seed))
        };
        let tormented = torment(&mut nemesis, &shared, options);
        let finished = tormented.and_then(|()| finish(&nemesis, &shared));
        shared.stop();
        let recorded = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        finished.and_then(|last| Ok((last, recorded?)))
    });
    let (last, mut recording) = match recorded {
        Ok(recorded) => recorded,
        Err(trouble) => {
            eprintln!("{}", nemesis.cluster.last_words());
            return Err(trouble);
        }
    };
    recording.operations.extend(last.operations);
    recording.healed = Some(last.healed);
    recording.digests = last.digests;
    let quorum_since_ns = last.healed.at_ns;
    recording.leases = Some(LeaseLimits { late_ns_max: LATE_NS_MAX, quorum_since_ns });
    let checked = now_ns();
    let violations = satrap_history::check(&recording);
    let seconds = ((checked - begun) as f64 / 1e9, (now_ns() - checked) as f64 / 1e9);
    let unknown = |operation: &&Operation| operation.outcome == Outcome::Unknown;
    let summary = Summary {
        seed: options.seed,
        completed: shared.completed(),
        unknown: recording.operations.iter().filter(unknown).count(),
        events: recording.watches.iter().map(|watch| watch.events().count()).sum(),
        faults: nemesis.history,
        head: last.healed.revision,
        seconds,
        violations,
    };
    if !summary.violations.is_empty() {
        keep(&recording, &summary)?;
    }
    worth(&summary, &nemesis.cluster.crashes)?;
    Ok(summary)
}

/// Faults until all were there, and then until there are enough operations.
fn torment(nemesis: &mut Nemesis, shared: &Shared, options: Options) -> Result<(), Trouble> {
    let deadline = now_ns() + RUN_NS_MAX;
    thread::sleep(Duration::from_millis(700));
    for faults in fault::plan(options.seed, options.rounds) {
        nemesis.round(&faults)?;
    }
    nemesis.heal()?;
    while shared.completed() < OPERATIONS_MIN + OPERATIONS_MIN / 50 {
        if now_ns() > deadline {
            let what = format!("only {} operations were completed", shared.completed());
            return Err(Trouble::Worthless(what));
        }
        thread::sleep(Duration::from_millis(50));
    }
    shared.stop_writers();
    Ok(())
}

/// What is asked of the ring when all is well again.
struct Last {
    operations: Vec<Operation>,
    healed: Healed,
    digests: Vec<satrap_history::Digest>,
}

/// Writes and reads a last time, waits for the watchers, and compares the members.
fn finish(nemesis: &Nemesis, shared: &Arc<Shared>) -> Result<Last, Trouble> {
    let begun = now_ns();
    let runtime = satrap_host::runtime::current_thread().map_err(Trouble::io("a runtime"))?;
    let client = Client::new(Arc::clone(shared), u32::MAX, begun);
    let put = |attempt: u32| {
        let value = format!("last:{attempt}");
        Request::Put(Put { key: format!("{SHARED}last"), value, lease: 0 })
    };
    let read = |_| {
        let span = Span::prefix(SHARED);
        Request::Range(Range { span, revision: 0, limit: 0, serializable: false })
    };
    // The second put follows every operation of unknown outcome that could still come.
    let wait = |_| Request::Range(Range::key(format!("{SHARED}last")));
    let operations = runtime.block_on(client.insist(
        vec![Box::new(put), Box::new(wait), Box::new(move |n| put(n + 1_000)), Box::new(read)],
        begun + CATCH_UP_NS,
    ));
    let revision = operations.iter().rev().find_map(Operation::wrote_at);
    let Some(revision) =
        revision.filter(|_| operations.last().is_some_and(|o| o.answer().is_some()))
    else {
        return Err(Trouble::Ring("take a write after all faults were taken back".into()));
    };
    shared.set_target(revision);
    let healed = Healed { at_ns: now_ns(), within_ns: CATCH_UP_NS, revision };
    let behind = || {
        let mut slots = nemesis.cluster.active();
        slots.retain(|slot| shared.recorded_of(*slot) < revision);
        slots
    };
    while (shared.waiting() > 0 || !behind().is_empty())
        && now_ns() < healed.at_ns + healed.within_ns
    {
        thread::sleep(Duration::from_millis(50));
    }
    if !behind().is_empty() {
        let what = format!("deliver the log up to {revision} on slots {:?}", behind());
        return Err(Trouble::Ring(what));
    }
    let digests = nemesis
        .cluster
        .active()
        .into_iter()
        .filter_map(|slot| nemesis.admin.digest(&nemesis.cluster.client_url(slot), revision))
        .collect::<Vec<_>>();
    if digests.len() < nemesis.cluster.active().len() {
        return Err(Trouble::Ring(format!("tell the digests of all members: {digests:?}")));
    }
    Ok(Last { operations, healed, digests })
}

/// All clients, watchers and recorders, on the calling thread.
fn load(shared: Arc<Shared>, seed: u64) -> Result<Recording, Trouble> {
    // A thread starts in the namespace of the one that started it.
    let runtime = satrap_host::runtime::current_thread().map_err(Trouble::io("a runtime"))?;
    let client = |number| Client::new(Arc::clone(&shared), number, seed);
    let clients = (0..CLIENTS).map(|number| client(number).share());
    let keepers = (CLIENTS..CLIENTS + KEEPERS).map(|number| client(number).keep_leases());
    let compactor = client(CLIENTS + KEEPERS).compact();
    let watching = (0..WATCHERS).map(|number| watchers::watch(Arc::clone(&shared), number, seed));
    let recording = (0..SLOTS).map(|slot| watchers::record(Arc::clone(&shared), slot));
    let (clients, keepers, compactor, watches, logs) = runtime.block_on(async {
        tokio::join!(
            futures::future::join_all(clients),
            futures::future::join_all(keepers),
            compactor,
            futures::future::join_all(watching),
            futures::future::join_all(recording),
        )
    });
    let operations = clients.into_iter().chain(keepers).flatten().chain(compactor).collect();
    let watches = watches.into_iter().flatten().collect();
    Ok(Recording { operations, watches, logs, ..Recording::default() })
}

/// Whether a run was what it should have been.
fn worth(summary: &Summary, crashes: &[String]) -> Result<(), Trouble> {
    let idle: Vec<_> = summary.faults.iter().filter(|fault| !fault.fired).collect();
    if !idle.is_empty() {
        return Err(Trouble::Worthless(format!("faults without effect: {idle:?}")));
    }
    if summary.completed < OPERATIONS_MIN {
        let what = format!("only {} operations were completed", summary.completed);
        return Err(Trouble::Worthless(what));
    }
    match crashes {
        [] => Ok(()),
        crashes => Err(Trouble::Ring(format!("stay up: {}", crashes.join("; ")))),
    }
}

/// Writes a recording with violations where a person can read it.
fn keep(recording: &Recording, summary: &Summary) -> Result<(), Trouble> {
    use std::fmt::Write as _;
    let mut text = String::new();
    let lines = summary.violations.iter().map(|violation| format!("{violation}\n"));
    text.extend(lines);
    for operation in &recording.operations {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{operation}");
    }
    for watch in &recording.watches {
        let _ = writeln!(text, "{watch:?}");
    }
    for log in &recording.logs {
        let _ = writeln!(text, "{log:?}");
    }
    let path = std::env::temp_dir().join(format!("satrap-history-{}.txt", summary.seed));
    fs::write(&path, text).map_err(Trouble::io("keeping a recording"))?;
    eprintln!("the recording of seed {} is in {}", summary.seed, path.display());
    Ok(())
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(|fired| format!("{:?}", fired.fault)).collect();
        write!(
            f,
            "seed {}: {} operations, {} unknown, {} events, revision {}, {:.1} s, checked in \
             {:.1} s, {} violations; {}",
            self.seed,
            self.completed,
            self.unknown,
            self.events,
            self.head,
            self.seconds.0,
            self.seconds.1,
            self.violations.len(),
            faults.join(" ")
        )
    }
}
