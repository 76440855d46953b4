//! An operator's connections: asks servers, and verifies what they answer.
//!
//! Any validator or member may be asked, and any may lie. Certified state is read as an edge
//! reads it, by a [`Replica`] that starts at the genesis; a server whose answer does not verify is
//! named and the next one is asked. State that only a server knows (its own status) is reported as that
//! server's claim.
//!
//! # Invariants
//!
//! - **CLIENT-1** A version, root or governance state that a change is built on was verified here.
//! - **CLIENT-2** A change whose fate is unknown is sent again as it is. The validators decide it at
//!   most once, because it names the version it applies to.
//! - **CLIENT-3** A change counts as decided once certified state shows its effect (`submit.rs`), never because
//!   a server says so.
//! - **CLIENT-4** A change that is not decided in time is `not submitted` only if no server can have it.

mod base;
mod blame;
mod connection;
pub mod etcd;
mod submit;

pub use base::Base;
use blame::check_certificate;
pub use connection::{Connection, Patience, read_genesis};
pub use submit::{DECIDE_WITHIN, SILENT_HEARTBEATS};

use std::{path::PathBuf, time::Duration};

use satrap_certify::{
    BundleName, Genesis, Governance, Interest, Replica, Timestamp,
    limits::{CHANGE_BYTES_MAX, EDGE_UPDATE_BYTES_MAX},
};
use satrap_identity::mtls::{self, ConnectError, CredentialFiles, Credentials, PeerRule};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::fault;
use satrap_proto::v1::{
    GovernanceRequest, StatusReply, StatusRequest, control_client::ControlClient,
    status_reply::Tier,
};
use satrap_runtime::clock;
use satrap_sync::client::{FollowError, UpdateStream};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};

use crate::{error::Error, text::one_line};
use satrap_realm::Description;

/// An update, or a status with all reports of a region, and protobuf around it.
const MESSAGE_BYTES_MAX: usize = EDGE_UPDATE_BYTES_MAX + 1024;
/// Bound on each read; a server that has an update sends it at once.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// How often the governance state is read again because a block changed it meanwhile; it counts what
/// each principal has published.
const GOVERNANCE_READS_MAX: usize = 16;

/// A server that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// For people: `validator v1`, `region eu/a`, or the address.
    pub label: String,
    /// Its URL.
    pub url: String,
}

/// Connections to one realm.
#[derive(Clone, Debug)]
pub struct Client {
    /// The root of trust.
    pub genesis: Genesis,
    /// The operator's mTLS credentials.
    pub credentials: Credentials,
    /// The servers to ask, in this order.
    pub endpoints: Vec<Endpoint>,
    /// The description of the realm, if there is one.
    pub description: Option<Description>,
    /// Default path of the operator's signing key: beside the TLS key.
    pub operator_key: PathBuf,
}

/// Verified state, and who served it.
#[derive(Clone, Debug)]
pub struct Read {
    /// Verified from the genesis on.
    pub replica: Replica,
    /// The server that it came from.
    pub from: Endpoint,
}

/// A decided change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The height that decided it, as certified; of a governance change as the server says, or 0 if
    /// only its effect was seen (CLIENT-2).
    pub height: u64,
    /// Certified version of the bundle after it; 0 if it is not a publish.
    pub version: u64,
    /// The server that answered, or showed the effect.
    pub by: Endpoint,
    /// Whether it had been decided before it was submitted this time.
    pub before: bool,
}

/// Why one server gave no answer; the next one is asked.
enum Ended {
    /// This process does not accept the identity of the server.
    Untrusted(String),
    /// Anything else.
    AskNext(String),
}

impl From<ConnectError> for Ended {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Untrusted { .. } => Self::Untrusted(error.to_string()),
            ConnectError::Unreachable { .. } | ConnectError::Url(_) => {
                Self::AskNext(error.to_string())
            }
        }
    }
}

impl Client {
    /// Loads genesis and credentials, and opens no connection yet.
    ///
    /// # Errors
    ///
    /// If a file is missing or wrong.
    pub fn open(connection: &Connection) -> Result<Self, Error> {
        let description = connection.description()?;
        let described = description.as_ref();
        let pick = |given: &Option<PathBuf>, of: fn(&Description) -> &PathBuf| {
            let path = given.as_ref().or_else(|| described.map(of));
            path.cloned().expect("without a description, every path is given")
        };
        for url in &connection.endpoints {
            mtls::check_url(url).map_err(|e| Error::usage(format!("--endpoint: {e}")))?;
        }
        let genesis_path = pick(&connection.genesis, |d| &d.genesis);
        let genesis = read_genesis(&genesis_path)?;
        let key = pick(&connection.key, |d| &d.client.key);
        let certificate = pick(&connection.cert, |d| &d.client.cert);
        let files = CredentialFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            trust: pick(&connection.trust, |d| &d.client.ca),
        };
        let credentials = Credentials::load(files).map_err(Error::usage)?;
        check_certificate(&credentials, &genesis).map_err(|why| {
            let (certificate, genesis) = (certificate.display(), genesis_path.display());
            Error::usage(format!("certificate {certificate} with genesis {genesis}: {why}"))
        })?;
        let endpoints = match connection.endpoints.as_slice() {
            [] => described.map(connection::described_endpoints).unwrap_or_default(),
            urls => urls.iter().map(|u| Endpoint { label: u.clone(), url: u.clone() }).collect(),
        };
        if endpoints.is_empty() {
            return Err(Error::usage("no server is known; name one with --endpoint URL"));
        }
        let operator_key = key.with_file_name("operator.key");
        Ok(Self { genesis, credentials, endpoints, description, operator_key })
    }

    /// The keys to sign with: those given, else the client's own.
    #[must_use]
    pub fn signing_keys(&self, given: &[PathBuf]) -> Vec<PathBuf> {
        match given {
            [] => vec![self.operator_key.clone()],
            given => given.to_vec(),
        }
    }

    /// A channel to one server, which proves to be a validator or member of this realm.
    ///
    /// # Errors
    ///
    /// Why the connection failed.
    pub async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, ConnectError> {
        let rule = PeerRule::AnyOf(vec![PeerRule::AnyValidator, PeerRule::AnyMember]);
        mtls::connect(&endpoint.url, &self.credentials, rule).await
    }

    /// The status of one server, as it claims.
    ///
    /// # Errors
    ///
    /// Why it gave no status.
    pub async fn status(&self, endpoint: &Endpoint) -> Result<StatusReply, String> {
        let channel = self.channel(endpoint).await.map_err(|e| e.to_string())?;
        let request = StatusRequest { local_only: false };
        let mut control = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = timeout(READ_WITHIN, control.status(request)).await;
        let reply = reply.map_err(|_| format!("no answer within {READ_WITHIN:?}"))?;
        reply.map(tonic::Response::into_inner).map_err(|status| fault::describe(&status))
    }

    /// Reads and verifies the newest certified state, from the first server that can serve it.
    ///
    /// # Errors
    ///
    /// If no server can, with each server's reason.
    pub async fn read(&self, interest: &Interest) -> Result<Read, Error> {
        // A server that has just started may hold nothing yet; another may have more.
        let at_genesis = std::cell::RefCell::new(None);
        let read = self
            .first(async |endpoint, channel| {
                let replica = self.read_from(channel, interest).await?;
                let read = Read { replica, from: endpoint.clone() };
                if read.replica.height() > 0 {
                    return Ok(read);
                }
                *at_genesis.borrow_mut() = Some(read);
                Err(Ended::AskNext("it holds nothing beyond the genesis".into()))
            })
            .await;
        read.or_else(|error| at_genesis.into_inner().ok_or(error))
    }

    async fn read_from(&self, channel: Channel, interest: &Interest) -> Result<Replica, Ended> {
        let mut replica = Replica::genesis(&self.genesis, interest.clone());
        if at_genesis(channel.clone()).await.map_err(|e| Ended::AskNext(fault::describe(&e)))? {
            // A false answer only makes the validators refuse the change that is built on it.
            return Ok(replica);
        }
        let ended = |error: FollowError, replica: &Replica| {
            Ended::AskNext(match (error, replica.withheld()) {
                (FollowError::Silent(_), Some(why)) => {
                    format!("incomplete after {READ_WITHIN:?}: {why}")
                }
                (error, _) => error.to_string(),
            })
        };
        let opened = UpdateStream::on(channel, &replica.position(), READ_WITHIN).await;
        let mut updates = opened.map_err(|error| ended(error, &replica))?;
        loop {
            let update = updates.next(READ_WITHIN).await.map_err(|e| ended(e, &replica))?;
            let advance = replica
                .verify(&update, Timestamp(clock::now()))
                .map_err(|e| Ended::AskNext(format!("refused by rule {}: {e}", e.rule())))?;
            replica.advance(advance);
            if replica.is_complete() {
                return Ok(replica);
            }
        }
    }

    /// Reads the governance state and checks it against a certified root (CLIENT-1).
    ///
    /// # Errors
    ///
    /// If no server can, with each server's reason.
    pub async fn governance(&self) -> Result<Governance, Error> {
        self.first(async |_, channel| self.governance_from(channel).await).await
    }

    async fn governance_from(&self, channel: Channel) -> Result<Governance, Ended> {
        for _ in 0..GOVERNANCE_READS_MAX {
            let mut control = control(channel.clone());
            let reply = timeout(READ_WITHIN, control.governance(GovernanceRequest {})).await;
            let reply = reply
                .map_err(|_| Ended::AskNext(format!("no governance state in {READ_WITHIN:?}")))?;
            let reply = reply.map_err(|s| Ended::AskNext(fault::describe(&s)))?.into_inner();
            let found = Governance::from_canonical(&reply.governance)
                .map_err(|e| Ended::AskNext(format!("sent no governance state: {e}")))?;
            let replica = self.read_from(channel.clone(), &Interest::Bundles(Vec::new())).await?;
            let certified = match &replica.trusted().certified {
                Some((_, commitments)) => commitments.governance_root,
                None => self.genesis.governance.root(),
            };
            if found.root() == certified {
                return Ok(found);
            }
        }
        Err(Ended::AskNext("its governance state is not the certified one".into()))
    }

    /// Asks one server after the other until one answers.
    ///
    /// # Errors
    ///
    /// Every server's reason.
    async fn first<T>(
        &self,
        ask: impl AsyncFn(&Endpoint, Channel) -> Result<T, Ended>,
    ) -> Result<T, Error> {
        let (mut reasons, mut untrusted) = (Vec::new(), 0);
        for endpoint in &self.endpoints {
            let ended = match self.channel(endpoint).await {
                Ok(channel) => ask(endpoint, channel).await,
                Err(error) => Err(error.into()),
            };
            let why = match ended {
                Ok(answer) => return Ok(answer),
                Err(Ended::AskNext(why)) => why,
                Err(Ended::Untrusted(why)) => {
                    untrusted += 1;
                    why
                }
            };
            reasons.push(format!("  {}: {}", endpoint.label, one_line(&why)));
        }
        let what = match untrusted == reasons.len() {
            true => {
                "no server at these addresses is trusted: they are of another realm, or the trust \
                 file is; check --realm, --endpoint and --trust"
            }
            false => "no server could answer; `satrap status` shows which of them run",
        };
        Err(Error::unavailable(format!("{what}\n{}", reasons.join("\n"))))
    }
}

fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CHANGE_BYTES_MAX + 1024)
}

/// Whether a server claims to hold nothing beyond the genesis.
async fn at_genesis(channel: Channel) -> Result<bool, Status> {
    let request = StatusRequest { local_only: true };
    let reply = timeout(READ_WITHIN, control(channel).status(request)).await;
    let reply = reply.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
    Ok(match reply.tier {
        Some(Tier::Validator(v)) => v.height == 0,
        Some(Tier::Region(r)) => r.height == 0,
        None => false,
    })
}

/// The version of `bundle` in verified state; 0 if there is none.
#[must_use]
pub fn version_of(replica: &Replica, bundle: &BundleName) -> u64 {
    replica.heads().get(bundle).map_or(0, |head| head.version)
}
