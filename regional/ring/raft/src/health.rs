//! Monitors the members: raises NOSPACE for a full disk, and CORRUPT for a state that differs from
//! the others'.
//!
//! A full disk must be detected while requests that free space still have room, and a member whose
//! memory, disk or code failed must stop answering. So every member watches its own disk, and the
//! leader compares the digests that members recorded of their whole state after the same entries.
//! Each raises alarms for the faults that it finds. An alarm is part of the replicated state: all
//! members refuse writes until an operator clears it or there is room again.
//!
//! # Invariants
//!
//! - **HEALTH-1** Digests are compared only at equal indices.
//! - **HEALTH-2** A member that differs from a majority is corrupt. Without a majority the leader
//!   cannot tell which member is right, and all that differ are corrupt.
//! - **HEALTH-3** NOSPACE of a member is cleared automatically once its disk and its quota have
//!   room, and when the member is removed (STATE-6 of the applied state). This module
//!   raises it for a full disk; for a full quota, the service that refuses the client raises it.

pub mod rules;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use satrap_ring_api::backend::Unavailable;
use satrap_ring_core::{
    Request,
    alarm::{AlarmKind, AlarmMember, AlarmRequest},
};
use satrap_ring_storage::Reserve;
use tokio::time::{MissedTickBehavior, interval};

use self::rules::{Change, Raised, Space};
use super::{
    node::Node,
    platform::{Platform, Real},
    proposals::Proposer,
    types::MemberName,
};

/// The time between checks of disks and digests.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time limit for a member's answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Monitors the members, this one's disk included.
pub struct Health<P: Platform = Real> {
    node: Node<P>,
    proposer: Proposer<P>,
    reserve: Arc<Reserve>,
}

impl<P: Platform> Clone for Health<P> {
    fn clone(&self) -> Self {
        let Self { node, proposer, reserve } = self;
        Self { node: node.clone(), proposer: proposer.clone(), reserve: reserve.clone() }
    }
}

impl<P: Platform> Health<P> {
    /// The monitor of `node`, whose disk has `reserve`.
    #[must_use]
    pub fn new(node: Node<P>, proposer: Proposer<P>, reserve: Arc<Reserve>) -> Self {
        Self { node, proposer, reserve }
    }

    /// Runs the checks. Never ends.
    pub async fn watch(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                tracing::info!(%error, "could not raise or clear an alarm; trying again");
            }
        }
    }

    async fn look(&self) -> Result<(), Unavailable> {
        self.check_space().await?;
        if self.node.leads() { self.compare().await } else { Ok(()) }
    }

    /// HEALTH-3
    async fn check_space(&self) -> Result<(), Unavailable> {
        let Some(member) = self.node.own_id() else { return Ok(()) };
        let alarm = AlarmMember { kind: AlarmKind::NoSpace, member };
        let disk_takes_writes = match self.reserve.space() {
            Ok(space) => space.takes_writes(),
            Err(error) => {
                tracing::error!(%error, "cannot read the free space of the disk");
                return Ok(());
            }
        };
        let (raised, space) = self.node.read(|keyspace| {
            let is_raised = keyspace.alarms().list(Some(alarm.kind)).any(|a| a == alarm);
            let raised = if is_raised { Raised::Yes } else { Raised::No };
            let quota_bytes_max = keyspace.quotas().total_bytes_max();
            let held_bytes = keyspace.store().sizes().held_bytes;
            (raised, Space { disk_takes_writes, held_bytes, quota_bytes_max })
        });
        let request = match rules::no_space(raised, space) {
            None => return Ok(()),
            Some(Change::Raise) => {
                tracing::error!(
                    "the disk is full: raising NOSPACE; the ring refuses writes until there is room"
                );
                AlarmRequest::Activate(alarm)
            }
            Some(Change::Clear) => {
                tracing::info!("the disk and the quota have room again: clearing NOSPACE");
                AlarmRequest::Deactivate(alarm)
            }
        };
        self.proposer.ask(Request::Alarm(request)).await?.ok();
        Ok(())
    }

    /// Asks every member for its digests, and raises CORRUPT for those that differ.
    async fn compare(&self) -> Result<(), Unavailable> {
        let nodes = self.node.nodes();
        let others = nodes.iter().filter(|(name, _)| *name != self.node.name);
        let ask = |(name, _): &(MemberName, _)| {
            let (name, sender) = (name.clone(), self.node.network.sender(name.clone()));
            async move { sender.digests(ASK_TIMEOUT).await.ok().map(|taken| (name, taken)) }
        };
        let asked = futures::future::join_all(others.map(ask)).await;
        let mut taken: BTreeMap<_, _> = asked.into_iter().flatten().collect();
        taken.insert(self.node.name.clone(), self.node.shared.digests());
        for name in rules::corrupt(&taken) {
            let Some((_, node)) = nodes.iter().find(|(known, _)| *known == name) else { continue };
            let alarm = AlarmMember { kind: AlarmKind::Corrupt, member: node.id };
            if self
                .node
                .read(|keyspace| keyspace.alarms().list(Some(alarm.kind)).any(|a| a == alarm))
            {
                continue;
            }
            tracing::error!(member = %name, "the member's state differs from the ring's: raising CORRUPT; replace the member");
            self.proposer.ask(Request::Alarm(AlarmRequest::Activate(alarm))).await?.ok();
        }
        Ok(())
    }
}
