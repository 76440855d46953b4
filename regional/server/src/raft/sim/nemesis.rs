//! What befalls a simulated ring, drawn from the seed: several things at a time, of all kinds.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use satrap_history::random::Random;
use satrap_regional_api::backend::{AdminRequest, Member};
use satrap_regional_storage::{
    files::Files as _,
    sim::{Faults, Survival},
};
use tokio::time::{Instant, timeout};

use super::{
    net::Weather,
    world::{World, url},
};
use crate::{raft::types::MemberName, tests::realm::label};

/// At most so many members were there at some time: a ring of five, and two that came later.
const MEMBERS_MAX: usize = 7;

/// What is still to come.
pub struct Nemesis {
    world: Arc<World>,
    chance: Random,
    next: Instant,
    reboots: BTreeMap<MemberName, Instant>,
    /// Disks and links that are to work again.
    repairs: Vec<(Instant, Repair)>,
    /// A disk was lost, and its member is not replaced yet.
    lost: Option<MemberName>,
    /// What was done, by kind.
    pub done: BTreeMap<&'static str, u64>,
}

enum Repair {
    Links,
    Disk(MemberName),
    Thaw(MemberName),
    Weather,
}

impl Nemesis {
    /// Nothing has happened yet.
    pub fn new(world: Arc<World>) -> Self {
        let chance = Random::new(world.seed ^ 0x6e65_6d65_7369_7321);
        let next = Instant::now() + Duration::from_millis(1_500);
        Self {
            world,
            chance,
            next,
            reboots: BTreeMap::new(),
            repairs: Vec::new(),
            lost: None,
            done: BTreeMap::new(),
        }
    }

    /// Boots the founders; in some runs, a minority of them comes while the ring is already at work.
    pub fn found(&mut self) {
        let mut names = self.world.founders();
        let late = if self.chance.chance(400) { (names.len() - 1) / 2 } else { 0 };
        for _ in 0..late {
            let name = names.remove(self.chance.below(names.len() as u64) as usize);
            let at = self.soon(500, 12_000);
            self.world.buy(&name);
            self.reboots.insert(name, at);
            self.count("late founder");
        }
        names.iter().for_each(|name| self.world.boot(name));
    }

    /// Does what is due.
    pub async fn step(&mut self) {
        self.restart().await;
        self.repair();
        if Instant::now() < self.next {
            return;
        }
        self.next = self.soon(50, 900);
        self.strike().await;
    }

    fn soon(&mut self, ms_min: u64, ms_max: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.chance.between(ms_min, ms_max))
    }

    /// A process that ended is a crash; what crashed comes back.
    async fn restart(&mut self) {
        for (name, why) in self.world.dead() {
            assert!(!why.contains("panicked"), "{name}: {why}");
            // A supervisor starts the process again, or the machine comes up again with all of them.
            if self.chance.chance(500) {
                self.world.kill(&name).await;
            } else {
                let survival = self.survival();
                self.world.crash(&name, survival).await;
            }
            let at = self.soon(20, 1_000);
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
            // Sometimes the power goes again while it starts.
            if self.chance.chance(100) {
                self.count("crash while starting");
                let operations = self.chance.below(40);
                self.break_disk(&name, |faults, done| {
                    faults.power_cut_at = Some(done + operations)
                });
            }
            self.world.boot(&name);
        }
    }

    fn repair(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.repairs.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, repair) in due {
            match repair {
                Repair::Links => self.world.net().cut.clear(),
                Repair::Weather => self.world.net().weather = Weather::FAIR,
                Repair::Disk(name) => {
                    self.break_disk(&name, |faults, _| faults.power_cut_at = None);
                    if let Some(host) = self.world.hosts().get_mut(&name) {
                        host.write_ms_max = 2;
                    }
                }
                Repair::Thaw(name) => self.freeze(&name, Freeze::Off),
            }
        }
    }

    fn survival(&mut self) -> Survival {
        match self.chance.below(4) {
            0 => Survival::None,
            1 => Survival::All,
            _ => Survival::Some(*self.chance.pick(&[26, 128, 230])),
        }
    }

    fn count(&mut self, what: &'static str) {
        self.world.note(what);
        *self.done.entry(what).or_default() += 1;
    }

    fn someone(&mut self) -> MemberName {
        let names = self.world.names();
        self.chance.pick(&names).clone()
    }

    fn leader(&self) -> Option<MemberName> {
        let running = self.world.running();
        running.iter().find(|(_, live)| live.ring.leads()).map(|(name, _)| name.clone())
    }

    async fn strike(&mut self) {
        match self.chance.below(24) {
            0..=1 => self.isolate(),
            2..=3 => self.cut_one_way(),
            4 => self.cut_a_pair(),
            5 => self.split(),
            6..=7 => self.bad_weather(),
            8..=10 => {
                let name = self.someone();
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
            _ => self.lose_a_disk().await,
        }
    }

    fn until(&mut self, repair: Repair) {
        let at = self.soon(200, 2_500);
        self.repairs.push((at, repair));
    }

    fn isolate(&mut self) {
        self.count("isolation");
        let name = self.someone();
        for other in self.world.names().into_iter().filter(|other| *other != name) {
            let mut net = self.world.net();
            net.cut.insert((name.clone(), other.clone()));
            net.cut.insert((other, name.clone()));
        }
        self.until(Repair::Links);
    }

    fn cut_one_way(&mut self) {
        self.count("one-way cut");
        let (name, outward) = (self.someone(), self.chance.chance(500));
        for other in self.world.names().into_iter().filter(|other| *other != name) {
            let pair = if outward { (name.clone(), other) } else { (other, name.clone()) };
            self.world.net().cut.insert(pair);
        }
        self.until(Repair::Links);
    }

    /// A third member still reaches both.
    fn cut_a_pair(&mut self) {
        self.count("non-transitive cut");
        let (one, other) = (self.someone(), self.someone());
        let mut net = self.world.net();
        net.cut.insert((one.clone(), other.clone()));
        net.cut.insert((other, one));
        drop(net);
        self.until(Repair::Links);
    }

    fn split(&mut self) {
        self.count("split");
        let names = self.world.names();
        let side: BTreeMap<_, _> =
            names.iter().map(|name| (name, self.chance.chance(500))).collect();
        for one in &names {
            for other in names.iter().filter(|other| side[other] != side[one]) {
                self.world.net().cut.insert((one.clone(), other.clone()));
            }
        }
        self.until(Repair::Links);
    }

    fn bad_weather(&mut self) {
        self.count("bad weather");
        let weather = Weather {
            delay_ms_max: *self.chance.pick(&[5, 30, 120, 400]),
            loss: *self.chance.pick(&[0, 10, 100, 300]),
            reset: *self.chance.pick(&[0, 10, 50]),
            twice: *self.chance.pick(&[0, 50]),
        };
        self.world.net().weather = weather;
        self.until(Repair::Weather);
    }

    async fn crash(&mut self, what: &'static str, name: MemberName) {
        if self.world.hosts().get(&name).is_none_or(|host| host.process.is_none()) {
            return;
        }
        self.count(what);
        let survival = self.survival();
        self.world.crash(&name, survival).await;
        let at = self.soon(20, 2_000);
        self.reboots.insert(name, at);
    }

    fn break_disk(&self, name: &MemberName, change: impl FnOnce(&mut Faults, u64)) {
        if let Some(host) = self.world.hosts().get(name) {
            let mut faults = self.world.faults_at_rest();
            change(&mut faults, host.disk.counters().operations);
            host.disk.set_faults(faults);
        }
    }

    fn cut_power_during_a_write(&mut self) {
        self.count("power cut during a write");
        let (name, operations) = (self.someone(), self.chance.below(30));
        self.break_disk(&name, |faults, done| faults.power_cut_at = Some(done + operations));
    }

    fn fail_a_write(&mut self) {
        self.count("failed write");
        let (name, operations) = (self.someone(), self.chance.below(20));
        let sync = self.chance.chance(500);
        self.break_disk(&name, |faults, done| match sync {
            true => faults.error_after_syncs = Some(operations / 2),
            false => faults.error_at = Some(done + operations),
        });
    }

    fn fill_the_disk(&mut self) {
        self.count("full disk");
        let (name, room) = (self.someone(), self.chance.below(300 * 1024));
        if let Some(host) = self.world.hosts().get(&name) {
            host.disk.set_faults(self.world.faults_at_rest());
            let used = host.disk.free_bytes().map_or(0, |free| u64::MAX - free);
            let capacity_bytes = used + room;
            host.disk.set_faults(Faults { capacity_bytes, ..self.world.faults_at_rest() });
        }
        self.until(Repair::Disk(name));
    }

    fn slow_the_disk(&mut self) {
        self.count("slow disk");
        let (name, ms) = (self.someone(), *self.chance.pick(&[20, 100, 600]));
        if let Some(host) = self.world.hosts().get_mut(&name) {
            host.write_ms_max = ms;
        }
        self.until(Repair::Disk(name));
    }

    fn pause(&mut self) {
        self.count("pause");
        let name = self.someone();
        self.freeze(&name, Freeze::On);
        self.until(Repair::Thaw(name));
    }

    fn freeze(&self, name: &MemberName, freeze: Freeze) {
        let hosts = self.world.hosts();
        let Some(process) = hosts.get(name).and_then(|host| host.process.as_ref()) else { return };
        match freeze {
            Freeze::On => process.node.freeze(),
            Freeze::Off => process.node.thaw(),
        }
    }

    /// Asks some member; whether it was done.
    async fn ask(&mut self, request: AdminRequest) -> bool {
        let name = self.someone();
        let Some(backend) = self.world.backend(&name) else { return false };
        self.world.note(&format!("{name} is asked: {request:?}"));
        let asked = timeout(Duration::from_secs(3), backend.admin(request));
        let done = matches!(asked.await, Ok(Ok(_)));
        self.world.note(if done { "done" } else { "perhaps done" });
        done
    }

    fn members(&self) -> Vec<Member> {
        let running = self.world.running();
        let leader = running.iter().find(|(_, live)| live.ring.leads());
        leader.map_or_else(Vec::new, |(_, live)| live.ring.members())
    }

    async fn move_leader(&mut self) {
        self.count("leader moved");
        let members = self.members();
        if !members.is_empty() {
            let id = self.chance.pick(&members).id;
            self.ask(AdminRequest::MoveLeader(id)).await;
        }
    }

    async fn change_members(&mut self) {
        let members = self.members();
        let (there, ever) = (members.len(), self.world.names().len());
        if self.lost.is_some() || there == 0 {
            return;
        }
        if there <= 3 || self.chance.chance(500) {
            if ever >= MEMBERS_MAX {
                return;
            }
            self.count("member added");
            let name = format!("m{}", ever + 1);
            let request =
                AdminRequest::AddMember { peer_urls: vec![url(&name)], is_learner: false };
            self.ask(request).await;
            self.world.boot(&MemberName::from(&label(&name)));
        } else {
            self.count("member removed");
            let id = self.chance.pick(&members).id;
            self.ask(AdminRequest::RemoveMember(id)).await;
        }
    }

    /// One at a time: with a second one, a majority of three would be gone. None before the disks of
    /// all founders are on record (docs/adr/0013).
    async fn lose_a_disk(&mut self) {
        if !self.world.all_on_record() {
            return;
        }
        let name = self.someone();
        let members = self.members();
        let votes = |m: &Member| m.name == name.as_str() && !m.is_learner;
        if self.lost.is_some() || members.len() < 3 || !members.iter().any(votes) {
            return;
        }
        self.count("disk lost");
        self.world.lose_disk(&name).await;
        let at = self.soon(20, 500);
        self.reboots.insert(name.clone(), at);
        self.lost = Some(name);
    }

    /// Ends everything bad; who crashed comes back at once.
    pub async fn stop(&mut self) -> Option<MemberName> {
        self.world.note("healing");
        *self.world.net() = super::net::Net::new(self.world.seed ^ 1);
        for name in self.world.names() {
            self.freeze(&name, Freeze::Off);
            self.break_disk(&name, |faults, _| faults.power_cut_at = None);
            if let Some(host) = self.world.hosts().get_mut(&name) {
                host.write_ms_max = 2;
            }
        }
        self.repairs.clear();
        self.revive().await;
        self.lost.take()
    }

    /// Starts whatever is down.
    pub async fn revive(&mut self) {
        for (name, why) in self.world.dead() {
            assert!(!why.contains("panicked"), "{name}: {why}");
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
enum Freeze {
    On,
    Off,
}
