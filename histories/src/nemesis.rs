//! Lets faults befall a ring and takes them back.
//!
//! A fault that had no effect proves nothing, so each one is asked for evidence: a process that
//! died, packets that were lost, writes that a slow disk held back, a member that ended on a broken
//! disk. A run in which one did not fire fails.

mod disks;

use std::{sync::Arc, thread::sleep, time::Duration};

use satrap_history::{Nanos, random::Random};

use self::disks::SLOW_WRITES_PER_S;
use crate::{
    RunError,
    admin::Admin,
    cluster::Cluster,
    fault::{Class, Fault},
    net::{Node, Rule, address},
    shared::{Peer, Shared, now_ns},
};

/// How often a ring is looked at until it is healed, and the pause between: half a minute.
const LOOKS: usize = 300;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A fault that was, for the report of a run.
#[derive(Clone, Debug)]
pub struct Fired {
    /// Which.
    pub fault: Fault,
    /// Whether it had an effect.
    pub fired: bool,
    /// When it began and when it was over, in milliseconds from the start of the ring.
    pub span_ms: (u64, u64),
    /// Which members it hit.
    pub slots: Vec<usize>,
}

impl std::fmt::Display for Fired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (from, to) = (self.span_ms.0 as f64 / 1e3, self.span_ms.1 as f64 / 1e3);
        write!(f, "{:?}{:?} {from:.1}-{to:.1}", self.fault, self.slots)
    }
}

/// A fault that is.
struct Active {
    fault: Fault,
    slots: Vec<usize>,
    fired: bool,
    /// Of a fault that comes and goes, whether it is there.
    on: bool,
    /// Of a slow disk: the writes that it had done when it became slow.
    writes: u64,
    from_ms: u64,
}

/// The answer of a ring without faults, which may need more than one call on a busy machine.
///
/// # Errors
///
/// That the ring did not do `what`, if there is no answer for as long as it may take to heal.
pub fn answered<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, RunError> {
    for _ in 0..LOOKS {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        sleep(LOOK_PAUSE);
    }
    Err(RunError::Ring(what.into()))
}

/// Injects faults into a ring and heals it.
pub struct Nemesis {
    /// The ring.
    pub cluster: Cluster,
    /// The calls that run it.
    pub admin: Admin,
    shared: Arc<Shared>,
    random: Random,
    begun: Nanos,
    /// The faults so far.
    pub history: Vec<Fired>,
}

impl Nemesis {
    /// A nemesis of a ring that has just started.
    #[must_use]
    pub fn new(cluster: Cluster, admin: Admin, shared: Arc<Shared>, seed: u64) -> Self {
        let random = Random::new(seed ^ 0x006e_656d);
        let begun = now_ns();
        let nemesis = Self { cluster, admin, shared, random, begun, history: Vec::new() };
        nemesis.publish(&nemesis.cluster.active());
        nemesis
    }

    /// Tells clients which members there are.
    fn publish(&self, slots: &[usize]) {
        let peer = |slot: &usize| Peer { slot: *slot, url: self.cluster.client_url(*slot) };
        self.shared.set_peers(slots.iter().map(peer).collect());
    }

    /// Lets the faults of one round happen together for a while, then ends them.
    ///
    /// # Errors
    ///
    /// If a fault could not be made or taken back.
    pub fn round(&mut self, faults: &[Fault]) -> Result<(), RunError> {
        let mut active = Vec::new();
        for fault in faults {
            active.push(self.begin(*fault)?);
            let pause = self.random.between(50, 300);
            sleep(Duration::from_millis(pause));
        }
        let hold = self.random.between(600, 1_600);
        self.hold(&mut active, Duration::from_millis(hold))?;
        // A disk that had no effect yet needs members that can write to have one, and an operator's action
        // needs all others to be well.
        active.sort_by_key(|active| match (active.fault, active.fault.class()) {
            (_, Class::Membership | Class::Maintenance) => 2,
            (Fault::SlowDisk | Fault::BrokenDisk, _) => 1,
            _ => 0,
        });
        for active in active {
            let (fault, from, slots) = (active.fault, active.from_ms, active.slots.clone());
            let fired = self.end(active)?;
            let span_ms = (from, self.now_ms());
            self.history.push(Fired { fault, fired, span_ms, slots });
        }
        let rest = self.random.between(300, 900);
        sleep(Duration::from_millis(rest));
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        (now_ns() - self.begun) / 1_000_000
    }

    fn hold(&mut self, active: &mut [Active], time: Duration) -> Result<(), RunError> {
        let end = now_ns() + time.as_nanos() as u64;
        while now_ns() < end {
            let step = self.random.between(50, 300);
            sleep(Duration::from_millis(step));
            for active in &mut *active {
                self.toggle(active)?;
            }
        }
        Ok(())
    }

    /// Lets a fault that comes and goes do so, and an operator's action happen once more.
    fn toggle(&mut self, active: &mut Active) -> Result<(), RunError> {
        match (active.fault, active.slots.first().copied()) {
            (Fault::Strobe, Some(slot)) if active.on => self.cluster.resume(slot).map(drop)?,
            (Fault::Strobe, Some(slot)) => self.cluster.pause(slot).map(drop)?,
            (Fault::Flapping, Some(_)) if active.on => {
                active.fired |= self.cluster.network.heal()? > 0;
            }
            (Fault::Flapping, Some(slot)) => self.isolate(slot)?,
            (Fault::Snapshot | Fault::Defragment | Fault::MoveLeader, _) => {
                active.fired |= self.maintain(active.fault);
            }
            _ => {}
        }
        active.on = !active.on;
        Ok(())
    }

    fn begin(&mut self, fault: Fault) -> Result<Active, RunError> {
        let from_ms = self.now_ms();
        let slots = self.victims(fault);
        let (mut fired, mut writes) = (false, 0);
        match fault {
            Fault::KillAny | Fault::KillLeader | Fault::KillMajority | Fault::KillAll => {
                for slot in &slots {
                    fired |= self.cluster.kill(*slot)?;
                }
            }
            Fault::PauseAny | Fault::PauseLeader | Fault::Strobe => {
                for slot in &slots {
                    fired |= self.cluster.pause(*slot)?;
                }
            }
            Fault::SlowDisk => {
                for slot in &slots {
                    self.cluster.disks[*slot].limit(SLOW_WRITES_PER_S)?;
                    writes += self.cluster.disks[*slot].writes()?;
                }
            }
            Fault::FullDisk => {
                for slot in &slots {
                    self.cluster.expect_exit(*slot);
                    fired |= self.cluster.disks[*slot].fill()?;
                    self.cluster.kill(*slot)?;
                    self.cluster.run(*slot)?;
                }
            }
            Fault::BrokenDisk => {
                for slot in &slots {
                    self.cluster.expect_exit(*slot);
                    self.cluster.disks[*slot].break_medium()?;
                }
            }
            Fault::Replace => self.join()?,
            Fault::Snapshot | Fault::Defragment | Fault::MoveLeader => {
                fired = self.maintain(fault);
            }
            _ => self.cut(fault, &slots)?,
        }
        Ok(Active { fault, slots, fired, on: true, writes, from_ms })
    }

    /// The members that a fault hits.
    fn victims(&mut self, fault: Fault) -> Vec<usize> {
        let mut active = self.cluster.active();
        if fault.class() == Class::Process {
            // A member that another fault took down cannot be taken down again.
            active.retain(|slot| self.cluster.is_running(*slot));
        }
        // In any order, so that the first are any.
        for i in (1..active.len()).rev() {
            active.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        match fault {
            Fault::KillLeader
            | Fault::PauseLeader
            | Fault::IsolateLeader
            | Fault::Deaf
            | Fault::Mute => {
                let leader = self.leader().filter(|leader| active.contains(leader));
                leader.or(active.first().copied()).into_iter().collect()
            }
            Fault::KillMajority => {
                let most = self.cluster.active().len() / 2 + 1;
                active.into_iter().take(most).collect()
            }
            Fault::KillAll | Fault::IsolateAll | Fault::Bridge | Fault::Loss => active,
            _ => active.into_iter().take(1).collect(),
        }
    }

    /// The slot of the leader, once there is one: the precondition of an experiment, not its result.
    ///
    /// # Errors
    ///
    /// If there is none for as long as a ring may take to heal.
    pub fn await_leader(&self) -> Result<usize, RunError> {
        answered("have a leader when all was well", || self.leader())
    }

    /// The slot of the leader now: of those that say to lead, the last one elected.
    pub fn leader(&self) -> Option<usize> {
        let slots = self.cluster.active().into_iter();
        let status = |slot| Some((slot, self.admin.status(&self.cluster.client_url(slot))?));
        let leading = slots.filter_map(status).filter(|(_, status)| leads(status));
        leading.max_by_key(|(_, status)| status.raft_term).map(|(slot, _)| slot)
    }

    /// Kills the leader, and returns its slot.
    ///
    /// # Errors
    ///
    /// If no member leads, or the one that does is not there to be killed.
    pub fn kill_leader(&mut self) -> Result<usize, RunError> {
        let leader = self.await_leader()?;
        self.kill(leader).map(|()| leader)
    }

    /// Kills the member in a slot, which must be running.
    ///
    /// # Errors
    ///
    /// If it is not running, or cannot be killed.
    pub fn kill(&mut self, slot: usize) -> Result<(), RunError> {
        match self.cluster.kill(slot)? {
            true => Ok(()),
            false => Err(RunError::Inconclusive(format!("no member runs in slot {slot} to kill"))),
        }
    }

    fn isolate(&mut self, slot: usize) -> Result<(), RunError> {
        for other in self.cluster.active() {
            if other != slot {
                let (one, other) = (Node::Member(slot), Node::Member(other));
                self.cluster.network.set_both(one, other, Rule::Cut)?;
            }
        }
        Ok(())
    }

    fn cut(&mut self, fault: Fault, slots: &[usize]) -> Result<(), RunError> {
        let first = slots.first().copied().unwrap_or(0);
        let others: Vec<_> = self.cluster.active().into_iter().filter(|s| *s != first).collect();
        match fault {
            Fault::IsolateAll => slots.iter().try_for_each(|slot| self.isolate(*slot)),
            Fault::Deaf => others.iter().try_for_each(|other| {
                let (from, to) = (Node::Member(*other), Node::Member(first));
                self.cluster.network.set(from, to, Rule::Cut)
            }),
            Fault::Mute => others.iter().try_for_each(|other| {
                let (from, to) = (Node::Member(first), Node::Member(*other));
                self.cluster.network.set(from, to, Rule::Cut)
            }),
            Fault::Bridge => match slots {
                [one, other, ..] => {
                    let (one, other) = (Node::Member(*one), Node::Member(*other));
                    self.cluster.network.set_both(one, other, Rule::Cut)
                }
                _ => Ok(()),
            },
            Fault::Loss => {
                let percent = self.random.between(5, 30) as u32;
                for one in slots {
                    for other in slots.iter().filter(|other| *other != one) {
                        let (from, to) = (Node::Member(*one), Node::Member(*other));
                        self.cluster.network.set(from, to, Rule::Loss(percent))?;
                    }
                }
                Ok(())
            }
            Fault::ClientsCut => {
                let (member, clients) = (Node::Member(first), Node::Clients);
                self.cluster.network.set_both(member, clients, Rule::Cut)
            }
            _ => self.isolate(first),
        }
    }

    fn maintain(&mut self, fault: Fault) -> bool {
        let slots = self.cluster.active();
        let url = self.cluster.client_url(*self.random.pick(&slots));
        match fault {
            Fault::Snapshot => self.admin.snapshot(&url).is_some_and(|bytes| bytes > 0),
            Fault::Defragment => self.admin.defragment(&url),
            _ => {
                let Some(leader) = self.leader() else { return false };
                let others: Vec<_> = slots.into_iter().filter(|slot| *slot != leader).collect();
                let target = self.cluster.client_url(*self.random.pick(&others));
                let id = self.admin.status(&target).and_then(|s| Some(s.header?.member_id));
                let leader = self.cluster.client_url(leader);
                id.is_some_and(|id| self.admin.move_leader(&leader, id))
            }
        }
    }

    /// Ends a fault, and returns whether it had an effect.
    fn end(&mut self, active: Active) -> Result<bool, RunError> {
        let mut fired = active.fired;
        match active.fault {
            Fault::PauseAny | Fault::PauseLeader | Fault::Strobe => {
                for slot in &active.slots {
                    self.cluster.resume(*slot)?;
                }
            }
            Fault::SlowDisk => {
                for slot in &active.slots {
                    fired |= self.end_slow_disk(*slot, (active.writes, active.from_ms))?;
                }
            }
            Fault::FullDisk => {
                for slot in &active.slots {
                    self.cluster.disks[*slot].free()?;
                    self.cluster.expect_life(*slot);
                }
            }
            Fault::BrokenDisk => {
                for slot in &active.slots {
                    fired |= self.end_broken_disk(*slot)?;
                }
            }
            Fault::Replace => {
                self.replace()?;
                fired = true;
            }
            Fault::Snapshot | Fault::Defragment | Fault::MoveLeader => {
                // A ring that had no leader all the time could not be maintained; now it can.
                for _ in 0..20 {
                    fired = fired || self.maintain(active.fault);
                    if !fired {
                        sleep(Duration::from_millis(250));
                    }
                }
            }
            Fault::KillAny | Fault::KillLeader | Fault::KillMajority | Fault::KillAll => {}
            _ => fired |= self.cluster.network.heal()? > 0,
        }
        for slot in self.cluster.active() {
            self.cluster.run(slot)?;
        }
        Ok(fired)
    }

    /// Asks `question` of the active members in turn until one says yes.
    fn until(&self, what: &str, question: impl Fn(&Self, &str) -> bool) -> Result<(), RunError> {
        for _ in 0..100 {
            for Peer { url, .. } in self.shared.peers() {
                if question(self, &url) {
                    return Ok(());
                }
            }
            sleep(Duration::from_millis(150));
        }
        Err(RunError::Ring(format!("{what} in time")))
    }

    /// The id of the member in a slot, if the ring knows it.
    fn id_of(&self, url: &str, slot: usize) -> Option<(u64, bool)> {
        let peer_url = self.cluster.store().peer_url(&address(slot));
        let members = self.admin.members(url)?;
        let member = members.into_iter().find(|member| member.peer_urls.contains(&peer_url))?;
        Some((member.id, member.learner))
    }

    /// Adds the member in the spare slot as a learner and starts it.
    fn join(&mut self) -> Result<(), RunError> {
        let Some(slot) = self.cluster.spare() else { return Ok(()) };
        let peer_url = self.cluster.store().peer_url(&address(slot));
        self.until("add a learner", |nemesis, url| {
            nemesis.id_of(url, slot).is_some() || nemesis.admin.add_learner(url, peer_url.clone())
        })?;
        self.cluster.activate(slot);
        self.cluster.run(slot)
    }

    /// Promotes the learner, and removes another member for it.
    fn replace(&mut self) -> Result<(), RunError> {
        let voters: Vec<_> = self.shared.peers().into_iter().map(|peer| peer.slot).collect();
        let Some(new) = self.cluster.active().into_iter().find(|slot| !voters.contains(slot))
        else {
            return Err(RunError::Inconclusive("there is no learner to promote".into()));
        };
        for slot in self.cluster.active() {
            self.cluster.run(slot)?;
        }
        self.until("promote a learner", |nemesis, url| match nemesis.id_of(url, new) {
            Some((_, false)) => true,
            Some((id, true)) => nemesis.admin.promote(url, id),
            None => false,
        })?;
        let old = *self.random.pick(&voters);
        let stay: Vec<_> = self.cluster.active().into_iter().filter(|slot| *slot != old).collect();
        self.publish(&stay);
        self.cluster.expect_exit(old);
        self.until("remove a member", |nemesis, url| match nemesis.admin.members(url) {
            None => false,
            Some(_) => match nemesis.id_of(url, old) {
                Some((id, _)) => nemesis.admin.remove(url, id),
                None => true,
            },
        })?;
        self.cluster.retire(old)
    }

    /// Takes everything back, and waits until all members follow one leader.
    ///
    /// # Errors
    ///
    /// If the ring does not recover in half a minute.
    pub fn heal(&mut self) -> Result<(), RunError> {
        self.cluster.network.heal()?;
        for disk in &self.cluster.disks {
            disk.limit(0)?;
        }
        for _ in 0..LOOKS {
            let mut healthy = Vec::new();
            for slot in self.cluster.active() {
                self.cluster.resume(slot)?;
                self.cluster.run(slot)?;
                let status = self.admin.status(&self.cluster.client_url(slot));
                healthy.push(status.map(|status| status.leader).filter(|leader| *leader != 0));
            }
            if healthy.iter().all(|leader| leader.is_some() && *leader == healthy[0]) {
                return Ok(());
            }
            sleep(LOOK_PAUSE);
        }
        Err(RunError::Ring("recover after all faults were taken back".into()))
    }
}

/// Whether a member says of itself that it leads.
fn leads(status: &satrap_proto::etcdserverpb::StatusResponse) -> bool {
    status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
}
