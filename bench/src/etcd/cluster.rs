//! Three members of either system, as processes on loopback with their data on a real disk.

use std::{
    cell::RefCell,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use satrap_certify::{ChainId, Class, ClassKind, Label, Policy};
use satrap_proto::{
    etcdserverpb::{StatusRequest, StatusResponse},
    v1::{SetQuotaRequest, SetQuotaResponse},
};
use satrap_realm::{Lifetimes, MemberPlan, RealmPlan, RegionPlan, ValidatorPlan, create};
use satrap_runtime::{
    child::{self, Daemon, Running},
    clock,
    ports::Reserved,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{
    Bench,
    load::driven,
    wire::{Channel, frame},
};

const MEMBERS: [&str; 3] = ["a", "b", "c"];
const DAY: Duration = Duration::from_secs(24 * 3600);
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause between two checks whether a member has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A call that fails because a member dies may fail before the process has ended.
const END_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Room for the large parts; the default of 2 GiB, which both have, would refuse.
const QUOTA_BYTES: u64 = 8 << 30;

/// The system that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// etcd.
    Etcd {
        /// The path of the program.
        program: PathBuf,
        /// Whether its members speak TLS with each other, as Satrap's always do.
        peer_tls: bool,
    },
    /// Satrap, with the path of its program.
    Satrap(PathBuf),
}

impl System {
    /// The release, as the program itself says.
    #[must_use]
    pub fn release(&self) -> String {
        let (Self::Etcd { program: path, .. } | Self::Satrap(path)) = self;
        let output = Command::new(path).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
    }
}

/// The process of a member. It ends when this process ends, even if this process is killed.
enum Program {
    /// Ends with its standard input.
    Satrap(Daemon),
    /// The kernel kills it.
    Etcd { args: Vec<String>, log: PathBuf },
}

impl Program {
    fn spawn(&self) -> std::io::Result<Running> {
        match self {
            Self::Satrap(daemon) => daemon.spawn(),
            Self::Etcd { args, log } => {
                let mut command = tokio::process::Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).args(args);
                child::spawn(command, log)
            }
        }
    }

    fn how_it_ended(&self, status: ExitStatus) -> String {
        match self {
            Self::Satrap(daemon) => daemon.how_it_ended(status),
            Self::Etcd { log, .. } => child::how_it_ended(status, log),
        }
    }
}

/// One member.
struct Member {
    address: SocketAddr,
    program: Program,
    /// None while it is killed.
    running: RefCell<Option<Running>>,
}

/// A running cluster; its processes end with it.
pub struct Cluster {
    members: Vec<Member>,
    _ports: Reserved,
    _dir: TempDir,
}

fn label(text: &str) -> Label {
    Label::new(text).expect("the names in this file are labels")
}

impl Cluster {
    /// Starts three members with empty disks and waits until they have a leader.
    ///
    /// # Errors
    ///
    /// If a program cannot be started, a member ends, or no member leads in time.
    pub async fn start(system: &System) -> Bench<Self> {
        // Beside the build: where the machine's disk is, not where its memory is.
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in("target")?;
        let (programs, ports) = match system {
            System::Etcd { program, peer_tls } => etcd(program, *peer_tls, dir.path())?,
            System::Satrap(path) => satrap(path, dir.path())?,
        };
        let member = |(address, program)| Member { address, program, running: RefCell::default() };
        let members = programs.into_iter().map(member).collect();
        let cluster = Self { members, _ports: ports, _dir: dir };
        for member in 0..cluster.members.len() {
            cluster.launch(member)?;
        }
        let leader = cluster.while_all_run(cluster.leader()).await?;
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
    pub fn launch(&self, member: usize) -> Bench<()> {
        let Member { program, running, .. } = &self.members[member];
        running.replace(Some(program.spawn()?));
        Ok(())
    }

    /// Runs `work`, which needs every member that it does not kill itself.
    ///
    /// # Errors
    ///
    /// That of `work`, or the name and last log lines of a member that ended by itself.
    pub async fn while_all_run<T>(&self, work: impl Future<Output = Bench<T>>) -> Bench<T> {
        tokio::select! {
            done = work => match done {
                // If a member ended, that explains the failure.
                Err(error) => match timeout(END_AFTER_FAILURE, self.ended()).await {
                    Ok(ended) => Err(format!("{error}; {ended}").into()),
                    Err(_) => Err(error),
                },
                done => done,
            },
            ended = self.ended() => Err(ended.into()),
        }
    }

    /// Completes with the name and last log lines of a member that ended by itself.
    async fn ended(&self) -> String {
        loop {
            let ended = self.members.iter().zip(MEMBERS).find_map(|(member, name)| {
                let mut running = member.running.borrow_mut();
                let status = running.as_mut()?.process.try_wait().ok()??;
                Some(format!("member {name} ended: {}", member.program.how_it_ended(status)))
            });
            match ended {
                Some(ended) => return ended,
                None => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Kills a member, as a crash would.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub async fn kill(&self, member: usize) -> Bench<()> {
        let running = self.members[member].running.take();
        match running {
            Some(mut running) => Ok(running.process.kill().await?),
            None => Ok(()),
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
    /// If no member leads in time.
    pub async fn leader(&self) -> Bench<usize> {
        let deadline = clock::monotonic() + START_TIMEOUT;
        while clock::monotonic() < deadline {
            for member in 0..self.len() {
                let status = self.status(member).await;
                let id = |s: &StatusResponse| s.header.as_ref().map_or(0, |h| h.member_id);
                if status.is_ok_and(|s| s.leader != 0 && s.leader == id(&s)) {
                    return Ok(member);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err("no member leads".into())
    }

    /// The maintenance status of a member.
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
        let pids = self.members.iter().filter_map(Member::pid);
        pids.map(|pid| cpu_of(pid).unwrap_or_default()).sum()
    }

    /// Resident memory of a member, in bytes.
    #[must_use]
    pub fn memory(&self, member: usize) -> u64 {
        self.members[member].pid().and_then(memory_of).unwrap_or(0)
    }
}

impl Member {
    fn pid(&self) -> Option<u32> {
        self.running.borrow().as_ref()?.process.id()
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

type Programs = Vec<(SocketAddr, Program)>;

fn log(dir: &Path, member: &str) -> PathBuf {
    dir.join(format!("{member}.log"))
}

fn etcd(program: &Path, peer_tls: bool, dir: &Path) -> Bench<(Programs, Reserved)> {
    let ports = Reserved::any(2 * MEMBERS.len())?;
    let (clients, peers) = ports.addresses().split_at(MEMBERS.len());
    let scheme = if peer_tls { "https" } else { "http" };
    let initial: Vec<_> =
        MEMBERS.iter().zip(peers).map(|(name, peer)| format!("{name}={scheme}://{peer}")).collect();
    let initial = initial.join(",");
    let member = |((name, client), peer): ((&&str, &SocketAddr), &SocketAddr)| {
        let args = [
            ("--name", (*name).to_owned()),
            ("--data-dir", dir.join(name).display().to_string()),
            ("--listen-client-urls", format!("http://{client}")),
            ("--advertise-client-urls", format!("http://{client}")),
            ("--listen-peer-urls", format!("{scheme}://{peer}")),
            ("--initial-advertise-peer-urls", format!("{scheme}://{peer}")),
            ("--initial-cluster", initial.clone()),
            ("--quota-backend-bytes", QUOTA_BYTES.to_string()),
            ("--log-level", "error".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        // With a certificate that it makes itself; only the handshake differs from one with an authority.
        let tls = peer_tls.then(|| "--peer-auto-tls".to_owned());
        let program = std::iter::once(program.display().to_string());
        let args = program.chain(args).chain(tls).collect();
        (*client, Program::Etcd { args, log: log(dir, name) })
    };
    let programs = MEMBERS.iter().zip(clients).zip(peers).map(member).collect();
    Ok((programs, ports))
}

fn satrap(program: &Path, dir: &Path) -> Bench<(Programs, Reserved)> {
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
    let mut programs: Programs = Vec::new();
    for (at, etcd) in files.members.iter().zip(etcds) {
        let mut config = fs::read_to_string(&at.config)?;
        config += &format!("\n[etcd]\nlisten = \"{etcd}\"\nurls = [\"http://{etcd}\"]\n");
        fs::write(&at.config, config)?;
        let daemon = Daemon {
            program: program.to_owned(),
            verb: "region",
            config: at.config.clone(),
            log: log(dir, &at.name.to_string()),
        };
        programs.push((*etcd, Program::Satrap(daemon)));
    }
    Ok((programs, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(args: &[&str]) -> Bench<Cluster> {
        let dir = tempfile::tempdir()?;
        let ports = Reserved::any(1)?;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let program = Program::Etcd { args, log: log(dir.path(), "a") };
        let address = ports.addresses()[0];
        let members = vec![Member { address, program, running: RefCell::default() }];
        Ok(Cluster { members, _ports: ports, _dir: dir })
    }

    #[test]
    fn a_member_that_ends_ends_the_measurement_with_its_name_and_last_log_lines() {
        let runtime = satrap_runtime::runtime::current_thread().expect("a runtime");
        let ended = runtime.block_on(async {
            let cluster = cluster(&["sh", "-c", "echo the disk is gone; exit 3"])?;
            cluster.launch(0)?;
            cluster.while_all_run(std::future::pending::<Bench<()>>()).await
        });
        let said = ended.expect_err("the member has ended").to_string();
        assert!(said.starts_with("member a ended: exit status: 3; "), "{said}");
        assert!(said.ends_with("the disk is gone"), "{said}");
    }

    #[test]
    fn a_member_that_the_measurement_kills_does_not_end_it() {
        let runtime = satrap_runtime::runtime::current_thread().expect("a runtime");
        let done = runtime.block_on(async {
            let cluster = cluster(&["sleep", "1000"])?;
            cluster.launch(0)?;
            let work = async {
                cluster.kill(0).await?;
                sleep(3 * LOOK_AGAIN).await;
                Ok(())
            };
            cluster.while_all_run(work).await
        });
        done.expect("the work is done");
    }
}
