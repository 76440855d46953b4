//! Restart and snapshot with many keys.

use std::time::Duration;

use futures::StreamExt as _;
use satrap_proto::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, RequestOp, SnapshotRequest, SnapshotResponse,
    TxnRequest, request_op::Request,
};
use satrap_runtime::clock;
use tokio::time::sleep;

use super::{
    Args, Bench, Cluster,
    load::{connect, driven},
    wire::{Channel, Incoming, frame, send},
};

const VALUE_BYTES: usize = 256;
/// Puts in one transaction: etcd's limit.
const TXN_PUTS: u64 = 128;

/// Fills both systems with `keys` keys and prints how long a member takes to restart, to stream a
/// snapshot, and how much memory it needs.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    let rows = ["restart until it serves, s", "snapshot streamed, s", "memory, MB"];
    let title = format!("{} keys of 256 B", args.keys);
    args.beside(&title, rows.map(|what| (what, "< 1")), async |system| {
        let cluster = Cluster::start(system).await?;
        cluster.while_all_run(measure(&cluster, args.keys)).await
    })
    .await
}

async fn measure(cluster: &Cluster, keys: u64) -> Bench<[f64; 3]> {
    fill(cluster, 0, keys).await?;
    let leader = cluster.leader().await?;
    let memory = cluster.memory(leader) as f64 / 1e6;
    let snapshot = snapshot(cluster, leader).await?.as_secs_f64();
    let follower = (leader + 1) % cluster.len();
    // Lets the member write a checkpoint, as a member that has run for a while has.
    sleep(Duration::from_secs(5)).await;
    cluster.kill(follower).await?;
    let began = clock::monotonic();
    cluster.launch(follower)?;
    until_it_serves(cluster, follower, keys).await?;
    Ok([(clock::monotonic() - began).as_secs_f64(), snapshot, memory])
}

/// Writes keys `from..to`, in transactions.
///
/// # Errors
///
/// If a write fails.
pub async fn fill(cluster: &Cluster, from: u64, to: u64) -> Bench<()> {
    let address = cluster.address(cluster.leader().await?);
    let (channels, drivers) = connect(address, 8).await?;
    driven(drivers, async {
        let txn = |first: u64| {
            let put = |n: u64| RequestOp {
                request: Some(Request::RequestPut(PutRequest {
                    key: format!("scale/{n:012}").into_bytes().into(),
                    value: vec![u8::try_from(n % 251).unwrap_or(0); VALUE_BYTES].into(),
                    ..PutRequest::default()
                })),
            };
            let success = (first..to.min(first + TXN_PUTS)).map(put).collect();
            let message = frame(&TxnRequest { success, ..TxnRequest::default() });
            let channel = &channels[(first / TXN_PUTS) as usize % channels.len()];
            async move { channel.call("/etcdserverpb.KV/Txn", message).await }
        };
        let firsts = (from..to).step_by(TXN_PUTS as usize);
        let mut txns = futures::stream::iter(firsts.map(txn)).buffer_unordered(32);
        while let Some(done) = txns.next().await {
            done?;
        }
        Ok(())
    })
    .await
}

async fn snapshot(cluster: &Cluster, member: usize) -> Bench<Duration> {
    let (channel, driver) = Channel::connect(cluster.address(member)).await?;
    driven(vec![driver], async {
        let began = clock::monotonic();
        let (mut sending, response) = channel.stream("/etcdserverpb.Maintenance/Snapshot").await?;
        send(&mut sending, frame(&SnapshotRequest {})).await?;
        sending.send_data(bytes::Bytes::new(), true)?;
        let mut incoming = Incoming::new(response.await?.into_body());
        let mut bytes = 0;
        while let Some(part) = incoming.next::<SnapshotResponse>().await? {
            bytes += part.blob.len();
        }
        if bytes == 0 {
            return Err("an empty snapshot".into());
        }
        Ok(clock::monotonic() - began)
    })
    .await
}

/// Its own state, without asking the others: a read that the restarted member answers alone.
async fn until_it_serves(cluster: &Cluster, member: usize, keys: u64) -> Bench<()> {
    let deadline = clock::monotonic() + Duration::from_secs(120);
    while clock::monotonic() < deadline {
        if let Ok(count) = count(cluster, member).await
            && count >= i64::try_from(keys)?
        {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Err("the restarted member does not serve".into())
}

async fn count(cluster: &Cluster, member: usize) -> Bench<i64> {
    let (channel, driver) = Channel::connect(cluster.address(member)).await?;
    let request = RangeRequest {
        key: b"scale/".to_vec().into(),
        range_end: b"scale0".to_vec().into(),
        count_only: true,
        serializable: true,
        ..RangeRequest::default()
    };
    driven(vec![driver], async {
        let answer: RangeResponse = channel.unary("/etcdserverpb.KV/Range", &request).await?;
        Ok(answer.count)
    })
    .await
}
