//! A closed loop: so many calls are always under way, and each that ends is replaced.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use satrap_runtime::clock;

use super::{
    Bench,
    wire::{Channel, Driver},
};

/// The size of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Calls under way.
    pub clients: usize,
    /// How long.
    pub duration: Duration,
}

/// The result of a load.
#[derive(Clone, Debug, Default)]
pub struct Achieved {
    /// Operations.
    pub operations: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Of each call, ascending.
    pub latencies: Vec<Duration>,
}

impl Achieved {
    /// Operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The latency that `percent` of the calls do not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.latencies.len() * percent).div_ceil(100).max(1);
        self.latencies.get(rank - 1).copied().unwrap_or_default()
    }
}

/// Connections for so many clients: few clients share few, as in a real fleet.
#[must_use]
pub fn connections(clients: usize) -> usize {
    match clients {
        0..=1 => 1,
        2..=64 => 8,
        65..=256 => 32,
        _ => 100,
    }
}

/// Opens `count` connections; drive the drivers beside whatever uses the channels.
///
/// # Errors
///
/// If one cannot be opened.
pub async fn connect(address: SocketAddr, count: usize) -> Bench<(Vec<Channel>, Vec<Driver>)> {
    let mut opened = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (channel, driver) = Channel::connect(address).await?;
        opened.0.push(channel);
        opened.1.push(driver);
    }
    Ok(opened)
}

/// Runs `work` while `drivers` are driven.
///
/// # Errors
///
/// Of `work`.
pub async fn driven<T>(drivers: Vec<Driver>, work: impl Future<Output = Bench<T>>) -> Bench<T> {
    let drive = async {
        let mut all: FuturesUnordered<_> = drivers.into_iter().collect();
        // A connection that ends is no error here; the calls on it fail.
        while all.next().await.is_some() {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = work => done,
        () = drive => unreachable!("driving never ends"),
    }
}

/// Calls `path` in a closed loop; `next` makes the framed message of call number n.
///
/// # Errors
///
/// The first call that fails.
pub async fn unary(
    address: SocketAddr,
    path: &str,
    load: Load,
    next: impl Fn(u64) -> Bytes,
) -> Bench<Achieved> {
    let (channels, drivers) = connect(address, connections(load.clients)).await?;
    let began = clock::monotonic();
    let (achieved, counter) = (Rc::new(RefCell::new(Achieved::default())), RefCell::new(0_u64));
    let client = |n: usize| {
        let (channel, achieved) = (channels[n % channels.len()].clone(), achieved.clone());
        let (counter, next) = (&counter, &next);
        async move {
            loop {
                let start = clock::monotonic();
                if start - began >= load.duration {
                    return Ok::<_, Box<dyn std::error::Error>>(());
                }
                let number = {
                    let mut counter = counter.borrow_mut();
                    *counter += 1;
                    *counter
                };
                channel.call(path, next(number)).await?;
                let mut achieved = achieved.borrow_mut();
                achieved.operations += 1;
                achieved.latencies.push(clock::monotonic() - start);
            }
        }
    };
    let work = async {
        let mut clients: FuturesUnordered<_> = (0..load.clients).map(client).collect();
        while let Some(ended) = clients.next().await {
            ended?;
        }
        Ok(())
    };
    driven(drivers, work).await?;
    let mut achieved = achieved.take();
    achieved.elapsed = clock::monotonic() - began;
    achieved.latencies.sort_unstable();
    Ok(achieved)
}
