//! A ring of real processes on disks that can fail, and an operator who follows a page.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use http_body_util::BodyExt as _;
use satrap_histories::{
    cluster::{MEMBERS, Store},
    nemesis::Nemesis,
    run::start,
    satrap::Satrap,
    session::Dialer,
    shared::{Shared, now_ns},
};
use tower::ServiceExt as _;

use super::{
    etcdctl::{Endpoint, Etcdctl},
    page::{Words, filled},
    program::ETCDCTL,
};

const ELECTION_MS: u32 = 250;
const WITHIN_NS: u64 = 60_000_000_000;

/// The ring and what an operator has.
pub struct Drill {
    pub nemesis: Nemesis,
    pub etcdctl: Etcdctl,
    shared: Arc<Shared>,
    /// The configuration of each member.
    pub configs: Vec<PathBuf>,
    program: PathBuf,
    realm: PathBuf,
}

/// Runs a drill on a thread of its own, because it moves into the namespace of the clients.
pub fn drill(program: &Path, body: impl FnOnce(&mut Drill) + Send) {
    // Before that, because it may be downloaded.
    LazyLock::force(&ETCDCTL);
    thread::scope(|scope| {
        let run = scope.spawn(|| body(&mut Drill::start(program)));
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Waits for something that must come.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now_ns() + WITHIN_NS;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now_ns() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

impl Drill {
    fn start(program: &Path) -> Self {
        let store = Satrap::new(program, ELECTION_MS).unwrap();
        let realm = store.realm().to_owned();
        let configs = (0..MEMBERS).map(|slot| store.config_of(slot).to_owned()).collect();
        let shared = Arc::new(Shared::new(Dialer::new(store.credentials()).unwrap()));
        let nemesis = start(Box::new(store), &shared, 1).unwrap();
        let environment = satrap(program, &realm, &["etcd", "env", "--realm", "DIR"]);
        let etcdctl = Etcdctl::of(ETCDCTL.clone(), &environment);
        Self { nemesis, etcdctl, shared, configs, program: program.to_owned(), realm }
    }

    /// Runs `satrap`, with the realm for `DIR`, and returns what it printed.
    pub fn satrap(&self, words: &[&str]) -> String {
        satrap(&self.program, &self.realm, words)
    }

    /// Runs one command of a page.
    pub fn follow(&self, words: &[String], blanks: &[(&str, &str)]) -> String {
        let words: Words = filled(words, blanks);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["satrap", rest @ ..] => self.satrap(rest),
            ["etcdctl", rest @ ..] => {
                self.etcdctl.run(rest).unwrap_or_else(|error| panic!("{words:?}: {error}"))
            }
            other => panic!("a page wants {other:?}"),
        }
    }

    /// The status that the member in a slot reports.
    pub fn endpoint(&self, slot: usize) -> Option<Endpoint> {
        let url = self.nemesis.cluster.client_url(slot);
        self.etcdctl.status().ok()?.into_iter().find(|endpoint| endpoint.url == url)
    }

    /// A metric of the member in a slot, as its client listener serves it.
    pub fn metric(&self, slot: usize, name: &str) -> f64 {
        let url = self.nemesis.cluster.client_url(slot);
        let runtime = satrap_runtime::runtime::current_thread().unwrap();
        let text = runtime.block_on(async {
            let channel = self.shared.dialer.connect(&url).await.expect("the member answers");
            let request = http::Request::get(format!("{url}/metrics"));
            let request = request.body(tonic::body::Body::empty()).unwrap();
            let answer = channel.oneshot(request).await.unwrap();
            assert!(answer.status().is_success(), "{:?}", answer.status());
            answer.into_body().collect().await.unwrap().to_bytes()
        });
        let text = String::from_utf8(text.to_vec()).unwrap();
        let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(of).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }

    /// Puts numbered keys, each as soon as it is taken.
    pub fn fill(&self, prefix: &str, count: usize) {
        for number in 0..count {
            let key = format!("{prefix}/{number}");
            until("a put", || self.etcdctl.put(&key, "value").ok());
        }
    }

    /// Waits until all members have the same hash of the same revision.
    pub fn until_equal(&self) {
        until("the same hash everywhere", || {
            let hashes = self.etcdctl.hashes().ok()?;
            let equal = hashes.windows(2).all(|two| (two[0].1, two[0].2) == (two[1].1, two[1].2));
            equal.then_some(())
        });
    }

    /// Waits until the member in a slot has its vote.
    pub fn until_votes(&self, slot: usize) {
        let cluster = &self.nemesis.cluster;
        let peer_url = cluster.store().peer_url(&satrap_histories::net::address(slot));
        until("the vote of a replaced member", || {
            let members = self.nemesis.admin.members(&cluster.client_url((slot + 1) % 3))?;
            let member = members.into_iter().find(|m| m.peer_urls.contains(&peer_url))?;
            (!member.learner).then_some(())
        });
    }

    /// The data directory of the member in a slot.
    pub fn data(&self, slot: usize) -> PathBuf {
        self.nemesis.cluster.disks[slot].path().join("data")
    }

    /// Moves the data of a member that does not run aside, as the runbooks say.
    pub fn set_aside(&self, slot: usize) {
        let data = self.data(slot);
        fs::rename(&data, data.with_extension("corrupt")).unwrap();
    }

    /// Waits until the member in a slot ended by itself, and returns its last words.
    pub fn until_ended(&mut self, slot: usize) -> String {
        let cluster = &mut self.nemesis.cluster;
        until("a member that ends by itself", || (!cluster.is_running(slot)).then_some(()));
        cluster.log_tail_of(slot, 20)
    }
}

fn satrap(program: &Path, realm: &Path, words: &[&str]) -> String {
    let realm = realm.display().to_string();
    let words = words.iter().map(|word| if *word == "DIR" { realm.as_str() } else { word });
    let ran = Command::new(program).args(words).output().unwrap();
    let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{err}");
    out
}
