//! From the death of a leader under load to the next acknowledged write.
//!
//! Clients write in a closed loop, on all members, before, while and after the leader is killed. A client
//! whose member fails or is silent goes on at the next one, as etcd's own clients do. The first write
//! that began after the kill and was acknowledged ends the outage: without a new leader none can be.

use std::{cell::Cell, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use satrap_proto::etcdserverpb::PutRequest;
use satrap_runtime::clock;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Args, Bench, Cluster,
    table::{head, row},
    wire::{Channel, frame},
};

/// Clients that write when the leader is killed.
const CLIENTS: usize = 16;
/// How long they have written by then.
const LOADED: Duration = Duration::from_millis(500);
/// How long one attempt waits for an answer before the client asks another member.
const ATTEMPT: Duration = Duration::from_millis(100);
/// Between attempts at a member that refuses at once, as a dead one does.
const PAUSE: Duration = Duration::from_millis(2);

/// The state that the clients share during one kill.
struct Load<'a> {
    cluster: &'a Cluster,
    kill: usize,
    acknowledged: Cell<u64>,
    died: Cell<Option<Duration>>,
    /// When the first write that began after the kill was acknowledged.
    recovered: watch::Sender<Option<Duration>>,
}

/// Kills leaders of both systems in turn and prints how long no write was acknowledged.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    let systems = args.systems()?;
    let clusters = [Cluster::start(&systems[0]).await?, Cluster::start(&systems[1]).await?];
    let mut gaps: [Vec<f64>; 2] = Default::default();
    for kill in 0..args.kills {
        for (cluster, gaps) in clusters.iter().zip(&mut gaps) {
            let gap = cluster.while_all_run(one_kill(cluster, kill)).await?;
            gaps.push(gap.as_secs_f64() * 1e3);
        }
    }
    for gaps in &mut gaps {
        gaps.sort_by(f64::total_cmp);
    }
    let title = format!("leader killed under load of {CLIENTS} clients, {} kills, ms", args.kills);
    head(&title, 1);
    let at = |gaps: &[f64], percent: usize| gaps[(gaps.len() * percent).div_ceil(100).max(1) - 1];
    for (percent, goal) in [(50, ""), (99, "satrap <= 1000 ms"), (100, "")] {
        row(&format!("p{percent}"), at(&gaps[0], percent), at(&gaps[1], percent), goal);
    }
    Ok(())
}

async fn one_kill(cluster: &Cluster, kill: usize) -> Bench<Duration> {
    let (recovered, mut first) = watch::channel(None);
    let load = Load { cluster, kill, acknowledged: Cell::new(0), died: Cell::new(None), recovered };
    let leader = cluster.leader().await?;
    let work = async {
        sleep(LOADED).await;
        if load.acknowledged.get() == 0 {
            return Err("no write was acknowledged before the leader was killed".into());
        }
        cluster.kill(leader).await?;
        let died = clock::monotonic();
        load.died.set(Some(died));
        let recovered = *first.wait_for(Option::is_some).await?;
        Bench::Ok(recovered.ok_or("waited for it")? - died)
    };
    let mut clients: FuturesUnordered<_> = (0..CLIENTS).map(|n| load.client(n)).collect();
    let gap = tokio::select! {
        gap = work => gap?,
        _ = clients.next() => return Err("a client stopped writing".into()),
    };
    drop(clients);
    cluster.launch(leader)?;
    until_caught_up(cluster, leader).await?;
    Ok(gap)
}

impl Load<'_> {
    /// Writes until it is dropped, at one member as long as that answers.
    async fn client(&self, number: usize) {
        for member in (0..self.cluster.len()).cycle().skip(number) {
            // Why a member did not answer makes no difference: the next one is asked.
            let _ = self.write_at(member).await;
            sleep(PAUSE).await;
        }
    }

    /// Writes at `member` until an attempt fails.
    async fn write_at(&self, member: usize) -> Bench<()> {
        let connect = Channel::connect(self.cluster.address(member));
        let (channel, driver) = timeout(ATTEMPT, connect).await??;
        let write = async {
            loop {
                let began = clock::monotonic();
                timeout(ATTEMPT, self.put(&channel)).await??;
                if self.died.get().is_some_and(|died| began >= died) {
                    self.recovered.send_if_modified(|at| {
                        let is_first = at.is_none();
                        *at = at.or(Some(clock::monotonic()));
                        is_first
                    });
                }
            }
        };
        tokio::select! {
            failed = write => failed,
            ended = driver => Err(format!("the connection ended: {ended:?}").into()),
        }
    }

    async fn put(&self, channel: &Channel) -> Bench<()> {
        let number = self.acknowledged.get();
        let key = format!("failover/{}/{}", self.kill, number % 1_000).into_bytes().into();
        let message =
            frame(&PutRequest { key, value: vec![7; 256].into(), ..PutRequest::default() });
        channel.call("/etcdserverpb.KV/Put", message).await?;
        self.acknowledged.set(number + 1);
        Ok(())
    }
}

/// A ring of three that lacks one member must not lose another.
async fn until_caught_up(cluster: &Cluster, member: usize) -> Bench<()> {
    let leader = cluster.leader().await?;
    loop {
        let wanted = cluster.status(leader).await?.raft_applied_index;
        if cluster.status(member).await.is_ok_and(|s| s.raft_applied_index >= wanted) {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
