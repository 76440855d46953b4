//! A process that takes a lock, and writes to a guarded resource while it believes to hold it.
//!
//! It is deliberately naive: it keeps its lease alive, and never looks whether it still has it. A
//! process that was paused looks like this to the rest of the world, however careful it is, because
//! the pause may come behind its last look.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

use satrap_cli::realm::description::Client;
use satrap_proto::{
    etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest,
        kv_client::KvClient, lease_client::LeaseClient,
    },
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::{Trouble, session::Dialer};

/// What a holder is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Holder {
    /// Its number, which seeds the order in which it tries members.
    #[arg(long)]
    pub number: usize,
    /// The members.
    #[arg(long = "url", required = true)]
    pub urls: Vec<String>,
    /// The address of the referee, which is also the resource.
    #[arg(long)]
    pub referee: String,
    /// The lock.
    #[arg(long)]
    pub lock: String,
    /// The CA of the members' certificates, if connections have TLS.
    #[arg(long, requires_all = ["cert", "key"])]
    pub ca: Option<PathBuf>,
    /// The certificate of the holder.
    #[arg(long)]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    pub key: Option<PathBuf>,
}

/// The shortest that default settings grant.
pub const TTL_S: i64 = 2;
const WRITES: usize = 12;
const WRITE_EVERY: Duration = Duration::from_millis(50);
const RENEW_EVERY: Duration = Duration::from_millis(400);

/// The line to the referee: one word of a holder, one of the referee.
struct Line {
    out: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Line {
    fn open(address: &str) -> io::Result<Self> {
        let out = TcpStream::connect(address)?;
        let answers = BufReader::new(out.try_clone()?);
        Ok(Self { out, answers })
    }

    /// Says a word, and returns whether the answer was yes. An end of the line is an error.
    fn say(&mut self, word: &str) -> io::Result<bool> {
        writeln!(self.out, "{word}")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer.trim() == "yes")
    }
}

/// Takes the lock again and again, until the referee hangs up.
///
/// # Errors
///
/// If there is no referee or no runtime.
pub fn hold(holder: &Holder) -> Result<(), Trouble> {
    let mut line = Line::open(&holder.referee).map_err(Trouble::io("the referee's line"))?;
    let credentials = match (&holder.ca, &holder.cert, &holder.key) {
        (Some(ca), Some(cert), Some(key)) => {
            Some(Client { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
        }
        _ => None,
    };
    let dialer = Dialer::new(credentials.as_ref())?;
    let runtime = satrap_host::runtime::current_thread().map_err(Trouble::io("a runtime"))?;
    runtime
        .block_on(async {
            line.say(&format!("holder {}", holder.number))?;
            for turn in holder.number.. {
                let url = &holder.urls[turn % holder.urls.len()];
                if let Some(channel) = dialer.connect(url).await {
                    once(holder, channel, &mut line).await?;
                }
                sleep(Duration::from_millis(30)).await;
            }
            Ok(())
        })
        .or_else(|error: io::Error| match error.kind() {
            // The experiment is over.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Ok(()),
            io::ErrorKind::ConnectionReset => Ok(()),
            _ => Err(Trouble::io("the referee's line")(error)),
        })
}

/// Takes the lock once, if the ring lets it, writes, and gives it back.
async fn once(holder: &Holder, channel: Channel, line: &mut Line) -> io::Result<()> {
    let mut leases = LeaseClient::new(channel.clone());
    let granted = leases.lease_grant(LeaseGrantRequest { ttl: TTL_S, id: 0 }).await;
    let Ok(lease) = granted.map(|granted| granted.into_inner().id) else { return Ok(()) };
    tokio::select! {
        () = keep_alive(channel.clone(), lease) => Ok(()),
        told = locked(holder, channel.clone(), lease, line) => told,
    }?;
    // A lease that is not given back ends by itself.
    drop(leases.lease_revoke(LeaseRevokeRequest { id: lease }).await);
    Ok(())
}

/// Renews a lease for as long as it is polled, whatever comes of it.
async fn keep_alive(channel: Channel, lease: i64) {
    let mut client = LeaseClient::new(channel);
    loop {
        let asked = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
        drop(client.lease_keep_alive(asked).await);
        sleep(RENEW_EVERY).await;
    }
}

async fn locked(holder: &Holder, channel: Channel, lease: i64, line: &mut Line) -> io::Result<()> {
    // Before the call, so that the referee's clock brackets it.
    line.say("want")?;
    let name = holder.lock.clone().into_bytes().into();
    let asked = LockClient::new(channel.clone()).lock(LockRequest { name, lease }).await;
    let Ok(key) = asked.map(|locked| locked.into_inner().key) else { return Ok(()) };
    let read = KvClient::new(channel).range(RangeRequest { key, ..RangeRequest::default() }).await;
    let kvs = read.map(|read| read.into_inner().kvs).unwrap_or_default();
    let Some(token) = kvs.first().map(|kv| kv.create_revision) else { return Ok(()) };
    line.say(&format!("got {token}"))?;
    for _ in 0..WRITES {
        if !line.say(&format!("write {token}"))? {
            return Ok(());
        }
        sleep(WRITE_EVERY).await;
    }
    Ok(())
}
