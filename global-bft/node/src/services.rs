//! The control service: submits changes, shows the status of this validator, serves decided blocks.
//!
//! Authority comes from signatures inside what is submitted, never from the connection. The roles
//! admitted per call, and what each payer may cost ([`satrap_identity::charges`]: CHARGE-1 to CHARGE-4), only keep
//! callers from spending this process's time.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
};

use prost::Message as _;
use satrap_certify::{Address, Label, Realm, Replica, SignedChange, light_block::light_block};
use satrap_identity::{
    charges::{Calls, Charges, Payer, SUBMIT_FLAT_BYTES, SUBMIT_REFUSED_BYTES},
    mtls::PeerRule,
};
use satrap_merkle::codec::Canonical as _;
use satrap_proto::v1::{
    BundleStatus, Evidence, GovernanceReply, GovernanceRequest, LightBlockReply,
    LightBlocksRequest, StatusReply, StatusRequest, SubmitReply, SubmitRequest, ValidatorInfo,
    ValidatorStatus, control_server, status_reply::Tier,
};
use satrap_runtime::TaskGroup;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    inbox::Inbox,
    limits::{LIGHT_BLOCK_STREAMS, LIGHT_BLOCKS_MAX, READS, SUBMIT_RATE},
    mempool::Refusal,
    mesh::Links,
    signer::SignQueue,
    status,
    store::{DiskError, Storage as _, Store},
    view::View,
};

/// Light blocks read ahead of a slow reader.
const LIGHT_BLOCKS_AHEAD: usize = 1;

/// The peers that may call the control and sync services.
#[must_use]
pub fn callers() -> PeerRule {
    PeerRule::AnyOf(vec![PeerRule::Operator, PeerRule::AnyMember, PeerRule::AnyValidator])
}

/// `satrap.v1.Control` of a validator.
pub struct ControlService {
    /// Own name.
    pub name: Label,
    /// The realm.
    pub realm: Realm,
    /// The queue for submissions.
    pub inbox: Inbox,
    /// The state after the last step.
    pub view: watch::Receiver<Arc<View>>,
    /// The verified copy, which lists the bundles.
    pub replica: watch::Receiver<Arc<Replica>>,
    /// Decided blocks and evidence.
    pub store: Store,
    /// The connected validators.
    pub links: Links,
    /// The signer's requests and failures.
    pub signatures: SignQueue,
    /// Owner of the stream tasks.
    pub group: TaskGroup,
}

impl ControlService {
    fn validators(&self, view: &View) -> Result<Vec<ValidatorInfo>, DiskError> {
        let mut signed = BTreeSet::new();
        if let Some(((checkpoint, _), commit)) = view.last.as_ref().zip(view.commit.as_ref()) {
            let set = self.store.set(&checkpoint.validators_hash)?;
            let addresses = set.iter().flat_map(|set| set.addresses());
            let signers = addresses.zip(&commit.signatures).filter(|(_, s)| s.is_some());
            signed.extend(signers.map(|(address, _)| *address));
        }
        let proposer = view.last.as_ref().map(|(checkpoint, _)| checkpoint.proposer);
        let connected = self.links.connected();
        let set = view.governance.validator_set();
        let order = set.map(|set| set.addresses().to_vec()).unwrap_or_default();
        let named: BTreeMap<Address, _> =
            view.governance.validators.iter().map(|v| (v.public.address(), v)).collect();
        let info = |address: &Address| {
            let v = named.get(address)?;
            Some(ValidatorInfo {
                name: v.name.to_string(),
                address: address.0.to_vec().into(),
                power: v.power,
                jurisdiction: v.jurisdiction.to_string(),
                signed_last: signed.contains(address),
                proposed_last: proposer == Some(*address),
                connected: v.name == self.name || connected.contains(&v.name),
            })
        };
        Ok(order.iter().filter_map(info).collect())
    }

    fn evidence(&self, view: &View) -> Result<Vec<Evidence>, DiskError> {
        let name = |offender: &Address| {
            let found = view.governance.validators.iter().find(|v| v.public.address() == *offender);
            found.map_or_else(|| offender.to_string(), |v| v.name.to_string())
        };
        let shown = self.store.evidence()?.into_iter().map(|(height, conflict)| Evidence {
            height,
            validator: name(&conflict.offender),
            kind: conflict.kind.as_str().to_owned(),
            first: conflict.first.into(),
            second: conflict.second.into(),
        });
        Ok(shown.collect())
    }

    fn bundles(&self) -> Vec<BundleStatus> {
        let replica = self.replica.borrow().clone();
        let status = |head: &satrap_certify::Head| BundleStatus {
            name: head.name.to_string(),
            version: head.version,
            root: head.root.to_vec().into(),
            entries: head.entries,
            bytes: head.bytes,
        };
        replica.heads().values().map(status).collect()
    }

    fn read_light_block(&self, height: u64) -> Result<Option<LightBlockReply>, DiskError> {
        let Some((block, commit)) = self.store.decided(height)? else { return Ok(None) };
        let set = self.store.set(&block.checkpoint.validators_hash)?;
        Ok(set.map(|set| LightBlockReply {
            height,
            light_block: light_block(&self.realm, &block.checkpoint, &commit, &set).into(),
            block: block.to_canonical().into(),
            commit: commit.to_canonical().into(),
        }))
    }
}

/// A control service shared by all its streams, and what its callers have spent.
#[derive(Clone)]
pub struct Control {
    service: Arc<ControlService>,
    submissions: Charges,
    reads: Calls,
    light_blocks: Calls,
}

impl Control {
    /// Serves `service`; no caller has spent anything.
    #[must_use]
    pub fn new(service: ControlService) -> Self {
        Self {
            service: Arc::new(service),
            submissions: Charges::new("submissions", SUBMIT_RATE),
            reads: Calls::new("calls of Status and Governance", READS),
            light_blocks: Calls::new("streams of light blocks", LIGHT_BLOCK_STREAMS),
        }
    }
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitReply>, Status> {
        let payer = Payer::of(&status::peer(&request, &callers())?);
        let bytes = request.into_inner().change;
        self.submissions.charge(&payer, SUBMIT_FLAT_BYTES + bytes.len())?;
        let refused = || self.submissions.owe(&payer, SUBMIT_REFUSED_BYTES);
        let change = SignedChange::from_canonical(&bytes).inspect_err(|_| refused());
        let change = change.map_err(status::malformed)?;
        let answer = self.service.inbox.submit(payer.clone(), change, bytes.len());
        // The wait for a decision may be long, and the inbox bounds what waits.
        drop(bytes);
        let answer = answer.ok_or_else(|| {
            status::busy("too many submissions of this caller wait for a decision; retry later")
        })?;
        let answer = answer.await.map_err(|_| status::undecided("this validator is stopping"))?;
        let receipt = answer.inspect_err(|refusal| match refusal {
            Refusal::Rejected(_) | Refusal::Behind(_) => refused(),
            Refusal::Full { .. } => {}
        });
        let receipt = receipt.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(SubmitReply {
            height: receipt.height,
            block_hash: receipt.block.hash.to_vec().into(),
            version: receipt.version,
        }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let call = self.reads.begin(&status::peer(&request, &callers())?)?;
        let service = &self.service;
        let view = service.view.borrow().clone();
        let disk = |error: DiskError| status::internal(&error);
        let validator = ValidatorStatus {
            name: service.name.to_string(),
            height: view.height,
            block_hash: view.last.as_ref().map_or_else(Vec::new, |(_, id)| id.hash.to_vec()).into(),
            time_unix_ns: view.last.as_ref().map_or(0, |(checkpoint, _)| checkpoint.time.0),
            round: view.round,
            in_set: view.in_set,
            validators: service.validators(&view).map_err(disk)?,
            bundles: service.bundles(),
            evidence: service.evidence(&view).map_err(disk)?,
            mempool_changes: view.mempool as u64,
            signer_failure: service.signatures.outage().map_or_else(String::new, |o| o.error),
        };
        let reply = StatusReply { tier: Some(Tier::Validator(validator)) };
        call.replied(reply.encoded_len());
        Ok(Response::new(reply))
    }

    type LightBlocksStream = Pin<Box<dyn Stream<Item = Result<LightBlockReply, Status>> + Send>>;

    async fn light_blocks(
        &self,
        request: Request<LightBlocksRequest>,
    ) -> Result<Response<Self::LightBlocksStream>, Status> {
        let call = self.light_blocks.begin(&status::peer(&request, &callers())?)?;
        let LightBlocksRequest { from_height, to_height } = request.into_inner();
        let newest = self.service.view.borrow().height;
        let to = if to_height == 0 { newest } else { to_height.min(newest) };
        let from = from_height.max(1);
        let to = to.min(from.saturating_add(LIGHT_BLOCKS_MAX - 1));
        let (replies, stream) = mpsc::channel(LIGHT_BLOCKS_AHEAD);
        let service = self.service.clone();
        self.service.group.spawn_transient("light blocks", async move {
            for height in from..=to {
                let reply = match service.read_light_block(height) {
                    Ok(Some(reply)) => {
                        call.paid(reply.encoded_len()).await;
                        Ok(reply)
                    }
                    Ok(None) => break,
                    Err(error) => Err(status::internal(&error)),
                };
                // The reader may hang up at any time, also because this process stops.
                if replies.send(reply).await.is_err() {
                    break;
                }
            }
            Ok::<(), Infallible>(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn governance(
        &self,
        request: Request<GovernanceRequest>,
    ) -> Result<Response<GovernanceReply>, Status> {
        let call = self.reads.begin(&status::peer(&request, &callers())?)?;
        let view = self.service.view.borrow().clone();
        let governance = view.governance.to_canonical();
        call.replied(governance.len());
        Ok(Response::new(GovernanceReply { governance: governance.into(), height: view.height }))
    }
}
