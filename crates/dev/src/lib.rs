//! `satrap dev`: a whole realm on this machine, and one real config on its way through it.
//!
//! Everything is the production code: separate processes of this very binary, real consensus, real
//! mTLS, real disks. `dev` adds a supervisor, a publisher and a screen.

mod error;
mod liars;
mod plan;
mod processes;
mod progress;
mod publish;
mod report;
mod roster;
mod state;
mod witness;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use satrap_certify::{BundleName, Genesis};
use satrap_identity::mtls::{CredentialFiles, Credentials};
use satrap_operator::{Error, client::Base};
use satrap_realm::{Description, RealmFiles, RealmPlan, description};
use satrap_runtime::{Hangup, TaskGroup, clock};
use tokio::{sync::mpsc, time};

pub use error::DevError;
use error::{CONVERGE_WITHIN, io_error};

use self::{
    liars::Conspiracy,
    processes::{Death, ProcessEvent, Processes},
    progress::{Expected, Phase, Progress, Shown},
    witness::{Sighting, Tier},
};

/// Time for the tasks of `dev` itself to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause before `realm.json` is written again after a failure.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(5);

/// Options of `satrap dev`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Exit when every edge runs the config: 0, or non-zero with the reason.
    #[arg(long)]
    pub once: bool,
    /// Where the realm is kept (default `.satrap`, or `.satrap-evil` with `--evil-region`). Started
    /// again, it resumes from there.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// PEM file to publish as `pki/edge-trust`. By default a new realm gets the one OpenSSL uses, and
    /// one that resumes keeps what is published.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// Make one region lie to its edges, in eight ways in turn.
    #[arg(long)]
    pub evil_region: bool,
}

/// Runs the realm.
///
/// # Errors
///
/// [`DevError`].
pub async fn run(args: Args, json: bool) -> Result<(), DevError> {
    let default = if args.evil_region { ".satrap-evil" } else { ".satrap" };
    let state_dir = args.state_dir.as_deref().unwrap_or(std::path::Path::new(default));
    let state_dir = std::path::absolute(state_dir)
        .map_err(|e| Error::file("state directory", state_dir, &e))?;
    if let Some(file) = &args.trust_bundle {
        // Refuses a wrong file before anything is started.
        satrap_operator::content::read(file, satrap_operator::content::Links::REFUSE)?;
    }
    let held = state::open_or_create(&state_dir, args.evil_region, |line| say(line, json)).await?;
    let tasks = TaskGroup::new();
    tasks.handle_signals(Hangup::Stops).map_err(io_error("signal handlers"))?;
    let outcome = match Dev::start(&tasks, args, json, state_dir, &held.plan).await {
        Ok(mut realm) => {
            let outcome = realm.drive(&tasks).await;
            realm.processes.stop().await;
            outcome
        }
        Err(error) => Err(error),
    };
    tasks.shutdown().request();
    let drained = tasks.run(DRAIN).await.map_err(|e| DevError::Realm(e.to_string()));
    outcome.and(drained)
}

/// A running realm.
struct Dev {
    args: Args,
    json: bool,
    state_dir: PathBuf,
    description: Description,
    files: RealmFiles,
    genesis: Genesis,
    bundle: BundleName,
    credentials: Credentials,
    processes: Processes,
    sightings: mpsc::Receiver<Sighting>,
    /// The newest sighting of each process.
    seen: BTreeMap<String, Sighting>,
    /// Whether `realm.json` has the present process ids.
    described: bool,
    conspiracy: Option<Arc<Conspiracy>>,
}

impl Dev {
    async fn start(
        tasks: &TaskGroup,
        args: Args,
        json: bool,
        state_dir: PathBuf,
        plan: &RealmPlan,
    ) -> Result<Self, DevError> {
        let files = RealmFiles::of(plan, &state_dir);
        let description = plan::describe(plan, &files);
        let genesis = satrap_operator::client::read_genesis(&description.genesis)?;
        let bundle = BundleName::new(plan::BUNDLE).expect("a constant name");
        let credentials = Credentials::load(CredentialFiles {
            certificate: description.client.cert.clone(),
            key: description.client.key.clone(),
            trust: description.client.ca.clone(),
        })
        .map_err(|e| DevError::Realm(e.to_string()))?;
        let conspiracy = roster::start_liars(tasks, plan, &files, &genesis, &bundle).await?;
        for edge in &description.edges {
            // A status file of an earlier run must not count for this one.
            let _ = std::fs::remove_file(roster::status_file(edge));
        }
        let logs = state_dir.join("logs");
        let program = std::env::current_exe().map_err(io_error("the path of this program"))?;
        let processes = Processes::start(tasks, roster::specs(&files, &program, &logs), &logs)
            .map_err(|e| Error::file("log directory", &logs, &e))?;
        let (sender, sightings) = mpsc::channel(witness::SIGHTINGS_MAX);
        for server in roster::servers(&description, &genesis)? {
            let follow = witness::follow(
                server.clone(),
                genesis.clone(),
                bundle.clone(),
                credentials.clone(),
                sender.clone(),
            );
            until_shutdown(tasks, format!("witness {}", server.name), follow);
        }
        for edge in &description.edges {
            let status = roster::status_file(edge);
            let watch =
                witness::watch_edge(edge.name.clone(), status, bundle.clone(), sender.clone());
            until_shutdown(tasks, format!("watch {}", edge.name), watch);
        }
        Ok(Self {
            args,
            json,
            state_dir,
            description,
            files,
            genesis,
            bundle,
            credentials,
            processes,
            sightings,
            seen: BTreeMap::new(),
            described: true,
            conspiracy,
        })
    }

    /// From start to the end the user asked for.
    async fn drive(&mut self, tasks: &TaskGroup) -> Result<(), DevError> {
        self.wait_until_up(tasks).await?;
        let publisher = publish::Publisher::new(
            &self.files,
            &self.description.validators,
            self.genesis.clone(),
            self.credentials.clone(),
        )?;
        let base = publisher.current(&self.bundle).await?;
        let mut version = match publish::wanted(self.args.trust_bundle.as_deref(), &base)? {
            Some(content) => {
                self.say(&format!("publishing {} ({} entries)", self.bundle, content.len()));
                self.publish_and_watch(tasks, &publisher, &base, &content).await?
            }
            None => self.resume(tasks, base.version).await?,
        };
        if let Some(conspiracy) = self.conspiracy.clone() {
            // The lie `old-version` needs a version below the one that edges run.
            while version < 2 {
                version = self.publish_small_change(tasks, &publisher).await?;
            }
            self.say(&format!("region `{}` begins to lie", plan::EVIL_REGION));
            conspiracy.start_lying();
            version = self.publish_small_change(tasks, &publisher).await?;
            self.say(&format!("every edge runs version {version}; how edges refused the lies:"));
            report::lies(&conspiracy.told(), &self.description, self.json)?;
        }
        if self.args.once {
            return Ok(());
        }
        self.say(&report::welcome(&self.description, &self.state_dir));
        self.stay_up(tasks, version).await
    }

    /// Waits until every edge runs the published version. An operator may have published content that
    /// some edge cannot run; then `dev` reports the edge, and keeps the realm up.
    async fn resume(&mut self, tasks: &TaskGroup, version: u64) -> Result<u64, DevError> {
        if version == 0 {
            self.say(&format!("{} was retired; --trust-bundle publishes it again", self.bundle));
            return Ok(version);
        }
        self.say(&format!("{} version {version} is published already", self.bundle));
        match self.converge(tasks, version, clock::monotonic()).await {
            Err(late @ DevError::Late(..)) if !self.args.once => self.say(&late.to_string()),
            converged => converged?,
        }
        Ok(version)
    }

    /// Waits until every process has been seen once.
    async fn wait_until_up(&mut self, tasks: &TaskGroup) -> Result<(), DevError> {
        self.say(&format!("starting the realm in {}", self.state_dir.display()));
        let started = clock::monotonic();
        let mut progress = Progress::new(self.expected(), 0, started, self.shown(Phase::Start));
        self.watch(tasks, &mut progress).await
    }

    /// Adds or removes one certificate, so that a version with a small difference travels.
    async fn publish_small_change(
        &mut self,
        tasks: &TaskGroup,
        publisher: &publish::Publisher,
    ) -> Result<u64, DevError> {
        let base = publisher.current(&self.bundle).await?;
        let other = publish::with_or_without_own_ca(&base.tree, &self.files)?;
        self.publish_and_watch(tasks, publisher, &base, &other).await
    }

    async fn publish_and_watch(
        &mut self,
        tasks: &TaskGroup,
        publisher: &publish::Publisher,
        base: &Base,
        to: &satrap_merkle::BundleTree,
    ) -> Result<u64, DevError> {
        let submitted = clock::monotonic();
        let version = publisher.publish(&self.bundle, base, to).await?;
        self.converge(tasks, version, submitted).await?;
        Ok(version)
    }

    async fn converge(
        &mut self,
        tasks: &TaskGroup,
        version: u64,
        since: Duration,
    ) -> Result<(), DevError> {
        let shown = self.shown(Phase::Travel);
        let mut progress = Progress::new(self.expected(), version, since, shown);
        self.watch(tasks, &mut progress).await?;
        progress.summary().iter().for_each(|line| self.say(line));
        Ok(())
    }

    /// Feeds `progress` until it is complete.
    async fn watch(&mut self, tasks: &TaskGroup, progress: &mut Progress) -> Result<(), DevError> {
        let deadline = time::sleep(CONVERGE_WITHIN);
        tokio::pin!(deadline);
        // Some were seen at this version before the wait began.
        for sighting in self.seen.values() {
            progress.saw(sighting);
        }
        while !progress.is_complete() {
            tokio::select! {
                sighting = self.sightings.recv() => {
                    // Witnesses run until shutdown, so the channel closes only then.
                    let sighting = sighting.ok_or(DevError::Interrupted)?;
                    progress.saw(&sighting);
                    self.seen.insert(sighting.name.clone(), sighting);
                }
                event = self.processes.events.recv() => {
                    let died = self.process_event(event);
                    if let Some(death) = died.filter(|_| progress.phase() == Phase::Start) {
                        return Err(DevError::Process(death));
                    }
                }
                () = tasks.shutdown().requested() => return Err(DevError::Interrupted),
                () = &mut deadline => {
                    let logs = self.state_dir.join("logs");
                    return Err(DevError::Late(progress.missing(), logs));
                }
            }
        }
        progress.finish();
        Ok(())
    }

    /// Runs until ctrl-c, and reports processes that die and come back.
    async fn stay_up(&mut self, tasks: &TaskGroup, version: u64) -> Result<(), DevError> {
        let mut newest = version;
        loop {
            tokio::select! {
                () = tasks.shutdown().requested() => return Ok(()),
                event = self.processes.events.recv() => drop(self.process_event(event)),
                () = time::sleep(DESCRIBE_AGAIN), if !self.described => self.describe(),
                sighting = self.sightings.recv() => {
                    let Some(sighting) = sighting else { return Ok(()) };
                    if sighting.tier == Tier::Validator && sighting.version > newest {
                        newest = sighting.version;
                        self.say(&format!("{} version {newest} was decided", self.bundle));
                    }
                    self.seen.insert(sighting.name.clone(), sighting);
                }
            }
        }
    }

    /// Records a start or an end; returns the death, if it was one.
    fn process_event(&mut self, event: Option<ProcessEvent>) -> Option<Death> {
        match event? {
            ProcessEvent::Started { name, pid } => {
                self.note_pid(&name, pid);
                self.describe();
                None
            }
            ProcessEvent::Died(death) => {
                let Death { name, how, failed_starts, .. } = &death;
                match failed_starts {
                    0 => self.say(&format!("{name} died; it is started again: {how}")),
                    // Once is enough; the log has the others.
                    1 => self.say(&format!(
                        "{name} keeps dying, and is started again after growing pauses: {how}"
                    )),
                    _ => {}
                }
                Some(death)
            }
        }
    }

    /// Writes `realm.json`. The realm runs without it, so a full disk is only reported.
    fn describe(&mut self) {
        let stored = self.description.store(&self.state_dir);
        if let (Err(error), true) = (&stored, self.described) {
            self.say(&format!(
                "cannot write {}: {error}; the realm keeps running, but other commands read old process ids \
                 until there is room",
                Description::path(&self.state_dir).display()
            ));
        }
        self.described = stored.is_ok();
    }

    fn note_pid(&mut self, process: &str, pid: u32) {
        let d = &mut self.description;
        let validators = d.validators.iter_mut().map(|v| (v.name.clone(), &mut v.pid));
        let members = d.regions.iter_mut().flat_map(|region| {
            let name = region.name.clone();
            region.members.iter_mut().map(move |m| (format!("{name}-{}", m.name), &mut m.pid))
        });
        let edges = d.edges.iter_mut().map(|e| (e.name.clone(), &mut e.pid));
        let mut all = validators.chain(members).chain(edges);
        if let Some((_, slot)) = all.find(|(name, _)| name == process) {
            *slot = Some(pid);
        }
    }

    /// Every process, by the name under which progress shows it.
    fn expected(&self) -> Expected {
        let d = &self.description;
        let validators = d.validators.iter().map(|v| (Tier::Validator, v.name.clone()));
        let members = d.regions.iter().flat_map(|region| {
            let name = |member: &description::Member| format!("{}-{}", region.name, member.name);
            region.members.iter().map(move |member| (Tier::Member, name(member)))
        });
        let edges = d.edges.iter().map(|e| (Tier::Edge, e.name.clone()));
        validators.chain(members).chain(edges).collect()
    }

    fn shown(&self, phase: Phase) -> Shown {
        Shown { phase, json: self.json }
    }

    fn say(&self, line: &str) {
        say(line, self.json);
    }
}

fn say(line: &str, json: bool) {
    if json {
        println!("{}", serde_json::json!({ "message": line }));
    } else {
        println!("{line}");
    }
}

fn until_shutdown(
    tasks: &TaskGroup,
    name: String,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let shutdown = tasks.shutdown();
    tasks.spawn(name, async move {
        tokio::select! {
            () = shutdown.requested() => {}
            () = task => {}
        }
        Ok::<_, std::convert::Infallible>(())
    });
}
