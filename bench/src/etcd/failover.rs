//! From the death of a leader to the next acknowledged write.

use std::time::Duration;

use satrap_host::clock;
use satrap_proto::etcdserverpb::PutRequest;
use tokio::time::{sleep, timeout};

use super::{
    Args, Bench, Cluster,
    table::{head, row},
    wire::{Channel, frame},
};

/// How long one attempt waits for an answer before it asks another member.
const ATTEMPT: Duration = Duration::from_millis(100);

/// Kills leaders of both systems and prints how long writes were refused.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    let mut gaps = Vec::new();
    for system in args.systems()? {
        let cluster = Cluster::start(&system).await?;
        let mut of_system = Vec::new();
        for kill in 0..args.kills {
            let gap = cluster.while_all_run(one_kill(&cluster, kill)).await?;
            of_system.push(gap.as_secs_f64() * 1e3);
        }
        of_system.sort_by(f64::total_cmp);
        gaps.push(of_system);
    }
    head(
        &format!("failover under load, {} kills, ms until the next acknowledged write", args.kills),
        1,
    );
    let at = |gaps: &[f64], percent: usize| gaps[(gaps.len() * percent).div_ceil(100).max(1) - 1];
    for (percent, goal) in [(50, ""), (99, "satrap <= 1000 ms"), (100, "")] {
        row(&format!("p{percent}"), at(&gaps[0], percent), at(&gaps[1], percent), goal);
    }
    Ok(())
}

async fn one_kill(cluster: &Cluster, kill: usize) -> Bench<Duration> {
    let leader = cluster.leader().await?;
    for write in 0..200 {
        put(cluster, leader, kill, write).await?;
    }
    cluster.kill(leader).await?;
    let died = clock::monotonic();
    let survivors: Vec<_> = (0..cluster.len()).filter(|member| *member != leader).collect();
    for attempt in 0.. {
        let member = survivors[attempt % survivors.len()];
        if let Ok(Ok(())) = timeout(ATTEMPT, put(cluster, member, kill, 200 + attempt)).await {
            break;
        }
    }
    let gap = clock::monotonic() - died;
    cluster.launch(leader)?;
    until_caught_up(cluster, leader).await?;
    Ok(gap)
}

async fn put(cluster: &Cluster, member: usize, kill: usize, write: usize) -> Bench<()> {
    let (channel, driver) = Channel::connect(cluster.address(member)).await?;
    let key = format!("failover/{kill}/{write}").into_bytes().into();
    let message = frame(&PutRequest { key, value: vec![7; 256].into(), ..PutRequest::default() });
    tokio::select! {
        answer = channel.call("/etcdserverpb.KV/Put", message) => answer.map(drop),
        ended = driver => Err(format!("the connection ended: {ended:?}").into()),
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
