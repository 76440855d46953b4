//! Memory and delay of many watches: on one key, and on keys of their own.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use h2::SendStream;
use satrap_proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use satrap_runtime::clock;
use tokio::sync::{mpsc, watch};

use super::{
    Args, Bench, Cluster, System,
    load::{connect, driven},
    table::median,
    wire::{Channel, Incoming, frame, send},
};

const EVENTS: usize = 20;

/// One arrangement of watches.
#[derive(Clone, Copy, Debug)]
struct Arrangement {
    what: &'static str,
    connections: usize,
    watches_each: usize,
    one_key: bool,
}

const ARRANGEMENTS: [Arrangement; 2] = [
    Arrangement {
        what: "10 000 watches of one key",
        connections: 100,
        watches_each: 100,
        one_key: true,
    },
    Arrangement {
        what: "50 000 watches of keys of their own",
        connections: 100,
        watches_each: 500,
        one_key: false,
    },
];

/// Measures both arrangements in both systems.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    for arrangement in ARRANGEMENTS {
        let rows =
            ["memory per watch, KB", "event until the last watcher has it, ms"].map(|w| (w, "< 1"));
        let fresh = async |system: &System| {
            let cluster = Cluster::start(system).await?;
            cluster.while_all_run(measure(&cluster, arrangement)).await
        };
        args.beside(arrangement.what, rows, fresh).await?;
    }
    Ok(())
}

fn key(number: usize) -> Bytes {
    format!("watched/{number:08}").into_bytes().into()
}

async fn measure(cluster: &Cluster, arrangement: Arrangement) -> Bench<[f64; 2]> {
    let Arrangement { connections, watches_each, one_key, .. } = arrangement;
    let leader = cluster.leader().await?;
    let (channels, drivers) = connect(cluster.address(leader), connections + 1).await?;
    let (writer, watchers) = channels.split_first().ok_or("no connections")?;
    let (arrived, mut arrivals) = mpsc::channel::<()>(1024);
    let created = watch::Sender::new(0_usize);
    let streams = RefCell::new(Vec::new());
    driven(drivers, async {
        let before = cluster.memory(leader);
        let follow = |(n, channel): (usize, &Channel)| {
            let first = if one_key { None } else { Some(n * watches_each) };
            let channel = channel.clone();
            let (arrived, created, streams) = (arrived.clone(), &created, &streams);
            async move {
                let incoming = open(&channel, watches_each, first, created, streams).await?;
                deliver(incoming, &arrived).await
            }
        };
        let mut following: FuturesUnordered<_> = watchers.iter().enumerate().map(follow).collect();
        let mut ready = created.subscribe();
        let drive = async {
            while let Some(ended) = following.next().await {
                ended?;
            }
            Err("watches ended".into())
        };
        let script = async {
            ready.wait_for(|n| *n == connections * watches_each).await?;
            let bytes = cluster.memory(leader).saturating_sub(before) as f64;
            let expected = if one_key { connections * watches_each } else { 1 };
            let mut delays = Vec::new();
            for event in 0..EVENTS {
                let number = if one_key { 0 } else { event * 37 % (connections * watches_each) };
                let began = clock::monotonic();
                let put = PutRequest {
                    key: key(number),
                    value: vec![1; 200].into(),
                    ..PutRequest::default()
                };
                writer.call("/etcdserverpb.KV/Put", frame(&put)).await?;
                for _ in 0..expected {
                    arrivals.recv().await.ok_or("watches ended")?;
                }
                delays.push((clock::monotonic() - began).as_secs_f64() * 1e3);
            }
            Ok([bytes / 1024.0 / (connections * watches_each) as f64, median(delays)])
        };
        tokio::select! {
            done = script => done,
            ended = drive => ended,
        }
    })
    .await
}

async fn open(
    channel: &Channel,
    watches: usize,
    first: Option<usize>,
    created: &watch::Sender<usize>,
    streams: &RefCell<Vec<SendStream<Bytes>>>,
) -> Bench<Incoming> {
    let (mut sending, response) = channel.stream("/etcdserverpb.Watch/Watch").await?;
    for n in 0..watches {
        let key = key(first.map_or(0, |first| first + n));
        let create = WatchCreateRequest { key, ..WatchCreateRequest::default() };
        let union = Some(RequestUnion::CreateRequest(create));
        send(&mut sending, frame(&WatchRequest { request_union: union })).await?;
    }
    let mut incoming = Incoming::new(response.await?.into_body());
    for _ in 0..watches {
        let answer: WatchResponse = incoming.next().await?.ok_or("the stream ended")?;
        if !answer.created || answer.canceled {
            return Err(format!("not created: {answer:?}").into());
        }
        created.send_modify(|n| *n += 1);
    }
    // Dropping it would end the stream.
    streams.borrow_mut().push(sending);
    Ok(incoming)
}

async fn deliver(mut incoming: Incoming, arrived: &mpsc::Sender<()>) -> Bench<()> {
    while let Some(answer) = incoming.next::<WatchResponse>().await? {
        for _ in &answer.events {
            arrived.send(()).await?;
        }
    }
    Err(format!("a watch stream ended within {:?}", Duration::MAX).into())
}
