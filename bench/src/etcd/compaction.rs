//! Puts while a million revisions are compacted and the space is given back.

use std::time::Duration;

use satrap_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse, PutRequest,
};
use satrap_runtime::clock;
use tokio::time::sleep;

use super::{
    Args, Bench, Cluster,
    load::{Achieved, Load, driven, unary},
    scale::fill,
    wire::{Channel, frame},
};

const CLIENTS: usize = 64;
const WINDOW: Duration = Duration::from_secs(10);

/// Prints the p99 of puts before, and during compaction and defragmentation.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    let rows = [
        ("put p99 ms before", ""),
        ("put p99 ms during", ""),
        ("during over before", "satrap <= 2"),
        ("longest put ms during", ""),
        ("compaction and defragmentation, s", ""),
    ];
    let title = format!("compaction and defragmentation of {} keys written twice", args.keys / 2);
    args.beside(&title, rows, async |system| {
        let cluster = Cluster::start(system).await?;
        cluster.while_all_run(measure(&cluster, args.keys)).await
    })
    .await
}

async fn measure(cluster: &Cluster, keys: u64) -> Bench<[f64; 5]> {
    // Every key twice: half of the revisions are history.
    fill(cluster, 0, keys / 2).await?;
    fill(cluster, 0, keys / 2).await?;
    let leader = cluster.leader().await?;
    let quiet = load(cluster, leader).await?;
    let (busy, took) = futures::future::try_join(load(cluster, leader), upkeep(cluster)).await?;
    let ms = |achieved: &Achieved| achieved.percentile(99).as_secs_f64() * 1e3;
    let (before, during) = (ms(&quiet), ms(&busy));
    Ok([before, during, during / before, ms_max(&busy), took.as_secs_f64()])
}

fn ms_max(achieved: &Achieved) -> f64 {
    achieved.latencies.last().copied().unwrap_or_default().as_secs_f64() * 1e3
}

async fn load(cluster: &Cluster, member: usize) -> Bench<Achieved> {
    let value = bytes::Bytes::from(vec![3; 256]);
    let next = |n: u64| {
        let key = format!("load/{:08}", n % 100_000).into_bytes().into();
        frame(&PutRequest { key, value: value.clone(), ..PutRequest::default() })
    };
    let load = Load { clients: CLIENTS, duration: WINDOW };
    unary(cluster.address(member), "/etcdserverpb.KV/Put", load, next).await
}

/// Compacts at once and then defragments every member; returns how long that took.
async fn upkeep(cluster: &Cluster) -> Bench<Duration> {
    let leader = cluster.leader().await?;
    sleep(Duration::from_secs(1)).await;
    let began = clock::monotonic();
    let revision = cluster.status(leader).await?.header.map_or(0, |header| header.revision);
    let (channel, driver) = Channel::connect(cluster.address(leader)).await?;
    driven(vec![driver], async {
        let request = CompactionRequest { revision, physical: false };
        let _: CompactionResponse = channel.unary("/etcdserverpb.KV/Compact", &request).await?;
        Ok(())
    })
    .await?;
    for member in 0..cluster.len() {
        let (channel, driver) = Channel::connect(cluster.address(member)).await?;
        driven(vec![driver], async {
            let path = "/etcdserverpb.Maintenance/Defragment";
            let _: DefragmentResponse = channel.unary(path, &DefragmentRequest {}).await?;
            Ok(())
        })
        .await?;
    }
    Ok(clock::monotonic() - began)
}
