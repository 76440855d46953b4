//! Injects random faults, drawn from the seed, into a simulated ring and ends them again: network,
//! disk, crashes, pauses and membership. Several may be active at a time. `sim.rs` calls it every few
//! milliseconds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use satrap_history::random::Random;
use satrap_ring_api::backend::{AdminRequest, Member};
use satrap_ring_storage::{
    files::Files as _,
    sim::{Faults, Survival},
};
use tokio::time::{Instant, timeout};

use super::{
    net::NetworkFaults,
    world::{WRITE_MS_MAX, World, url},
};
use crate::types::MemberName;

/// The maximum number of members in one run: the three or five founders, and those that join later.
const MEMBERS_MAX: usize = 7;
/// Time before the first fault, in which the ring elects its first leader.
const CALM_START: Duration = Duration::from_millis(1_500);
/// The longest time for which an administrative request is waited for.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);
/// The space that a full disk still has: less than a new segment of the log and a checkpoint take.
const FULL_DISK_BYTES_MAX: u64 = 300 * 1024;

/// The faults in progress and to come.
pub struct Nemesis {
    world: Arc<World>,
    random: Random,
    next: Instant,
    reboots: BTreeMap<MemberName, Instant>,
    /// Disks and links to repair, and when.
    repairs: Vec<(Instant, Repair)>,
    /// The member that lost its disk in this run. `sim.rs` replaces it after the storm.
    lost: Option<MemberName>,
    /// Number of injected faults, by kind.
    pub injected: BTreeMap<&'static str, u64>,
}

enum Repair {
    Links,
    Disk(MemberName),
    Resume(MemberName),
    Network,
}

impl Nemesis {
    /// A nemesis without faults yet.
    pub fn new(world: Arc<World>) -> Self {
        let random = Random::new(world.seed ^ 0x6e65_6d65_7369_7321);
        let next = Instant::now() + CALM_START;
        Self {
            world,
            random,
            next,
            reboots: BTreeMap::new(),
            repairs: Vec::new(),
            lost: None,
            injected: BTreeMap::new(),
        }
    }

    /// Boots the founders. In some runs a minority of them boots later, while the others already
    /// serve clients.
    pub fn boot_founders(&mut self) {
        let mut names = self.world.founders();
        let late = if self.random.chance(400) { (names.len() - 1) / 2 } else { 0 };
        for _ in 0..late {
            let name = names.remove(self.random.below(names.len() as u64) as usize);
            let at = self.random_instant(500, 12_000);
            self.world.add_machine(&name);
            self.reboots.insert(name, at);
            self.count("late founder");
        }
        names.iter().for_each(|name| self.world.boot(name));
    }

    /// Injects and repairs the faults that are due.
    pub async fn step(&mut self) {
        self.restart().await;
        self.repair();
        if Instant::now() < self.next {
            return;
        }
        self.next = self.random_instant(50, 900);
        self.inject_fault().await;
    }

    fn random_instant(&mut self, ms_min: u64, ms_max: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.random.between(ms_min, ms_max))
    }

    /// Restarts crashed members. A member whose process exited by itself counts as crashed.
    async fn restart(&mut self) {
        for (name, why) in self.world.exited() {
            self.check_end(&name, &why);
            // A supervisor restarts the process, or the whole machine restarts.
            if self.random.chance(500) {
                self.world.kill(&name).await;
            } else {
                let survival = self.survival();
                self.world.crash(&name, survival).await;
            }
            let at = self.random_instant(20, 1_000);
            self.reboots.entry(name).or_insert(at);
        }
        let now = Instant::now();
        let due: Vec<_> = self
            .reboots
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.reboots.remove(&name);
            // Sometimes the power fails again during the start.
            if self.random.chance(100) {
                self.count("crash while starting");
                let operations = self.random.below(40);
                self.set_disk_faults(&name, |faults, so_far| {
                    faults.power_cut_at = Some(so_far + operations)
                });
            }
            self.world.boot(&name);
        }
    }

    fn check_end(&self, name: &MemberName, why: &str) {
        // The database engine panics over what a disk leaves that lies about its syncs.
        let lies = self.world.faults_at_rest().lying_sync;
        let of_engine = lies && why.contains("the database engine (redb) panicked");
        assert!(of_engine || !why.contains("panicked"), "{name}: {why}");
    }

    fn repair(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.repairs.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, repair) in due {
            match repair {
                Repair::Links => self.world.net().cut.clear(),
                Repair::Network => self.world.net().faults = NetworkFaults::NONE,
                Repair::Disk(name) => {
                    self.set_disk_faults(&name, |faults, _| faults.power_cut_at = None);
                    if let Some(host) = self.world.hosts().get_mut(&name) {
                        host.write_ms_max = WRITE_MS_MAX;
                    }
                }
                Repair::Resume(name) => self.set_paused(&name, Paused::No),
            }
        }
    }

    fn survival(&mut self) -> Survival {
        match self.random.below(4) {
            0 => Survival::None,
            1 => Survival::All,
            _ => Survival::Some(*self.random.pick(&[26, 128, 230])),
        }
    }

    fn count(&mut self, what: &'static str) {
        self.world.note(what);
        *self.injected.entry(what).or_default() += 1;
    }

    fn random_member(&mut self) -> MemberName {
        let names = self.world.names();
        self.random.pick(&names).clone()
    }

    fn leader(&self) -> Option<MemberName> {
        let running = self.world.running();
        running.iter().find(|(_, live)| live.ring.node.leads()).map(|(name, _)| name.clone())
    }

    async fn inject_fault(&mut self) {
        match self.random.below(26) {
            0..=1 => self.isolate(),
            2..=3 => self.cut_one_way(),
            4 => self.cut_a_pair(),
            5 => self.partition(),
            6..=7 => self.disturb_network(),
            8..=10 => {
                let name = self.random_member();
                self.crash("crash", name).await;
            }
            11..=12 => {
                if let Some(name) = self.leader() {
                    self.crash("crash of the leader", name).await;
                }
            }
            13 => {
                for name in self.world.names() {
                    self.crash("crash of all", name).await;
                }
            }
            14..=15 => self.cut_power_during_a_write(),
            16 => self.fail_a_write(),
            17 => self.fill_the_disk(),
            18 => self.slow_the_disk(),
            19..=20 => self.pause(),
            21 => self.move_leader().await,
            22 => self.change_members().await,
            23 => self.lose_a_disk().await,
            _ => self.turn_read_only(),
        }
    }

    fn schedule_repair(&mut self, repair: Repair) {
        let at = self.random_instant(200, 2_500);
        self.repairs.push((at, repair));
    }

    fn isolate(&mut self) {
        self.count("isolation");
        let name = self.random_member();
        for other in self.world.names().into_iter().filter(|other| *other != name) {
            let mut net = self.world.net();
            net.cut.insert((name.clone(), other.clone()));
            net.cut.insert((other, name.clone()));
        }
        self.schedule_repair(Repair::Links);
    }

    fn cut_one_way(&mut self) {
        self.count("one-way cut");
        let (name, outward) = (self.random_member(), self.random.chance(500));
        for other in self.world.names().into_iter().filter(|other| *other != name) {
            let pair = if outward { (name.clone(), other) } else { (other, name.clone()) };
            self.world.net().cut.insert(pair);
        }
        self.schedule_repair(Repair::Links);
    }

    /// Cuts one pair of members off from each other; a third member still reaches both.
    fn cut_a_pair(&mut self) {
        let one = self.random_member();
        let others: Vec<_> = self.world.names().into_iter().filter(|name| *name != one).collect();
        let other = self.random.pick(&others).clone();
        self.count("non-transitive cut");
        let mut net = self.world.net();
        net.cut.insert((one.clone(), other.clone()));
        net.cut.insert((other, one));
        drop(net);
        self.schedule_repair(Repair::Links);
    }

    /// Divides the members into two groups, neither of them empty, that cannot reach each other.
    fn partition(&mut self) {
        self.count("partition");
        let names = self.world.names();
        // Bit i is the side of member i. Neither no bit nor every bit is set.
        let sides = self.random.between(1, (1 << names.len()) - 2);
        let side = |index: usize| sides >> index & 1;
        for (i, one) in names.iter().enumerate() {
            for (_, other) in names.iter().enumerate().filter(|(j, _)| side(*j) != side(i)) {
                self.world.net().cut.insert((one.clone(), other.clone()));
            }
        }
        self.schedule_repair(Repair::Links);
    }

    fn disturb_network(&mut self) {
        self.count("disturbed network");
        let faults = NetworkFaults {
            delay_ms_max: *self.random.pick(&[5, 30, 120, 400]),
            loss: *self.random.pick(&[0, 10, 100, 300]),
            reset: *self.random.pick(&[0, 10, 50]),
            twice: *self.random.pick(&[0, 50]),
        };
        self.world.net().faults = faults;
        self.schedule_repair(Repair::Network);
    }

    async fn crash(&mut self, what: &'static str, name: MemberName) {
        if self.world.hosts().get(&name).is_none_or(|host| host.process.is_none()) {
            return;
        }
        self.count(what);
        let survival = self.survival();
        self.world.crash(&name, survival).await;
        let at = self.random_instant(20, 2_000);
        self.reboots.insert(name, at);
    }

    fn set_disk_faults(&self, name: &MemberName, change: impl FnOnce(&mut Faults, u64)) {
        if let Some(host) = self.world.hosts().get(name) {
            let mut faults = self.world.faults_at_rest();
            change(&mut faults, host.disk.counters().operations);
            host.disk.set_faults(faults);
        }
    }

    fn cut_power_during_a_write(&mut self) {
        self.count("power cut during a write");
        let (name, operations) = (self.random_member(), self.random.below(30));
        self.set_disk_faults(&name, |faults, so_far| {
            faults.power_cut_at = Some(so_far + operations)
        });
    }

    fn fail_a_write(&mut self) {
        self.count("failed write");
        let (name, operations) = (self.random_member(), self.random.below(20));
        let sync = self.random.chance(500);
        self.set_disk_faults(&name, |faults, so_far| match sync {
            true => faults.error_after_syncs = Some(operations / 2),
            false => faults.error_at = Some(so_far + operations),
        });
    }

    /// The file system of a member turns read-only, and loses what was written where nothing was before.
    fn turn_read_only(&mut self) {
        self.count("file system turned read-only");
        let (name, syncs) = (self.random_member(), self.random.below(20));
        self.set_disk_faults(&name, |faults, _| faults.read_only_after_syncs = Some(syncs));
    }

    fn fill_the_disk(&mut self) {
        self.count("full disk");
        let (name, room) = (self.random_member(), self.random.below(FULL_DISK_BYTES_MAX));
        if let Some(host) = self.world.hosts().get(&name) {
            host.disk.set_faults(self.world.faults_at_rest());
            let used = host.disk.free_bytes().map_or(0, |free| u64::MAX - free);
            let capacity_bytes = used + room;
            host.disk.set_faults(Faults { capacity_bytes, ..self.world.faults_at_rest() });
        }
        self.schedule_repair(Repair::Disk(name));
    }

    fn slow_the_disk(&mut self) {
        self.count("slow disk");
        let (name, ms) = (self.random_member(), *self.random.pick(&[20, 100, 600]));
        if let Some(host) = self.world.hosts().get_mut(&name) {
            host.write_ms_max = ms;
        }
        self.schedule_repair(Repair::Disk(name));
    }

    fn pause(&mut self) {
        self.count("pause");
        let name = self.random_member();
        self.set_paused(&name, Paused::Yes);
        self.schedule_repair(Repair::Resume(name));
    }

    fn set_paused(&self, name: &MemberName, paused: Paused) {
        let hosts = self.world.hosts();
        let Some(process) = hosts.get(name).and_then(|host| host.process.as_ref()) else { return };
        match paused {
            Paused::Yes => process.node.pause(),
            Paused::No => process.node.resume(),
        }
    }

    /// Sends an administrative request to a random member. After an error or a timeout its
    /// outcome is unknown.
    async fn send_admin_request(&mut self, request: AdminRequest) {
        let name = self.random_member();
        let Some(backend) = self.world.backend(&name) else { return };
        self.world.note(&format!("{name} receives {request:?}"));
        let executed = matches!(timeout(ADMIN_TIMEOUT, backend.admin(request)).await, Ok(Ok(_)));
        self.world.note(if executed { "executed" } else { "outcome unknown" });
    }

    fn members(&self) -> Vec<Member> {
        let running = self.world.running();
        let leader = running.iter().find(|(_, live)| live.ring.node.leads());
        leader.map_or_else(Vec::new, |(_, live)| live.ring.members())
    }

    async fn move_leader(&mut self) {
        self.count("leader moved");
        let members = self.members();
        if !members.is_empty() {
            let id = self.random.pick(&members).id;
            self.send_admin_request(AdminRequest::MoveLeader(id)).await;
        }
    }

    async fn change_members(&mut self) {
        let members = self.members();
        let (current, ever_existed) = (members.len(), self.world.names().len());
        if self.lost.is_some() || current == 0 {
            return;
        }
        if current <= 3 || self.random.chance(500) {
            if ever_existed >= MEMBERS_MAX {
                return;
            }
            self.count("member added");
            let name = format!("m{}", ever_existed + 1);
            let request =
                AdminRequest::AddMember { peer_urls: vec![url(&name)], is_learner: false };
            self.send_admin_request(request).await;
            self.world.boot(&MemberName::from(ever_existed as u64 + 1));
        } else {
            self.count("member removed");
            let id = self.random.pick(&members).id;
            self.send_admin_request(AdminRequest::RemoveMember(id)).await;
        }
    }

    /// Replaces a member's disk with an empty one, at most once per run: with two lost disks, a ring
    /// of three would have no majority. Only while all members run and know each
    /// other's disks (docs/adr/0013).
    async fn lose_a_disk(&mut self) {
        if !self.world.all_on_record() {
            return;
        }
        let name = self.random_member();
        let members = self.members();
        let votes = |m: &Member| m.name == name.as_str() && !m.is_learner;
        if self.lost.is_some() || members.len() < 3 || !members.iter().any(votes) {
            return;
        }
        self.count("disk lost");
        self.world.lose_disk(&name).await;
        let at = self.random_instant(20, 500);
        self.reboots.insert(name.clone(), at);
        self.lost = Some(name);
    }

    /// Ends all faults and restarts crashed members at once. Returns the member that lost its disk,
    /// which must be removed from the ring and added again.
    pub async fn stop(&mut self) -> Option<MemberName> {
        self.world.note("healing");
        *self.world.net() = super::net::Net::new(self.world.seed ^ 1);
        for name in self.world.names() {
            self.set_paused(&name, Paused::No);
            self.set_disk_faults(&name, |faults, _| faults.power_cut_at = None);
            if let Some(host) = self.world.hosts().get_mut(&name) {
                host.write_ms_max = WRITE_MS_MAX;
            }
        }
        self.repairs.clear();
        for name in self.world.names() {
            let disk = self.world.hosts().get(&name).map(|host| host.disk.clone());
            if disk.is_some_and(|disk| disk.is_read_only()) {
                // The process need not have noticed yet.
                self.world.kill(&name).await;
            }
        }
        self.restart_stopped().await;
        self.lost.take()
    }

    /// Restarts all stopped members.
    pub async fn restart_stopped(&mut self) {
        for (name, why) in self.world.exited() {
            self.check_end(&name, &why);
            self.world.crash(&name, Survival::All).await;
        }
        self.reboots.clear();
        for name in self.world.names() {
            if self.world.hosts().get(&name).is_some_and(|host| host.process.is_none()) {
                self.world.boot(&name);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paused {
    Yes,
    No,
}
