//! `satrap dev`: a whole realm on this machine, and one real config on its way through it.
//!
//! Everything is the production code: separate processes of this very binary, real consensus, real
//! mTLS, real disks. What is added is a supervisor, a publisher, and eyes.

mod evil;
mod plan;
mod processes;
mod progress;
mod publish;
mod report;
mod witness;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use satrap_certify::{BundleName, Genesis};
use satrap_host::{
    TaskGroup, clock,
    mtls::{CredentialFiles, Credentials},
    pki::{Role, SpiffeId},
};
use tokio::{sync::mpsc, time};

use crate::realm::{Description, RealmFiles, RealmPlan, description};

use self::{
    evil::Conspiracy,
    processes::{ProcessEvent, Processes, Spec},
    progress::{Phase, Progress, Shown, Totals},
    witness::{Server, Sighting, Tier},
};

/// A realm that has not come up, or not converged, by then will not.
const CONVERGE_WITHIN: Duration = Duration::from_secs(120);
/// For the tasks of `dev` itself to end.
const DRAIN: Duration = Duration::from_secs(10);
/// A plan of more bytes was not written by `dev`.
const PLAN_BYTES_MAX: u64 = 1024 * 1024;

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
    /// PEM file to publish as `pki/edge-trust`; by default the one OpenSSL uses.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// Make one region lie to its edges, in eight ways in turn.
    #[arg(long)]
    pub evil_region: bool,
}

/// Why `dev` ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file or directory cannot be used.
    #[error("{what}: {source}")]
    File {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The state directory holds something else.
    #[error("{0}")]
    State(String),
    /// The realm could not be made, or something in it does not work.
    #[error("{0}")]
    Realm(String),
    /// Not everybody arrived in time.
    #[error("after {CONVERGE_WITHIN:?} still missing: {0}; the logs are in {1}")]
    Late(String, PathBuf),
    /// A process cannot be kept running.
    #[error("{name} does not stay up:\n{log_tail}")]
    Process {
        /// Which one.
        name: String,
        /// The end of its log.
        log_tail: String,
    },
    /// A lie was not told, not refused, or refused by another rule.
    #[error("not every lie was told and refused by its rule")]
    Lies,
    /// The user pressed ctrl-c before it was done.
    #[error("stopped before every edge ran the config")]
    Interrupted,
}

fn file(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> DevError {
    let what = what.to_string();
    move |source| DevError::File { what, source }
}

/// Runs the realm.
///
/// # Errors
///
/// [`DevError`].
pub async fn run(args: Args, json: bool) -> Result<(), DevError> {
    let default = if args.evil_region { ".satrap-evil" } else { ".satrap" };
    let state_dir = args.state_dir.as_deref().unwrap_or(std::path::Path::new(default));
    let state_dir = std::path::absolute(state_dir).map_err(file("state directory"))?;
    let plan = open_or_create(&state_dir, args.evil_region)?;
    let tasks = TaskGroup::new();
    tasks.shutdown_on_signal().map_err(file("signal handlers"))?;
    let mut realm = Dev::start(&tasks, args, json, state_dir, plan).await?;
    let outcome = realm.drive(&tasks).await;
    realm.processes.stop().await;
    tasks.shutdown().request();
    let drained = tasks.run(DRAIN).await.map_err(|e| DevError::Realm(e.to_string()));
    outcome.and(drained)
}

/// The realm in `state_dir`, which is made if there is none.
fn open_or_create(state_dir: &std::path::Path, evil: bool) -> Result<RealmPlan, DevError> {
    let broken = |e: &dyn std::fmt::Display| DevError::Realm(e.to_string());
    let path = state_dir.join("realm.toml");
    if !path.exists() {
        let plan = plan::new_realm(state_dir, evil).map_err(file("free ports"))?;
        crate::realm::create(&plan, state_dir).map_err(|e| broken(&e))?;
        return Ok(plan);
    }
    let text = satrap_host::files::read(&path, PLAN_BYTES_MAX).map_err(file("realm.toml"))?;
    let text = String::from_utf8(text).map_err(|e| broken(&e))?;
    let plan = RealmPlan::from_toml(&text).map_err(|e| broken(&e))?;
    if evil == plan::liars(&plan).is_empty() {
        let (is, asked) = if evil { ("honest", "an evil") } else { ("evil", "an honest") };
        return Err(DevError::State(format!(
            "{} holds an {is} realm, not {asked} one; give another --state-dir",
            state_dir.display()
        )));
    }
    Ok(plan)
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
    conspiracy: Option<Arc<Conspiracy>>,
}

impl Dev {
    async fn start(
        tasks: &TaskGroup,
        args: Args,
        json: bool,
        state_dir: PathBuf,
        plan: RealmPlan,
    ) -> Result<Self, DevError> {
        let files = RealmFiles::of(&plan, &state_dir);
        let description = plan::describe(&plan, &files);
        let genesis = crate::client::read_genesis(&description.genesis)
            .map_err(|e| DevError::Realm(e.to_string()))?;
        let bundle = BundleName::new(plan::BUNDLE).expect("a constant name");
        let credentials = Credentials::load(CredentialFiles {
            certificate: description.client.cert.clone(),
            key: description.client.key.clone(),
            trust: description.client.ca.clone(),
        })
        .map_err(|e| DevError::Realm(e.to_string()))?;
        let conspiracy = start_liars(tasks, &plan, &files, &genesis, &bundle).await?;
        for edge in &description.edges {
            // What an edge said in an earlier run must not pass for what it runs in this one.
            let _ = std::fs::remove_file(status_file(edge));
        }
        let specs = specs(&files);
        let processes = Processes::start(tasks, specs, &state_dir.join("logs"))
            .map_err(file("starting processes"))?;
        let (sender, sightings) = mpsc::channel(witness::SIGHTINGS_MAX);
        for server in servers(&description, &genesis)? {
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
            let status = status_file(edge);
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
            conspiracy,
        })
    }

    /// From start to the end the user asked for.
    async fn drive(&mut self, tasks: &TaskGroup) -> Result<(), DevError> {
        self.wait_until_up(tasks).await?;
        let content = publish::trust_bundle(self.args.trust_bundle.as_deref())?;
        let publisher = publish::Publisher::new(self)?;
        let mut version = match publisher.current(&self.bundle).await? {
            // Resumed, and nothing has changed: wait until everybody runs it.
            (version, tree) if tree.root() == content.root() => {
                self.say(&format!("{} version {version} is published already", self.bundle));
                self.converge(tasks, version, clock::monotonic()).await?;
                version
            }
            (version, tree) if version == 0 || self.conspiracy.is_none() => {
                self.say(&format!("publishing {} ({} entries)", self.bundle, content.len()));
                self.publish_and_watch(tasks, &publisher, version, &tree, &content).await?
            }
            (version, _) => version,
        };
        if let Some(conspiracy) = self.conspiracy.clone() {
            // A liar that serves an old version needs one that its victims have left behind.
            while version < 2 {
                version = self.publish_small_change(tasks, &publisher).await?;
            }
            self.say(&format!("region `{}` begins to lie", plan::EVIL_REGION));
            conspiracy.start_lying();
            version = self.publish_small_change(tasks, &publisher).await?;
            self.say(&format!("every edge runs version {version}; what the liars got:"));
            report::lies(&conspiracy.told(), &self.description, self.json)?;
        }
        if self.args.once {
            return Ok(());
        }
        self.say(&report::welcome(&self.description, &self.state_dir));
        self.stay_up(tasks, version).await
    }

    /// Waits until every process has been seen once.
    async fn wait_until_up(&mut self, tasks: &TaskGroup) -> Result<(), DevError> {
        self.say(&format!("starting the realm in {}", self.state_dir.display()));
        let started = clock::monotonic();
        let mut progress = Progress::new(self.totals(), 0, started, self.shown(Phase::Start));
        self.watch(tasks, &mut progress).await
    }

    /// Adds or removes one certificate, so that a version with a small difference travels.
    async fn publish_small_change(
        &mut self,
        tasks: &TaskGroup,
        publisher: &publish::Publisher,
    ) -> Result<u64, DevError> {
        let (version, tree) = publisher.current(&self.bundle).await?;
        let other = publish::with_or_without_own_ca(&tree, &self.files)?;
        self.publish_and_watch(tasks, publisher, version, &tree, &other).await
    }

    async fn publish_and_watch(
        &mut self,
        tasks: &TaskGroup,
        publisher: &publish::Publisher,
        version: u64,
        from: &satrap_merkle::BundleTree,
        to: &satrap_merkle::BundleTree,
    ) -> Result<u64, DevError> {
        let submitted = clock::monotonic();
        let version = publisher.publish(&self.bundle, version, from, to).await?;
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
        let mut progress = Progress::new(self.totals(), version, since, shown);
        self.watch(tasks, &mut progress).await?;
        progress.summary().iter().for_each(|line| self.say(line));
        Ok(())
    }

    /// Feeds `progress` until it is complete.
    async fn watch(&mut self, tasks: &TaskGroup, progress: &mut Progress) -> Result<(), DevError> {
        let deadline = time::sleep(CONVERGE_WITHIN);
        tokio::pin!(deadline);
        // Whoever was seen at this version before the wait began.
        for sighting in self.seen.values() {
            progress.saw(sighting);
        }
        while !progress.is_complete() {
            tokio::select! {
                sighting = self.sightings.recv() => {
                    // Witnesses run until shutdown, so their silence is one.
                    let sighting = sighting.ok_or(DevError::Interrupted)?;
                    progress.saw(&sighting);
                    self.seen.insert(sighting.name.clone(), sighting);
                }
                event = self.processes.events.recv() => self.process_event(event)?,
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

    /// Until ctrl-c; says what dies and comes back.
    async fn stay_up(&mut self, tasks: &TaskGroup, version: u64) -> Result<(), DevError> {
        let mut newest = version;
        loop {
            tokio::select! {
                () = tasks.shutdown().requested() => return Ok(()),
                event = self.processes.events.recv() => self.process_event(event)?,
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

    fn process_event(&mut self, event: Option<ProcessEvent>) -> Result<(), DevError> {
        match event {
            Some(ProcessEvent::Started { name, pid }) => {
                self.note_pid(&name, pid);
                self.description.store(&self.state_dir).map_err(file("realm.json"))?;
            }
            Some(ProcessEvent::Died { name, status }) => {
                self.say(&format!("{name} died ({status}); it is started again"));
            }
            Some(ProcessEvent::Failed { name, log_tail }) => {
                return Err(DevError::Process { name, log_tail });
            }
            None => {}
        }
        Ok(())
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

    fn totals(&self) -> Totals {
        Totals {
            validators: self.description.validators.len(),
            members: self.description.regions.iter().map(|r| r.members.len()).sum(),
            edges: self.description.edges.len(),
        }
    }

    fn shown(&self, phase: Phase) -> Shown {
        Shown { phase, json: self.json }
    }

    fn say(&self, line: &str) {
        if self.json {
            println!("{}", serde_json::json!({ "message": line }));
        } else {
            println!("{line}");
        }
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

/// Where an edge says what it runs.
fn status_file(edge: &description::Edge) -> PathBuf {
    edge.active_dir.with_file_name("data").join("status.json")
}

/// Every process of the realm, by the name its log file has.
fn specs(files: &RealmFiles) -> Vec<Spec> {
    let spec = |verb: &str, process: &crate::realm::layout::ProcessFiles| {
        let config = process.config.display().to_string();
        let name = match (&process.region, verb) {
            (Some(region), "region") => format!("{region}-{}", process.name),
            _ => process.name.to_string(),
        };
        Spec { name, args: vec![verb.into(), "run".into(), "--config".into(), config] }
    };
    let validators = files.validators.iter().map(|p| spec("validator", p));
    let members = files.members.iter().map(|p| spec("region", p));
    let edges = files.edges.iter().map(|p| spec("edge", p));
    validators.chain(members).chain(edges).collect()
}

/// Every process that can be followed.
fn servers(description: &Description, genesis: &Genesis) -> Result<Vec<Server>, DevError> {
    let chain = genesis.realm().chain_id();
    let server = |tier, name: String, url: &str, role| {
        let id = SpiffeId::new(chain, role).map_err(|e| DevError::Realm(e.to_string()))?;
        Ok(Server { tier, name, url: url.to_owned(), id })
    };
    let mut servers = Vec::new();
    for v in &description.validators {
        let role = Role::Validator { name: v.name.clone() };
        servers.push(server(Tier::Validator, v.name.clone(), &v.url, role)?);
    }
    for region in &description.regions {
        for m in &region.members {
            let name = format!("{}-{}", region.name, m.name);
            let role = Role::Member { region: region.name.clone(), name: m.name.clone() };
            servers.push(server(Tier::Member, name, &m.client_url, role)?);
        }
    }
    Ok(servers)
}

/// Starts the liars of an evil realm, still honest.
async fn start_liars(
    tasks: &TaskGroup,
    plan: &RealmPlan,
    files: &RealmFiles,
    genesis: &Genesis,
    bundle: &BundleName,
) -> Result<Option<Arc<Conspiracy>>, DevError> {
    let liars = plan::liars(plan);
    if liars.is_empty() {
        return Ok(None);
    }
    let conspiracy = Conspiracy::new(genesis.clone(), bundle.clone());
    for (liar, validator) in liars.iter().zip(plan.validators.iter().cycle()) {
        let member = files.members.iter().find(|member| {
            member.region.as_ref() == Some(&liar.region) && member.name == liar.member
        });
        let directory = &member.expect("a liar stands in for a planned member").dir;
        let credentials = Credentials::load(CredentialFiles {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            trust: directory.join("trust.pem"),
        })
        .map_err(|e| DevError::Realm(e.to_string()))?;
        let identity = evil::Mask {
            name: format!("{}/{}", liar.region, liar.member),
            listen: liar.listen,
            credentials,
            upstream: validator.url.clone(),
        };
        evil::start(tasks, conspiracy.clone(), identity).await.map_err(file("starting a liar"))?;
    }
    Ok(Some(conspiracy))
}
