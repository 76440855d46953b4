//! One run: start a ring, load it, inject faults, heal it, and check what all clients saw.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use satrap_history::{
    Failure, Healed, LeaseLimits, Nanos, Operation, Outcome, Put, Range, Recording, Request, Span,
    workload::SHARED,
};
use tokio::task::JoinSet;

use crate::{
    RunError,
    admin::Admin,
    answers::{OPERATIONS_MAX, OPERATIONS_MIN},
    clients::Client,
    cluster::{Cluster, SLOTS, Store},
    fault,
    nemesis::Nemesis,
    net::{Network, Node},
    session::Dialer,
    shared::{Shared, now_ns},
    summary::{Seconds, Summary, count, idle, served},
    watchers,
};

const CLIENTS: u32 = 12;
const KEEPERS: u32 = 2;
/// Watchers of most runs.
pub const WATCHERS: u32 = 8;
/// Watchers of a run that has many.
pub const WATCHERS_MANY: u32 = 500;
/// How often faults that had no effect come again, such as the death of a leader in a ring that had
/// none at that moment.
const AGAIN_MAX: usize = 4;
/// How long no operation may be completed, all being well, until the run is given up.
const STALLED_NS_MAX: Nanos = 30_000_000_000;
/// By when open watches have the last revision.
const CATCH_UP_NS: u64 = 15_000_000_000;
/// How late a lease may end: a leader that was just elected grants a whole new term, and looks for
/// ended leases every half second.
const LATE_NS_MAX: u64 = 4_000_000_000;

/// The settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides what clients ask and which faults come.
    pub seed: u64,
    /// How many rounds of faults.
    pub rounds: usize,
    /// How many watchers.
    pub watchers: u32,
}

/// Puts the calling thread into the namespace of a node.
///
/// # Errors
///
/// If the kernel refuses.
pub fn enter(network: &Network, node: Node) -> Result<(), RunError> {
    let path = format!("/run/netns/{}", network.namespace(node));
    let space = fs::File::open(path).map_err(RunError::io("opening a namespace"))?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), kind)
        .map_err(std::io::Error::from)
        .map_err(RunError::io("entering a namespace"))
}

/// Starts a ring, and waits until it has a leader. The calling thread moves into the namespace of
/// its clients, and must live as long as the ring.
///
/// # Errors
///
/// If the ring cannot be made or elects no leader.
pub fn start(store: Box<dyn Store>, shared: &Arc<Shared>, seed: u64) -> Result<Nemesis, RunError> {
    let cluster = Cluster::start(store)?;
    enter(&cluster.network, Node::Clients)?;
    let mut nemesis =
        Nemesis::new(cluster, Admin::new(shared.dialer.clone()), Arc::clone(shared), seed);
    match nemesis.heal() {
        Ok(()) => Ok(nemesis),
        Err(error) => {
            eprintln!("{}", nemesis.cluster.log_tails());
            Err(error)
        }
    }
}

/// Makes one run on a thread of its own.
///
/// # Errors
///
/// If the run could not be made, or shows nothing. The findings of the checkers are in the summary.
pub fn run(store: Box<dyn Store>, options: Options) -> Result<Summary, RunError> {
    thread::scope(|scope| {
        let run = scope.spawn(|| on_this_thread(store, options));
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes one run for each seed, `at_once` of them side by side, in stores that `make` makes, and
/// hands what came of each to `done`.
pub fn many(
    seeds: &[u64],
    at_once: usize,
    make: impl Fn(u64) -> Result<(Box<dyn Store>, Options), RunError> + Sync,
    done: impl Fn(u64, Result<Summary, RunError>) + Sync,
) {
    let left = Mutex::new(seeds.iter().copied());
    let work = || {
        loop {
            let seed = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(seed) = seed else { return };
            done(seed, make(seed).and_then(|(store, options)| run(store, options)));
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
}

fn on_this_thread(store: Box<dyn Store>, options: Options) -> Result<Summary, RunError> {
    let mut watch = Stopwatch(now_ns());
    let mut seconds = Seconds::default();
    let shared = Arc::new(Shared::new(Dialer::new(store.credentials())?));
    let mut nemesis = start(store, &shared, options.seed)?;
    seconds.start = watch.lap();
    let recorded = thread::scope(|scope| {
        let load = {
            let shared = Arc::clone(&shared);
            scope.spawn(move || load(shared, options))
        };
        let finished = inject_faults(&mut nemesis, options).and_then(|()| {
            seconds.faults = watch.lap();
            complete_operations(&shared, nemesis.cluster.store().serves_store_api())?;
            seconds.rest = watch.lap();
            finish(&nemesis, &shared)
        });
        shared.stop();
        let recorded = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        finished.and_then(|last| Ok((last, recorded?)))
    });
    let (last, mut recording) = match recorded {
        Ok(recorded) => recorded,
        Err(error) => {
            eprintln!("{}", nemesis.cluster.log_tails());
            return Err(error);
        }
    };
    seconds.end = watch.lap();
    recording.operations.extend(last.operations);
    recording.healed = Some(last.healed);
    recording.digests = last.digests;
    let quorum_since_ns = last.healed.at_ns;
    recording.leases = Some(LeaseLimits { late_ns_max: LATE_NS_MAX, quorum_since_ns });
    let violations = satrap_history::check(&recording);
    seconds.check = watch.lap();
    let summary = Summary {
        seed: options.seed,
        unknown: count(&recording, |outcome| *outcome == Outcome::Unknown),
        refused: count(&recording, |o| matches!(o, Outcome::Fail(Failure::Refused(_)))),
        answers: shared.answers(),
        watchers: options.watchers as usize,
        served: served(&recording.watches),
        events: recording.watches.iter().map(|watch| watch.events().count()).sum(),
        faults: nemesis.history,
        head: last.healed.revision,
        seconds,
        violations,
    };
    if !summary.violations.is_empty() {
        summary.keep(&recording)?;
    }
    if let Err(error) = summary.conclusive(&nemesis.cluster) {
        eprintln!("{summary}\n{}", nemesis.cluster.log_tails());
        return Err(error);
    }
    Ok(summary)
}

/// When the last lap began.
struct Stopwatch(Nanos);

impl Stopwatch {
    fn lap(&mut self) -> f64 {
        let begun = std::mem::replace(&mut self.0, now_ns());
        (self.0 - begun) as f64 / 1e9
    }
}

/// Faults until all were there and had an effect.
fn inject_faults(nemesis: &mut Nemesis, options: Options) -> Result<(), RunError> {
    thread::sleep(Duration::from_millis(700));
    for faults in fault::plan(options.seed, options.rounds) {
        nemesis.round(&faults)?;
    }
    for _ in 0..AGAIN_MAX {
        for fault in idle(&nemesis.history) {
            nemesis.heal()?;
            nemesis.round(&[fault])?;
        }
    }
    nemesis.heal()
}

/// Waits until there are enough operations and enough answers of each kind, and stops those that
/// write.
fn complete_operations(shared: &Shared, serves_store_api: bool) -> Result<(), RunError> {
    let mut last = (0, now_ns());
    loop {
        let answers = shared.answers();
        let completed = answers.completed();
        let is_enough = completed >= OPERATIONS_MIN && answers.too_few(serves_store_api).is_empty();
        if is_enough || completed >= OPERATIONS_MAX {
            break;
        }
        if completed > last.0 {
            last = (completed, now_ns());
        } else if now_ns() > last.1 + STALLED_NS_MAX {
            let what = format!("do more than {completed} operations, though all was well");
            return Err(RunError::Ring(what));
        }
        thread::sleep(Duration::from_millis(50));
    }
    shared.stop_writers();
    Ok(())
}

/// The last operations and digests, after the ring was healed.
struct Last {
    operations: Vec<Operation>,
    healed: Healed,
    digests: Vec<satrap_history::Digest>,
}

/// Writes and reads a last time, waits for the watchers, and compares the members.
fn finish(nemesis: &Nemesis, shared: &Arc<Shared>) -> Result<Last, RunError> {
    let begun = now_ns();
    let runtime = satrap_runtime::runtime::current_thread().map_err(RunError::io("a runtime"))?;
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
        return Err(RunError::Ring("take a write after all faults were taken back".into()));
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
        return Err(RunError::Ring(what));
    }
    if shared.waiting() > 0 {
        let what = format!("deliver the log up to {revision} to {} watchers", shared.waiting());
        return Err(RunError::Ring(what));
    }
    let mut digests = Vec::new();
    for slot in nemesis.cluster.active() {
        let url = nemesis.cluster.client_url(slot);
        // The digest of a revision is final, whenever the member gets to it.
        let mut digest = nemesis.admin.digest(&url, revision);
        while digest.is_none() && now_ns() < healed.at_ns + healed.within_ns {
            thread::sleep(Duration::from_millis(50));
            digest = nemesis.admin.digest(&url, revision);
        }
        digests.extend(digest);
    }
    if digests.len() < nemesis.cluster.active().len() {
        return Err(RunError::Ring(format!("tell the digests of all members: {digests:?}")));
    }
    Ok(Last { operations, healed, digests })
}

/// Runs each of `futures` as a task of its own, and returns their results in any order. The runtime
/// lets a task do only so much at a time, and one task for hundreds of clients would be late with
/// all of them.
async fn each<T: Send + 'static>(
    futures: impl Iterator<Item: Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    futures.collect::<JoinSet<_>>().join_all().await
}

/// All clients, watchers and recorders, on the calling thread.
fn load(shared: Arc<Shared>, options: Options) -> Result<Recording, RunError> {
    let Options { seed, watchers, .. } = options;
    // A thread starts in the namespace of the one that started it.
    let runtime = satrap_runtime::runtime::current_thread().map_err(RunError::io("a runtime"))?;
    let client = |number| Client::new(Arc::clone(&shared), number, seed);
    let clients = (0..CLIENTS).map(|number| client(number).share());
    let keepers = (CLIENTS..CLIENTS + KEEPERS).map(|number| client(number).keep_leases());
    let compactor = client(CLIENTS + KEEPERS).compact();
    let watching = (0..watchers).map(|number| watchers::watch(Arc::clone(&shared), number, seed));
    let recording = (0..SLOTS).map(|slot| watchers::record(Arc::clone(&shared), slot));
    let (clients, keepers, compactor, watches, logs) = runtime.block_on(async {
        tokio::join!(each(clients), each(keepers), compactor, each(watching), each(recording))
    });
    let operations = clients.into_iter().chain(keepers).flatten().chain(compactor).collect();
    let watches = watches.into_iter().flatten().collect();
    Ok(Recording { operations, watches, logs, ..Recording::default() })
}
