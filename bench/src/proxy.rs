//! Puts distance between two processes on one machine: a TCP proxy that delivers every byte a fixed
//! time after it was sent, in both directions, without limiting how many are under way.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

use satrap_runtime::TaskGroup;

/// Bytes read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way in one direction of one connection; far more than a config needs.
const CHUNKS_MAX: usize = 4_096;

/// Listens on a free port and forwards to `target`, `one_way` late. Returns the port's address.
///
/// # Errors
///
/// If no port can be bound.
pub async fn start(
    tasks: &TaskGroup,
    target: SocketAddr,
    one_way: Duration,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (shutdown, group) = (tasks.shutdown(), tasks.clone());
    tasks.spawn(format!("proxy to {target}"), async move {
        tokio::select! {
            () = shutdown.requested() => Ok(()),
            failed = accept(&group, listener, target, one_way) => failed,
        }
    });
    Ok(address)
}

async fn accept(
    tasks: &TaskGroup,
    listener: TcpListener,
    target: SocketAddr,
    one_way: Duration,
) -> io::Result<()> {
    loop {
        let (near, _) = listener.accept().await?;
        near.set_nodelay(true)?;
        tasks.spawn_transient(format!("connection to {target}"), async move {
            // A target that is not up refuses; the client sees its own connection close.
            if let Ok(far) = TcpStream::connect(target).await {
                far.set_nodelay(true)?;
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::join!(
                    carry(near_read, far_write, one_way),
                    carry(far_read, near_write, one_way)
                );
            }
            Ok::<_, io::Error>(())
        });
    }
}

/// Carries one direction until either side closes it.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + one_way;
            if sender.send((due, buffer[..n].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
