//! Three members of either system, as processes on loopback with their data on a real disk.

use std::{
    cell::RefCell,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use satrap_certify::{ChainId, Class, ClassKind, Label, Policy};
use satrap_cli::realm::{Lifetimes, MemberPlan, RealmPlan, RegionPlan, ValidatorPlan, create};
use satrap_host::{clock, ports::Reserved};
use satrap_proto::{
    etcdserverpb::{StatusRequest, StatusResponse},
    v1::{SetQuotaRequest, SetQuotaResponse},
};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    Bench,
    load::driven,
    wire::{Channel, frame},
};

const MEMBERS: [&str; 3] = ["a", "b", "c"];
const DAY: Duration = Duration::from_secs(24 * 3600);
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Room for the large parts; the default of 2 GiB, which both have, would refuse.
const QUOTA_BYTES: u64 = 8 << 30;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// The peer, this program.
    Etcd(PathBuf),
    /// Ours, this program.
    Satrap(PathBuf),
}

impl System {
    /// The release, as the program itself says.
    #[must_use]
    pub fn release(&self) -> String {
        let (Self::Etcd(path) | Self::Satrap(path)) = self;
        let output = Command::new(path).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
    }
}

/// One running member.
struct Member {
    address: SocketAddr,
    command: Box<dyn Fn() -> Command>,
    process: RefCell<Option<Child>>,
}

/// A running cluster; its processes end with it.
pub struct Cluster {
    members: Vec<Member>,
    dir: TempDir,
    _ports: Reserved,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}

fn label(text: &str) -> Label {
    Label::new(text).expect("the names in this file are labels")
}

impl Cluster {
    /// Starts three members with empty disks and waits until they have a leader.
    ///
    /// # Errors
    ///
    /// If a program cannot be started, or nobody leads in time.
    pub async fn start(system: &System) -> Bench<Self> {
        // Beside the build: where the machine's disk is, not where its memory is.
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in("target")?;
        let (commands, ports) = match system {
            System::Etcd(path) => etcd(path, dir.path())?,
            System::Satrap(path) => satrap(path, dir.path())?,
        };
        let member = |(address, command)| Member { address, command, process: RefCell::default() };
        let members = commands.into_iter().map(member).collect();
        let mut cluster = Self { members, dir, _ports: ports };
        for member in 0..cluster.members.len() {
            cluster.launch(member)?;
        }
        let leader = cluster.leader().await?;
        if matches!(system, System::Satrap(_)) {
            let (channel, driver) = Channel::connect(cluster.address(leader)).await?;
            let request = SetQuotaRequest { bytes_max: QUOTA_BYTES, ..Default::default() };
            driven(vec![driver], async {
                let _: SetQuotaResponse =
                    channel.unary("/satrap.v1.Store/SetQuota", &request).await?;
                Ok(())
            })
            .await?;
        }
        Ok(cluster)
    }

    /// Starts a member that does not run.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn launch(&mut self, member: usize) -> Bench<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(member))?;
        let mut command = (self.members[member].command)();
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.members[member].process = RefCell::new(Some(command.spawn()?));
        Ok(())
    }

    fn log(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", MEMBERS[member]))
    }

    /// The name and last words of a member that ended although it was not killed.
    fn fallen(&self) -> Option<String> {
        self.members.iter().enumerate().find_map(|(number, member)| {
            let mut process = member.process.borrow_mut();
            let status = process.as_mut()?.try_wait().ok()??;
            let log = fs::read(self.log(number)).unwrap_or_default();
            let words =
                String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned();
            Some(format!("member {} ended with {status}: {}", MEMBERS[number], words.trim_end()))
        })
    }

    /// Kills a member, as a crash would.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            // Whoever has ended already is dead too.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Where clients reach a member.
    #[must_use]
    pub fn address(&self, member: usize) -> SocketAddr {
        self.members[member].address
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The member that leads, once one does.
    ///
    /// # Errors
    ///
    /// If nobody leads in time.
    pub async fn leader(&self) -> Bench<usize> {
        let deadline = clock::monotonic() + START_TIMEOUT;
        while clock::monotonic() < deadline {
            if let Some(fallen) = self.fallen() {
                return Err(fallen.into());
            }
            for member in 0..self.len() {
                let status = self.status(member).await;
                let id = |s: &StatusResponse| s.header.as_ref().map_or(0, |h| h.member_id);
                if status.is_ok_and(|s| s.leader != 0 && s.leader == id(&s)) {
                    return Ok(member);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err("nobody leads".into())
    }

    /// What a member says about itself.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub async fn status(&self, member: usize) -> Bench<StatusResponse> {
        let (channel, driver) = Channel::connect(self.address(member)).await?;
        let request = frame(&StatusRequest::default());
        tokio::select! {
            answer = channel.call("/etcdserverpb.Maintenance/Status", request) => {
                Ok(prost::Message::decode(answer?)?)
            }
            ended = driver => Err(format!("the connection ended: {ended:?}").into()),
        }
    }

    /// CPU that all members have used.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let pids = self.members.iter().filter_map(|m| m.process.borrow().as_ref().map(Child::id));
        pids.map(|pid| cpu_of(pid).unwrap_or_default()).sum()
    }

    /// Resident memory of a member, in bytes.
    #[must_use]
    pub fn memory(&self, member: usize) -> u64 {
        let pid = self.members[member].process.borrow().as_ref().map(Child::id);
        pid.and_then(memory_of).unwrap_or(0)
    }
}

/// User and system time, from the kernel's ticks of 10 ms.
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(Duration::from_millis((user + system) * 10))
}

fn memory_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

type Commands = Vec<(SocketAddr, Box<dyn Fn() -> Command>)>;

fn etcd(program: &Path, dir: &Path) -> Bench<(Commands, Reserved)> {
    let ports = Reserved::any(2 * MEMBERS.len())?;
    let (clients, peers) = ports.addresses().split_at(MEMBERS.len());
    let initial: Vec<_> =
        MEMBERS.iter().zip(peers).map(|(name, peer)| format!("{name}=http://{peer}")).collect();
    let initial = initial.join(",");
    let member = |((name, client), peer): ((&&str, &SocketAddr), &SocketAddr)| {
        let args = [
            ("--name", (*name).to_owned()),
            ("--data-dir", dir.join(name).display().to_string()),
            ("--listen-client-urls", format!("http://{client}")),
            ("--advertise-client-urls", format!("http://{client}")),
            ("--listen-peer-urls", format!("http://{peer}")),
            ("--initial-advertise-peer-urls", format!("http://{peer}")),
            ("--initial-cluster", initial.clone()),
            ("--quota-backend-bytes", QUOTA_BYTES.to_string()),
            ("--log-level", "error".to_owned()),
        ];
        let program = program.to_owned();
        let command = move || {
            let mut command = Command::new(&program);
            args.iter().for_each(|(flag, value)| {
                command.arg(flag).arg(value);
            });
            command
        };
        (*client, Box::new(command) as Box<dyn Fn() -> Command>)
    };
    let commands = MEMBERS.iter().zip(clients).zip(peers).map(member).collect();
    Ok((commands, ports))
}

fn satrap(program: &Path, dir: &Path) -> Bench<(Commands, Reserved)> {
    let all = Reserved::any(8 + 3 * MEMBERS.len())?;
    let url = |address: &SocketAddr| format!("https://{address}");
    let (validators, rest) = all.addresses().split_at(8);
    let (clients, rest) = rest.split_at(MEMBERS.len());
    let (peers, etcds) = rest.split_at(MEMBERS.len());
    let member = |n: usize| MemberPlan {
        name: label(MEMBERS[n]),
        client_listen: clients[n],
        client_url: url(&clients[n]),
        peer_listen: peers[n],
        peer_url: url(&peers[n]),
        etcd: None,
    };
    let validator = |(n, listens): (usize, &[SocketAddr])| ValidatorPlan {
        name: label(&format!("v{n}")),
        listen: listens[0],
        url: url(&listens[0]),
        mesh_listen: listens[1],
        mesh_url: url(&listens[1]),
        jurisdiction: label("here"),
        power: 1,
    };
    let plan = RealmPlan {
        chain_id: ChainId::new("bench")?,
        policy: Policy {
            heartbeat: Duration::from_secs(30),
            trusting_period: 90 * DAY,
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        },
        governance_approvals: 1,
        lifetimes: Lifetimes { authority: 30 * DAY, leaf: 7 * DAY },
        validators: validators.chunks(2).enumerate().map(validator).collect(),
        regions: vec![RegionPlan {
            name: label("eu"),
            members: (0..MEMBERS.len()).map(member).collect(),
        }],
        edges: Vec::new(),
        operators: vec![label("op")],
        classes: vec![Class::new("", 1, ClassKind::Opaque)],
        disk: None,
    };
    let files = create(&plan, &dir.join("realm"))?;
    let mut commands: Commands = Vec::new();
    for (at, etcd) in files.members.iter().zip(etcds) {
        let mut config = fs::read_to_string(&at.config)?;
        config += &format!("\n[etcd]\nlisten = \"{etcd}\"\nurls = [\"http://{etcd}\"]\n");
        fs::write(&at.config, config)?;
        let (program, path) = (program.to_owned(), at.config.clone());
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["region", "run", "--config"]).arg(&path);
            command
        };
        commands.push((*etcd, Box::new(command)));
    }
    Ok((commands, all))
}
