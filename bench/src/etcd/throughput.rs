//! Puts and reads at 1, 64, 256 and 1 000 clients, all on the leader, in both systems.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use satrap_proto::{
    etcdserverpb::{PutRequest, RangeRequest},
    v1::{GetRequest, PutStreamRequest, PutStreamResponse, ReadMode, StreamedPut},
};
use satrap_runtime::{clock, rng};

use super::{
    Args, Bench, Cluster, System,
    load::{Achieved, Load, connect, connections, driven, unary},
    table::{head, median, row},
    wire::{Channel, Incoming, frame, send},
};

/// Calls under way, unless others are asked for.
pub const CLIENTS: [usize; 4] = [1, 64, 256, 1_000];
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
/// Puts in one message of a stream.
const STREAM_BATCH: usize = 32;

/// The call that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Operation {
    /// One call a key.
    Put,
    /// Linearizable, of one key.
    Range,
    /// Etcd has none, so this is compared with etcd's linearizable range.
    LeaseRead,
    /// Etcd has none, so this is compared with etcd's unary put.
    StreamPut,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 4] = [Self::Put, Self::Range, Self::LeaseRead, Self::StreamPut];

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put 256 B",
            Self::Range => "linearizable range",
            Self::LeaseRead => "lease read",
            Self::StreamPut => "streaming put 256 B",
        }
    }

    /// The goal for the throughput.
    fn goal(self, clients: usize) -> &'static str {
        match (self, clients) {
            (Self::Put, 256) => ">= 4",
            (Self::Range, _) => ">= 3",
            (Self::LeaseRead, _) => ">= 6",
            (Self::StreamPut, 2..) => ">= 8",
            _ => "",
        }
    }
}

fn key(number: u64) -> Vec<u8> {
    // Scattered over the keyspace, and the same for both systems.
    format!("{:016x}", (number % KEYS).wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes()
}

fn value() -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    rng::fill(&mut value);
    value.into()
}

fn put_message(number: u64, value: &Bytes) -> Bytes {
    frame(&PutRequest { key: key(number).into(), value: value.clone(), ..PutRequest::default() })
}

/// One measurement of one system.
struct Measured {
    rate: f64,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Measures everything, the systems in turn, and prints the tables.
///
/// # Errors
///
/// If anything fails.
pub async fn run(args: &Args) -> Bench<()> {
    let systems = args.systems()?;
    println!("{} against {}", systems[1].release(), systems[0].release());
    for &operation in &args.operations {
        // Fresh ones: what one operation left behind is no burden of the next.
        let clusters = [Cluster::start(&systems[0]).await?, Cluster::start(&systems[1]).await?];
        for cluster in &clusters {
            cluster.while_all_run(preload(cluster)).await?;
        }
        head(operation.name(), args.rounds);
        for &clients in &args.clients {
            let load = Load { clients, duration: Duration::from_secs(args.seconds) };
            let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
            for _ in 0..args.rounds {
                for ((system, cluster), measured) in systems.iter().zip(&clusters).zip(&mut rounds)
                {
                    let one = measure(system, cluster, operation, load);
                    measured.push(cluster.while_all_run(one).await?);
                }
            }
            let pick = |of: fn(&Measured) -> f64| {
                let [etcd, satrap] = &rounds;
                [etcd, satrap].map(|rounds| median(rounds.iter().map(of).collect()))
            };
            let print = |what: &str, of: fn(&Measured) -> f64, goal: &str| {
                let [etcd, satrap] = pick(of);
                row(&format!("{clients:>5} clients: {what}"), etcd, satrap, goal);
            };
            print("operations/s", |m| m.rate, operation.goal(clients));
            let put = operation == Operation::Put && clients == 256;
            print("server CPU us/operation", |m| m.cpu_us, if put { "<= 0.25" } else { "" });
            print("p50 ms", |m| m.p50_ms, "");
            print("p99 ms", |m| m.p99_ms, if put { "<= 0.333" } else { "" });
        }
    }
    Ok(())
}

async fn preload(cluster: &Cluster) -> Bench<()> {
    let address = cluster.address(cluster.leader().await?);
    let value = value();
    let (channels, drivers) = connect(address, 8).await?;
    driven(drivers, async {
        let put = |n: u64| {
            let channel = &channels[n as usize % channels.len()];
            let message = put_message(n, &value);
            async move { channel.call("/etcdserverpb.KV/Put", message).await }
        };
        let mut puts = futures::stream::iter((0..KEYS).map(put)).buffer_unordered(512);
        while let Some(done) = puts.next().await {
            done?;
        }
        Ok(())
    })
    .await
}

async fn measure(
    system: &System,
    cluster: &Cluster,
    operation: Operation,
    load: Load,
) -> Bench<Measured> {
    let address = cluster.address(cluster.leader().await?);
    let (value, seed) = (value(), rng::u64());
    let before = cluster.cpu();
    let at = |n: u64| seed.wrapping_add(n.wrapping_mul(0x2545_F491_4F6C_DD1D));
    let ours = matches!(system, System::Satrap(_));
    let achieved = match operation {
        Operation::StreamPut if ours => streamed(address, load, &value, seed).await?,
        Operation::Put | Operation::StreamPut => {
            unary(address, "/etcdserverpb.KV/Put", load, |n| put_message(at(n), &value)).await?
        }
        Operation::LeaseRead if ours => {
            let get = |n| {
                let (key, mode) = (key(at(n)).into(), ReadMode::Lease.into());
                frame(&GetRequest { key, mode, ..GetRequest::default() })
            };
            unary(address, "/satrap.v1.Store/Get", load, get).await?
        }
        Operation::Range | Operation::LeaseRead => {
            let range =
                |n| frame(&RangeRequest { key: key(at(n)).into(), ..RangeRequest::default() });
            unary(address, "/etcdserverpb.KV/Range", load, range).await?
        }
    };
    let cpu = cluster.cpu().saturating_sub(before);
    Ok(Measured {
        rate: achieved.rate(),
        cpu_us: cpu.as_secs_f64() * 1e6 / achieved.operations.max(1) as f64,
        p50_ms: achieved.percentile(50).as_secs_f64() * 1e3,
        p99_ms: achieved.percentile(99).as_secs_f64() * 1e3,
    })
}

/// As many puts under way as `load` has clients, in messages of [`STREAM_BATCH`].
async fn streamed(
    address: std::net::SocketAddr,
    load: Load,
    value: &Bytes,
    seed: u64,
) -> Bench<Achieved> {
    let (channels, drivers) = connect(address, connections(load.clients)).await?;
    let began = clock::monotonic();
    let total = RefCell::new(Achieved::default());
    let work = async {
        let stream = |(n, channel): (usize, &Channel)| {
            let window = load.clients.div_ceil(channels.len());
            let start = seed.wrapping_add(n as u64 * 0x1_0001);
            one_stream(channel.clone(), window, start, value, (began, load.duration), &total)
        };
        let mut streams: FuturesUnordered<_> = channels.iter().enumerate().map(stream).collect();
        while let Some(ended) = streams.next().await {
            ended?;
        }
        Ok(())
    };
    driven(drivers, work).await?;
    let mut achieved = total.take();
    achieved.elapsed = clock::monotonic() - began;
    achieved.latencies.sort_unstable();
    Ok(achieved)
}

async fn one_stream(
    channel: Channel,
    window: usize,
    mut number: u64,
    value: &Bytes,
    (began, duration): (Duration, Duration),
    total: &RefCell<Achieved>,
) -> Bench<()> {
    let batch = STREAM_BATCH.min(window);
    let (mut sending, response) = channel.stream("/satrap.v1.Store/PutStream").await?;
    let (mut outstanding, mut sent) = (0, VecDeque::new());
    let mut response = Some(response);
    let mut incoming = None;
    loop {
        let now = clock::monotonic();
        let over = now - began >= duration;
        while !over && outstanding + batch <= window {
            let puts = (0..batch as u64).map(|n| StreamedPut {
                key: key(number.wrapping_add(n.wrapping_mul(0x2545_F491_4F6C_DD1D))).into(),
                value: value.clone(),
                lease: 0,
            });
            send(&mut sending, frame(&PutStreamRequest { puts: puts.collect() })).await?;
            number = number.wrapping_add(0x9E37_79B9);
            outstanding += batch;
            sent.push_back(now);
        }
        if outstanding == 0 {
            sending.send_data(Bytes::new(), true)?;
            return Ok(());
        }
        let answers = match &mut incoming {
            Some(answers) => answers,
            None => {
                let response = response.take().ok_or("a stream has one response")?.await?;
                incoming.insert(Incoming::new(response.into_body()))
            }
        };
        let answer: PutStreamResponse = answers.next().await?.ok_or("the stream ended")?;
        if !answer.refusals.is_empty() {
            return Err(format!("refused: {:?}", answer.refusals[0]).into());
        }
        outstanding -= usize::try_from(answer.puts)?;
        let mut total = total.borrow_mut();
        total.operations += answer.puts;
        for start in sent.drain(..usize::try_from(answer.requests)?) {
            total.latencies.push(clock::monotonic() - start);
        }
    }
}
