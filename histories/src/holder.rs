//! A process that holds a role as the client crate has it, and writes to a guarded resource while it
//! does.
//!
//! It looks whether it is still the holder before every write, and the referee can stop it between
//! the look and the write: that is where no care of its own helps.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::mpsc,
    time::Duration,
};

use http::HeaderMap;
use satrap_client::{
    Ring, Terms,
    role::{Attempt, Candidate, Leadership, try_role},
};
use satrap_realm::description::Client;
use tokio::{sync::oneshot, time::sleep};

use crate::{RunError, resource::HOLDER_HEADER, session::Dialer};

/// The arguments of a holder.
#[derive(Clone, Debug, clap::Args)]
pub struct Holder {
    /// Its number, which seeds the order in which it tries members.
    #[arg(long)]
    pub number: usize,
    /// The members.
    #[arg(long = "url", required = true)]
    pub urls: Vec<String>,
    /// The address of the referee.
    #[arg(long)]
    pub referee: String,
    /// The address of the resource.
    #[arg(long)]
    pub resource: SocketAddr,
    /// The role.
    #[arg(long)]
    pub role: String,
    /// The time to live that it asks for, in seconds.
    #[arg(long)]
    pub ttl_s: u32,
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

const WRITES: usize = 12;
const WRITE_EVERY: Duration = Duration::from_millis(20);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long the resource may take to answer; longer means that it is dead.
const ANSWER: Duration = Duration::from_secs(2);

/// A connection to the referee: one word of a holder, one of the referee.
struct Connection {
    out: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Connection {
    fn open(holder: &Holder) -> io::Result<Self> {
        let out = TcpStream::connect(&holder.referee)?;
        let answers = BufReader::new(out.try_clone()?);
        let mut referee = Self { out, answers };
        referee.say(&format!("holder {}", holder.number))?;
        Ok(referee)
    }

    /// Sends a word, and waits for leave to go on. A closed connection is an error.
    fn say(&mut self, word: &str) -> io::Result<()> {
        writeln!(self.out, "{word}")?;
        if self.answers.read_line(&mut String::new())? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// A term in which to write, and where to report that its writes are done.
type Turn = (Leadership, oneshot::Sender<()>);

/// Takes the role again and again, until the referee hangs up.
///
/// # Errors
///
/// If there is no referee or no runtime.
pub fn hold(holder: &Holder) -> Result<(), RunError> {
    let opened =
        Connection::open(holder).and_then(|asking| Ok((asking, Connection::open(holder)?)));
    let (asking, writing) = opened.map_err(RunError::io("the connection to the referee"))?;
    let (turns, taken) = mpsc::sync_channel(1);
    let writer = {
        let holder = holder.clone();
        std::thread::spawn(move || write(&holder, writing, &taken))
    };
    let asked = ask(holder, asking, &turns);
    drop(turns);
    let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match asked.map(|end| end.and(written))? {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            // The experiment is over.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => Ok(()),
            io::ErrorKind::ConnectionReset => Ok(()),
            _ => Err(RunError::io("the connection to the referee")(error)),
        },
    }
}

/// Asks for the role, and hands each term to the writer.
fn ask(
    holder: &Holder,
    mut referee: Connection,
    turns: &mpsc::SyncSender<Turn>,
) -> Result<io::Result<()>, RunError> {
    let credentials = match (&holder.ca, &holder.cert, &holder.key) {
        (Some(ca), Some(cert), Some(key)) => {
            Some(Client { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
        }
        _ => None,
    };
    let dialer = Dialer::new(credentials.as_ref())?;
    let runtime = satrap_runtime::runtime::current_thread().map_err(RunError::io("a runtime"))?;
    let (role, name) = (holder.role.clone(), format!("holder {}", holder.number));
    let candidate = Candidate { role, name, terms: Terms::of(holder.ttl_s) };
    Ok(runtime.block_on(async {
        for turn in holder.number.. {
            let url = &holder.urls[turn % holder.urls.len()];
            if let Some(channel) = dialer.connect(url).await {
                once(&Ring::over(channel), &candidate, &mut referee, turns).await?;
            }
            sleep(ASK_EVERY).await;
        }
        Ok(())
    }))
}

/// Takes the role once, if the ring lets it, and gives it back when the writes are done.
async fn once(
    ring: &Ring,
    candidate: &Candidate,
    referee: &mut Connection,
    turns: &mpsc::SyncSender<Turn>,
) -> io::Result<()> {
    // Before the call, so that the referee's clock brackets it.
    referee.say("want")?;
    let Ok(Attempt::Granted(holder)) = try_role(ring, candidate).await else { return Ok(()) };
    referee.say(&format!("got {}", holder.token()))?;
    let work = async |leadership: Leadership| {
        let (done, written) = oneshot::channel();
        // A writer that is busy with an older term, or gone, leaves this one unused.
        if turns.try_send((leadership, done)).is_ok() {
            drop(written.await);
        }
    };
    let _ended = holder.run(std::future::pending(), Duration::ZERO, work).await;
    Ok(())
}

/// Writes in every term that it is handed, on a thread that the end of a term does not interrupt.
fn write(holder: &Holder, mut referee: Connection, turns: &mpsc::Receiver<Turn>) -> io::Result<()> {
    for (leadership, done) in turns {
        for _ in 0..WRITES {
            let mut headers = HeaderMap::new();
            if leadership.attach(&mut headers).is_err() {
                break;
            }
            // Here it may be stopped for longer than the role lasts.
            referee.say(&format!("ready {}", leadership.token()))?;
            // A resource that is dead at the moment answers nothing.
            let status = post(holder, &headers).unwrap_or_default();
            referee.say(&format!("wrote {} {status}", leadership.token()))?;
            std::thread::sleep(WRITE_EVERY);
        }
        // A holder that lost the role does not wait for this.
        let _ = done.send(());
    }
    Ok(())
}

/// Sends a write to the resource, and returns the status of the answer.
fn post(holder: &Holder, headers: &HeaderMap) -> io::Result<u16> {
    let mut request = format!("POST / HTTP/1.1\r\nhost: {}\r\n", holder.resource);
    for (name, value) in headers {
        let value = value.to_str().map_err(io::Error::other)?;
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("{HOLDER_HEADER}: {}\r\n", holder.number));
    request.push_str("content-length: 0\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(holder.resource)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(request.as_bytes())?;
    let mut first = String::new();
    BufReader::new(stream).read_line(&mut first)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
