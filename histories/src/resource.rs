//! A guarded resource, as a process: it takes writes over HTTP, behind the guard of the client crate
//! or behind nothing, and appends each write that it takes to a journal.
//!
//! The highest token it has seen must survive it: it is killed in the middle of the experiment and
//! started again, and a guard that forgot the token would let a former holder in.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions, rename},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use satrap_client::{
    FencingToken,
    guard::{DurableGuard, GuardLayer, MissingToken, Remember},
};
use tokio::{net::TcpListener, task::JoinSet};
use tower::{Layer as _, Service, service_fn};

use crate::RunError;

/// How the resource treats tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Guard {
    /// It takes a write only with a token that is no older than any it has seen.
    Tokens,
    /// It takes every write.
    Nothing,
}

impl Guard {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Nothing => "nothing",
        }
    }
}

/// The arguments of a resource.
#[derive(Clone, Debug, clap::Args)]
pub struct Resource {
    /// Where it listens.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where it keeps the highest token it has seen, and its journal.
    #[arg(long)]
    pub dir: PathBuf,
    /// How it treats tokens.
    #[arg(long)]
    pub guard: Guard,
}

/// The header with the number of the holder.
pub const HOLDER_HEADER: &str = "holder";
/// The line that the resource prints once it listens.
pub const LISTENING: &str = "listening";

/// The journal in the directory of a resource: `HOLDER TOKEN` for each write it took, in order.
#[must_use]
pub fn journal(dir: &Path) -> PathBuf {
    dir.join("journal")
}

/// Serves until it is killed.
///
/// # Errors
///
/// If it cannot listen, or has no place for its files.
pub fn guard(resource: &Resource) -> Result<(), RunError> {
    let runtime = satrap_runtime::runtime::current_thread().map_err(RunError::io("a runtime"))?;
    runtime.block_on(serve(resource)).map_err(RunError::io("the resource"))
}

async fn serve(resource: &Resource) -> io::Result<()> {
    let journal = OpenOptions::new().create(true).append(true).open(journal(&resource.dir))?;
    let journal = Arc::new(Mutex::new(journal));
    let take = service_fn(move |request: Request<Incoming>| {
        let taken = take(&journal, &request);
        async move { taken }
    });
    let listener = TcpListener::bind(resource.listen).await?;
    let mut said = io::stdout();
    writeln!(said, "{LISTENING}")?;
    said.flush()?;
    match resource.guard {
        Guard::Nothing => accept(&listener, take).await,
        Guard::Tokens => {
            let guard = DurableGuard::open(Memory(resource.dir.join("seen")))?;
            let layer = GuardLayer::new(guard, MissingToken::Refuse);
            accept(&listener, layer.layer(take)).await
        }
    }
}

/// Serves every connection with clones of one service.
async fn accept<S, B>(listener: &TcpListener, service: S) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(service.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move { drop(connection.await) });
    }
}

/// Takes a write: into the journal with it.
fn take<B>(
    journal: &Mutex<File>,
    request: &Request<B>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let token = FencingToken::of(request.headers()).ok().flatten();
    let holder = request.headers().get(HOLDER_HEADER).and_then(|holder| holder.to_str().ok());
    let taken = match (holder, token) {
        (Some(holder), Some(token)) => {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(journal, "{holder} {token}").is_ok()
        }
        _ => false,
    };
    let mut answer = Response::new(Empty::new());
    if !taken {
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(answer)
}

/// The highest token, in a file that is replaced as a whole.
struct Memory(PathBuf);

impl Remember for Memory {
    type Error = io::Error;

    fn recall(&mut self) -> io::Result<FencingToken> {
        match std::fs::read_to_string(&self.0) {
            Ok(text) => text.parse().map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FencingToken::default()),
            Err(error) => Err(error),
        }
    }

    fn remember(&mut self, token: FencingToken) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = File::create(&new)?;
        write!(file, "{token}")?;
        file.sync_all()?;
        rename(&new, &self.0)?;
        self.0.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}
