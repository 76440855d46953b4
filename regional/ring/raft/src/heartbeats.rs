//! The followers that receive a heartbeat at once, and those that receive it a moment later.
//!
//! Each linearizable read has the leader send a heartbeat to every follower, and a majority of the answers
//! is enough. So the followers that complete a quorum receive it at once: those that answered before the
//! others did. The others receive at most one heartbeat in [`HEARTBEAT_SPACING`]; openraft lets heartbeats
//! that gather meanwhile leave as one.
//!
//! # Invariants
//!
//! - **HEARTBEAT-1** Every follower receives a heartbeat, at most [`HEARTBEAT_SPACING`] late; none is answered
//!   without having been sent.
//! - **HEARTBEAT-2** A follower that fails to answer, or answers later than one that was asked after it,
//!   is no longer among those that receive at once.
//! - **HEARTBEAT-3** While the membership changes, or does not count this leader, all receive at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::time::{Instant, sleep_until};

use super::{
    locks::lock,
    types::{MemberName, Membership},
};
use crate::limits::HEARTBEAT_SPACING;

/// The order in which the followers of one leader receive heartbeats. Clones share it.
#[derive(Clone, Default)]
pub struct HeartbeatOrder(Arc<Mutex<Order>>);

#[derive(Default)]
struct Order {
    /// The voters but for this member, those that receive at once first.
    voters: Vec<MemberName>,
    /// So many of them receive at once.
    prompt: usize,
    /// Heartbeats begun so far.
    begun: u64,
    /// Which one each follower has not answered yet.
    unanswered: BTreeMap<MemberName, u64>,
    /// When each follower's last one was sent.
    sent: BTreeMap<MemberName, Instant>,
}

/// One heartbeat under way to one follower. Dropped unanswered, it has failed (HEARTBEAT-2).
pub struct Heartbeat {
    order: HeartbeatOrder,
    target: MemberName,
    number: u64,
    answered: bool,
}

impl HeartbeatOrder {
    /// `own` leads, or may, the members of `membership`.
    pub fn follow(&self, own: &MemberName, membership: &Membership) {
        let mut order = lock(&self.0);
        let is_new = |name: &MemberName| !order.voters.contains(name);
        let voters: Vec<_> = membership.voter_ids().filter(|name| name != own).collect();
        let newcomers: Vec<_> = voters.iter().filter(|name| is_new(name)).cloned().collect();
        order.voters.retain(|name| voters.contains(name));
        order.voters.extend(newcomers);
        order.sent.retain(|name, _| voters.contains(name));
        order.prompt = match membership.get_joint_config().as_slice() {
            // With this member itself, a quorum.
            [config] if config.contains(own) => config.len() / 2,
            // HEARTBEAT-3
            _ => voters.len(),
        };
    }

    /// Waits until it is the turn of `target` to receive the next heartbeat.
    pub async fn turn(&self, target: &MemberName) -> Heartbeat {
        let (number, due) = {
            let mut order = lock(&self.0);
            order.begun += 1;
            let number = order.begun;
            order.unanswered.insert(target.clone(), number);
            (number, order.due(target))
        };
        let (order, target, answered) = (self.clone(), target.clone(), false);
        let heartbeat = Heartbeat { order, target, number, answered };
        if let Some(due) = due {
            sleep_until(due).await;
        }
        lock(&self.0).sent.insert(heartbeat.target.clone(), Instant::now());
        heartbeat
    }
}

impl Order {
    /// When `target` may receive its next heartbeat, unless at once.
    fn due(&self, target: &MemberName) -> Option<Instant> {
        let place = self.voters.iter().position(|voter| voter == target);
        let prompt = place.is_some_and(|place| place < self.prompt);
        let next = *self.sent.get(target)? + HEARTBEAT_SPACING;
        (!prompt && next > Instant::now()).then_some(next)
    }

    /// HEARTBEAT-2
    fn answered(&mut self, target: &MemberName, number: u64) {
        self.unanswered.remove(target);
        let Some(place) = self.voters.iter().position(|voter| voter == target) else { return };
        let is_late =
            |voter: &MemberName| self.unanswered.get(voter).is_some_and(|asked| *asked < number);
        let late = self.voters.iter().take(self.prompt).position(is_late);
        if let Some(late) = late
            && place >= self.prompt
        {
            self.voters.swap(late, place);
        }
    }

    /// HEARTBEAT-2
    fn failed(&mut self, target: &MemberName) {
        self.unanswered.remove(target);
        if let Some(place) = self.voters.iter().position(|voter| voter == target) {
            let last = self.voters.remove(place);
            self.voters.push(last);
        }
    }
}

impl Heartbeat {
    /// The follower answered it.
    pub fn answered(mut self) {
        self.answered = true;
        lock(&self.order.0).answered(&self.target, self.number);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.order.0).failed(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tokio::time::advance;

    use super::*;
    use crate::types::MemberNode;

    fn name(name: &str) -> MemberName {
        MemberName::new(name).unwrap()
    }

    /// `a` leads those members.
    fn order(configs: &[&[&str]]) -> HeartbeatOrder {
        let configs: Vec<BTreeSet<_>> =
            configs.iter().map(|config| config.iter().map(|n| name(n)).collect()).collect();
        let nodes: BTreeMap<_, _> =
            configs.iter().flatten().map(|n| (n.clone(), MemberNode::default())).collect();
        let membership = openraft::Membership::new(configs, nodes).unwrap();
        let order = HeartbeatOrder::default();
        order.follow(&name("a"), &Membership::new(None, membership));
        order
    }

    /// How long each follower waits for a heartbeat that follows another at once; all answer.
    async fn waits(order: &HeartbeatOrder, followers: &[&str]) -> Vec<Duration> {
        let mut waits = Vec::new();
        for follower in followers {
            order.turn(&name(follower)).await.answered();
        }
        for follower in followers {
            let began = Instant::now();
            order.turn(&name(follower)).await.answered();
            waits.push(began.elapsed());
            // The next one is not to gain by the wait of this one.
            for follower in followers {
                lock(&order.0).sent.insert(name(follower), Instant::now());
            }
        }
        waits
    }

    const AT_ONCE: Duration = Duration::ZERO;

    #[tokio::test(start_paused = true)]
    async fn as_many_as_complete_a_quorum_receive_it_at_once() {
        let three = order(&[&["a", "b", "c"]]);
        let late = |wait: &Duration| *wait >= HEARTBEAT_SPACING;
        let heard = waits(&three, &["b", "c", "learner"]).await;
        assert_eq!(heard[0], AT_ONCE);
        assert!(heard[1..].iter().all(late), "{heard:?}");
        let five = waits(&order(&[&["a", "b", "c", "d", "e"]]), &["b", "c", "d", "e"]).await;
        assert_eq!(five[..2], [AT_ONCE; 2]);
        assert!(five[2..].iter().all(late), "{five:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_after_a_pause_is_never_late() {
        let order = order(&[&["a", "b", "c"]]);
        order.turn(&name("c")).await.answered();
        advance(HEARTBEAT_SPACING).await;
        let began = Instant::now();
        order.turn(&name("c")).await.answered();
        assert_eq!(began.elapsed(), AT_ONCE);
    }

    /// HEARTBEAT-3
    #[tokio::test(start_paused = true)]
    async fn all_receive_it_at_once_while_the_membership_changes() {
        let joint = order(&[&["a", "b", "c"], &["a", "c", "d"]]);
        assert_eq!(waits(&joint, &["b", "c", "d"]).await, [AT_ONCE; 3]);
        let foreign = order(&[&["b", "c"]]);
        assert_eq!(waits(&foreign, &["b", "c"]).await, [AT_ONCE; 2]);
    }

    /// HEARTBEAT-2
    #[tokio::test(start_paused = true)]
    async fn a_follower_that_is_silent_or_fails_gives_way() {
        let silent = order(&[&["a", "b", "c"]]);
        let _silent = silent.turn(&name("b")).await;
        silent.turn(&name("c")).await.answered();
        assert_eq!(lock(&silent.0).voters, [name("c"), name("b")]);

        let failing = order(&[&["a", "b", "c"]]);
        drop(failing.turn(&name("b")).await);
        assert_eq!(lock(&failing.0).voters, [name("c"), name("b")]);

        let slower = order(&[&["a", "b", "c"]]);
        let second = slower.turn(&name("c")).await;
        let first = slower.turn(&name("b")).await;
        second.answered();
        first.answered();
        assert_eq!(lock(&slower.0).voters, [name("b"), name("c")], "it was asked first");
    }
}
