//! The messages between validators: their wire form, and how much each may cost its receiver.
//!
//! Decoding happens in the network task of the peer, before the consensus thread sees it. A
//! frame that does not decode ends the stream: no honest validator sends one.

use bytes::Bytes;
use satrap_certify::{Action, Block, Commit, Realm, SignedChange};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};
use satrap_proto::v1::{MeshFrame, MeshStatus, SyncRequest, SyncResponse, mesh_frame::Body};

use super::{
    codec,
    context::{PolkaCertificate, RoundCertificate, SignedProposal, SignedVote, Value},
    peers::Purpose,
};
use crate::limits::{
    BYTES_PER_COST, CHANGE_COST, CHANGE_IN_BLOCK_COST, ENTRIES_PER_COST, FRAME_COST_MAX,
    PROPOSAL_COST, SYNC_COST,
};

/// One message between validators.
#[derive(Clone, Debug)]
pub enum Frame {
    /// A vote of the sender.
    Vote(SignedVote),
    /// A proposal with its block.
    Proposal(SignedProposal),
    /// Two thirds of the prevotes of a round.
    Polka(PolkaCertificate),
    /// Votes that justify entering a round.
    Round(RoundCertificate),
    /// The highest height the sender has decided.
    Status(u64),
    /// Asks for a decided block.
    SyncRequest(u64),
    /// Answers, with nothing if the height is not held.
    SyncResponse(u64, Option<(Value, Commit)>),
    /// A change that waits for a block.
    Change(SignedChange),
}

/// One verification each.
fn signatures(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Checking approvals and applying the content.
fn change_cost(change: &SignedChange) -> u32 {
    let (entries, bytes) = match &change.change.action {
        Action::Publish(publish) => {
            let bytes = publish.puts.iter().map(|(_, value)| value.len()).sum::<usize>();
            (publish.puts.len() + publish.deletes.len(), bytes)
        }
        Action::Retire(_) | Action::Govern(..) => (0, 0),
    };
    let content = entries / ENTRIES_PER_COST + bytes / BYTES_PER_COST;
    signatures(change.approvals.len() + content)
}

impl Frame {
    /// The cost of processing it to the consensus thread, in units of one verified vote, and out of
    /// which budget. It grows with what the sender put into the frame: signatures, entries, bytes.
    #[must_use]
    pub fn cost(&self) -> (Purpose, u32) {
        let purpose = match self {
            Self::Vote(_)
            | Self::Status(_)
            | Self::Proposal(_)
            | Self::Polka(_)
            | Self::Round(_) => Purpose::Consensus,
            Self::SyncRequest(_) | Self::SyncResponse(..) | Self::Change(_) => Purpose::Bulk,
        };
        // A frame that no full budget could pay for would never be heard.
        (purpose, self.units().min(FRAME_COST_MAX))
    }

    fn units(&self) -> u32 {
        match self {
            Self::Vote(_) | Self::Status(_) => 1,
            Self::Proposal(proposal) => {
                let changes = proposal.value.block().changes.iter();
                let costs = changes.map(|c| change_cost(c).saturating_add(CHANGE_IN_BLOCK_COST));
                costs.fold(PROPOSAL_COST, u32::saturating_add)
            }
            Self::Polka(certificate) => signatures(certificate.polka_signatures.len()),
            Self::Round(certificate) => signatures(certificate.round_signatures.len()),
            Self::SyncRequest(_) => SYNC_COST,
            // Only the awaited answer of a peer that was asked is looked at.
            Self::SyncResponse(..) => 1,
            Self::Change(change) => change_cost(change).saturating_add(CHANGE_COST),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> MeshFrame {
        fn bytes(put: impl FnOnce(&mut Writer)) -> Bytes {
            let mut w = Writer::default();
            put(&mut w);
            w.finish().into()
        }
        let body = match self {
            Self::Vote(vote) => Body::Vote(bytes(|w| codec::put_vote(w, vote))),
            Self::Proposal(p) => Body::Proposal(bytes(|w| codec::put_proposal(w, p))),
            Self::Polka(c) => Body::PolkaCertificate(bytes(|w| codec::put_polka(w, c))),
            Self::Round(c) => Body::RoundCertificate(bytes(|w| codec::put_round_certificate(w, c))),
            Self::Status(height) => Body::Status(MeshStatus { height: *height }),
            Self::SyncRequest(height) => Body::SyncRequest(SyncRequest { height: *height }),
            Self::SyncResponse(height, held) => Body::SyncResponse(match held {
                None => SyncResponse { height: *height, ..SyncResponse::default() },
                Some((value, commit)) => SyncResponse {
                    height: *height,
                    block: value.block().to_canonical().into(),
                    commit: commit.to_canonical().into(),
                },
            }),
            Self::Change(change) => Body::Change(change.to_canonical().into()),
        };
        MeshFrame { body: Some(body) }
    }

    /// Parses the wire form.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: the sender is broken or hostile.
    pub fn from_wire(realm: &Realm, frame: MeshFrame) -> Result<Self, DecodeError> {
        fn whole<T>(
            bytes: &Bytes,
            read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
        ) -> Result<T, DecodeError> {
            let mut r = Reader::new(bytes);
            let value = read(&mut r)?;
            match r.remaining() {
                0 => Ok(value),
                n => Err(DecodeError::Trailing(n)),
            }
        }
        match frame.body.ok_or(DecodeError::Invalid("frame without a body"))? {
            Body::Vote(bytes) => whole(&bytes, codec::vote).map(Self::Vote),
            Body::Proposal(bytes) => {
                whole(&bytes, |r| codec::proposal(realm, r)).map(Self::Proposal)
            }
            Body::PolkaCertificate(bytes) => whole(&bytes, codec::polka).map(Self::Polka),
            Body::RoundCertificate(bytes) => {
                whole(&bytes, codec::round_certificate).map(Self::Round)
            }
            Body::Status(status) => Ok(Self::Status(status.height)),
            Body::SyncRequest(request) => Ok(Self::SyncRequest(request.height)),
            Body::SyncResponse(SyncResponse { height, block, .. }) if block.is_empty() => {
                Ok(Self::SyncResponse(height, None))
            }
            Body::SyncResponse(response) => {
                let value = Value::new(realm, Block::from_canonical(&response.block)?)?;
                let commit = Commit::from_canonical(&response.commit)?;
                Ok(Self::SyncResponse(response.height, Some((value, commit))))
            }
            Body::Change(bytes) => SignedChange::from_canonical(&bytes).map(Self::Change),
        }
    }
}
