//! Canonical bytes of everything that validators exchange or log about one height.
//!
//! Heights and rounds are checked where they are read: the sign bytes are undefined beyond
//! Tendermint's ranges, and a panic there would be a remote crash. Certificates hold at most as
//! many signatures as a set has validators.

use arc_malachitebft_core_consensus::{Input, ProposedValue};
use arc_malachitebft_core_types::{
    NilOrVal, PolkaSignature, Round, RoundCertificateType, RoundSignature, SignedMessage, Timeout,
    TimeoutKind, Validity, ValueOrigin, VoteType,
};
use satrap_certify::{
    Address, Block, BlockId, Digest, Realm, SignatureBytes, Timestamp, limits::VALIDATORS_MAX,
};
use satrap_merkle::codec::{Canonical, DecodeError, Reader, Writer};

use super::context::{
    Ctx, Height, PolkaCertificate, Proposal, RoundCertificate, SignedProposal, SignedVote, Value,
    ValueId, Vote, Voter,
};
use crate::guard::{Place, Step};

const ROUND_MAX: u32 = i32::MAX as u32;

fn height(r: &mut Reader<'_>) -> Result<Height, DecodeError> {
    match r.u64()? {
        h if (1..=i64::MAX as u64).contains(&h) => Ok(Height(h)),
        _ => Err(DecodeError::Invalid("height: must be 1 to 2^63 - 1")),
    }
}

fn round(r: &mut Reader<'_>) -> Result<Round, DecodeError> {
    match r.u32()? {
        round if round <= ROUND_MAX => Ok(Round::new(round)),
        _ => Err(DecodeError::Invalid("round: must be below 2^31")),
    }
}

fn put_round(w: &mut Writer, round: Round) {
    w.u32(round.as_u32().expect("only rounds that began are written"));
}

fn maybe_round(r: &mut Reader<'_>) -> Result<Round, DecodeError> {
    match r.u8()? {
        0 => Ok(Round::Nil),
        1 => round(r),
        _ => Err(DecodeError::Invalid("option tag")),
    }
}

fn put_maybe_round(w: &mut Writer, round: Round) {
    match round.as_u32() {
        None => w.u8(0),
        Some(round) => {
            w.u8(1);
            w.u32(round);
        }
    }
}

fn vote_type(r: &mut Reader<'_>) -> Result<VoteType, DecodeError> {
    match r.u8()? {
        0 => Ok(VoteType::Prevote),
        1 => Ok(VoteType::Precommit),
        _ => Err(DecodeError::Invalid("vote type")),
    }
}

fn put_vote_type(w: &mut Writer, vote_type: VoteType) {
    w.u8(match vote_type {
        VoteType::Prevote => 0,
        VoteType::Precommit => 1,
    });
}

impl Canonical for ValueId {
    fn encode(&self, w: &mut Writer) {
        self.block.encode(w);
        self.time.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { block: BlockId::decode(r)?, time: Timestamp::decode(r)? })
    }
}

fn nil_or_id(r: &mut Reader<'_>) -> Result<NilOrVal<ValueId>, DecodeError> {
    Ok(r.option()?.map_or(NilOrVal::Nil, NilOrVal::Val))
}

fn put_nil_or_id(w: &mut Writer, value: &NilOrVal<ValueId>) {
    w.option(match value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some(id),
    });
}

fn signature(r: &mut Reader<'_>) -> Result<(Voter, SignatureBytes), DecodeError> {
    Ok((Voter(Address::decode(r)?), r.array()?))
}

fn put_signature(w: &mut Writer, voter: &Voter, signature: &SignatureBytes) {
    voter.0.encode(w);
    w.array(signature);
}

/// A signed vote.
pub fn put_vote(w: &mut Writer, vote: &SignedVote) {
    put_vote_type(w, vote.vote_type);
    w.u64(vote.height.0);
    put_round(w, vote.round);
    put_nil_or_id(w, &vote.value);
    put_signature(w, &vote.voter, &vote.signature);
}

/// Reads a signed vote.
///
/// # Errors
///
/// [`DecodeError`].
pub fn vote(r: &mut Reader<'_>) -> Result<SignedVote, DecodeError> {
    let (vote_type, height, round, value) = (vote_type(r)?, height(r)?, round(r)?, nil_or_id(r)?);
    let (voter, signature) = signature(r)?;
    Ok(SignedMessage::new(Vote { vote_type, height, round, value, voter }, signature))
}

/// A signed proposal, except its block.
fn put_proposal_head(w: &mut Writer, proposal: &SignedProposal) {
    w.u64(proposal.height.0);
    put_round(w, proposal.round);
    put_maybe_round(w, proposal.pol_round);
    put_signature(w, &proposal.proposer, &proposal.signature);
}

/// A signed proposal with its block.
pub fn put_proposal(w: &mut Writer, proposal: &SignedProposal) {
    put_proposal_head(w, proposal);
    proposal.value.block().encode(w);
}

/// Reads a signed proposal; `value` reads its block.
fn proposal_with(
    r: &mut Reader<'_>,
    value: impl FnOnce(&mut Reader<'_>) -> Result<Value, DecodeError>,
) -> Result<SignedProposal, DecodeError> {
    let (height, round, pol_round) = (height(r)?, round(r)?, maybe_round(r)?);
    let (proposer, signature) = signature(r)?;
    let value = value(r)?;
    if value.block().checkpoint.height != height.0 {
        return Err(DecodeError::Invalid("proposal: the block is of another height"));
    }
    Ok(SignedMessage::new(Proposal { height, round, pol_round, value, proposer }, signature))
}

/// Reads a signed proposal with its block.
///
/// # Errors
///
/// [`DecodeError`].
pub fn proposal(realm: &Realm, r: &mut Reader<'_>) -> Result<SignedProposal, DecodeError> {
    proposal_with(r, |r| Value::new(realm, Block::decode(r)?))
}

/// The proof that a proposal was made: the signed fields without the block.
#[must_use]
pub fn proposal_evidence(proposal: &SignedProposal) -> Vec<u8> {
    let mut w = Writer::default();
    put_proposal_head(&mut w, proposal);
    proposal.value.value_id().encode(&mut w);
    w.finish()
}

/// The bytes that a proposal in evidence signed, who signed, and the signature.
///
/// # Errors
///
/// [`DecodeError`].
pub fn read_proposal_evidence(
    realm: &Realm,
    bytes: &[u8],
) -> Result<(Vec<u8>, Address, SignatureBytes), DecodeError> {
    let mut r = Reader::new(bytes);
    let (height, round, pol_round) = (height(&mut r)?, round(&mut r)?, maybe_round(&mut r)?);
    let (voter, signature) = signature(&mut r)?;
    let id = ValueId::decode(&mut r)?;
    let round = round.as_u32().expect("read as a round that began");
    let signed = satrap_certify::vote::proposal_bytes(
        realm,
        height.0,
        round,
        pol_round.as_u32(),
        &id.block,
        id.time,
    );
    Ok((signed, voter.0, signature))
}

/// A polka certificate.
pub fn put_polka(w: &mut Writer, polka: &PolkaCertificate) {
    w.u64(polka.height.0);
    put_round(w, polka.round);
    polka.value_id.encode(w);
    w.count(polka.polka_signatures.len());
    for s in &polka.polka_signatures {
        put_signature(w, &s.address, &s.signature);
    }
}

/// Reads a polka certificate.
///
/// # Errors
///
/// [`DecodeError`].
pub fn polka(r: &mut Reader<'_>) -> Result<PolkaCertificate, DecodeError> {
    let (height, round, value_id) = (height(r)?, round(r)?, ValueId::decode(r)?);
    let mut polka_signatures = Vec::new();
    for _ in 0..r.count(VALIDATORS_MAX)? {
        let (address, signature) = signature(r)?;
        polka_signatures.push(PolkaSignature { address, signature });
    }
    Ok(PolkaCertificate { height, round, value_id, polka_signatures })
}

/// A round certificate.
pub fn put_round_certificate(w: &mut Writer, certificate: &RoundCertificate) {
    w.u64(certificate.height.0);
    put_round(w, certificate.round);
    w.u8(match certificate.cert_type {
        RoundCertificateType::Skip => 0,
        RoundCertificateType::Precommit => 1,
    });
    w.count(certificate.round_signatures.len());
    for s in &certificate.round_signatures {
        put_vote_type(w, s.vote_type);
        put_nil_or_id(w, &s.value_id);
        put_signature(w, &s.address, &s.signature);
    }
}

/// Reads a round certificate.
///
/// # Errors
///
/// [`DecodeError`].
pub fn round_certificate(r: &mut Reader<'_>) -> Result<RoundCertificate, DecodeError> {
    let (height, round) = (height(r)?, round(r)?);
    let cert_type = match r.u8()? {
        0 => RoundCertificateType::Skip,
        1 => RoundCertificateType::Precommit,
        _ => return Err(DecodeError::Invalid("round certificate type")),
    };
    let mut round_signatures = Vec::new();
    for _ in 0..r.count(VALIDATORS_MAX)? {
        let (vote_type, value_id) = (vote_type(r)?, nil_or_id(r)?);
        let (address, signature) = signature(r)?;
        round_signatures.push(RoundSignature { vote_type, value_id, address, signature });
    }
    Ok(RoundCertificate { height, round, cert_type, round_signatures })
}

/// How the log writes a block: whole the first time, then by id. A proposal and its validity are
/// two entries about one block of up to a megabyte.
pub trait Blocks {
    /// Whether the log of this height already holds the block; from now on it does.
    fn note(&mut self, id: ValueId) -> bool;
}

fn put_value(w: &mut Writer, value: &Value, blocks: &mut impl Blocks) {
    let id = value.value_id();
    if blocks.note(id) {
        w.u8(1);
        id.encode(w);
    } else {
        w.u8(0);
        value.block().encode(w);
    }
}

fn logged_value(
    realm: &Realm,
    r: &mut Reader<'_>,
    known: &mut Vec<Value>,
) -> Result<Value, DecodeError> {
    match r.u8()? {
        0 => {
            let value = Value::new(realm, Block::decode(r)?)?;
            known.push(value.clone());
            Ok(value)
        }
        1 => {
            let id = ValueId::decode(r)?;
            let found = known.iter().find(|value| value.value_id() == id);
            found.cloned().ok_or(DecodeError::Invalid("log: a block that was not logged"))
        }
        _ => Err(DecodeError::Invalid("log: block tag")),
    }
}

/// One log entry; `None` for inputs that must not be logged, because a restart makes them anew.
pub fn log_entry(input: &Input<Ctx>, blocks: &mut impl Blocks) -> Option<Vec<u8>> {
    let mut w = Writer::default();
    match input {
        Input::Vote(vote) => {
            w.u8(0);
            put_vote(&mut w, vote);
        }
        Input::Proposal(proposal) => {
            w.u8(1);
            put_proposal_head(&mut w, proposal);
            put_value(&mut w, &proposal.value, blocks);
        }
        Input::TimeoutElapsed(timeout) => {
            w.u8(2);
            w.u8(match timeout.kind {
                TimeoutKind::Propose => 0,
                TimeoutKind::Prevote => 1,
                TimeoutKind::Precommit => 2,
                TimeoutKind::Rebroadcast | TimeoutKind::FinalizeHeight(_) => return None,
            });
            put_round(&mut w, timeout.round);
        }
        Input::ProposedValue(value, _) => {
            w.u8(3);
            put_round(&mut w, value.round);
            put_maybe_round(&mut w, value.valid_round);
            value.proposer.0.encode(&mut w);
            w.u8(u8::from(value.validity.is_valid()));
            put_value(&mut w, &value.value, blocks);
        }
        Input::PolkaCertificate(certificate) => {
            w.u8(4);
            put_polka(&mut w, certificate);
        }
        Input::StartHeight(..)
        | Input::RoundCertificate(_)
        | Input::Propose(_)
        | Input::SyncValueResponse(_) => return None,
    }
    Some(w.finish())
}

/// One entry of the log.
#[derive(Debug)]
pub enum LogEntry {
    /// An input of the core.
    Input(Input<Ctx>),
    /// The signer was asked for the message with this digest of its signed bytes.
    Requested(Place, Digest),
}

/// The entry that records a request to the signer.
#[must_use]
pub fn requested_entry(place: Place, digest: &Digest) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(5);
    w.u64(place.height);
    w.u32(place.round);
    w.u8(place.step as u8);
    w.array(digest);
    w.finish()
}

fn requested(r: &mut Reader<'_>) -> Result<LogEntry, DecodeError> {
    let (height, round) = (height(r)?.0, r.u32()?);
    let step = Step::from_tag(r.u8()?)?;
    Ok(LogEntry::Requested(Place { height, round, step }, r.array()?))
}

/// Reads a log entry; `known` are the blocks read before.
///
/// # Errors
///
/// [`DecodeError`]: the log is damaged.
pub fn read_log_entry(
    realm: &Realm,
    bytes: &[u8],
    known: &mut Vec<Value>,
) -> Result<LogEntry, DecodeError> {
    let mut r = Reader::new(bytes);
    let entry = match r.u8()? {
        5 => requested(&mut r)?,
        tag => LogEntry::Input(logged_input(realm, tag, &mut r, known)?),
    };
    match r.remaining() {
        0 => Ok(entry),
        n => Err(DecodeError::Trailing(n)),
    }
}

fn logged_input(
    realm: &Realm,
    tag: u8,
    r: &mut Reader<'_>,
    known: &mut Vec<Value>,
) -> Result<Input<Ctx>, DecodeError> {
    Ok(match tag {
        0 => Input::Vote(vote(r)?),
        1 => Input::Proposal(proposal_with(r, |r| logged_value(realm, r, known))?),
        2 => {
            let kind = match r.u8()? {
                0 => TimeoutKind::Propose,
                1 => TimeoutKind::Prevote,
                2 => TimeoutKind::Precommit,
                _ => return Err(DecodeError::Invalid("timeout")),
            };
            Input::TimeoutElapsed(Timeout::new(round(r)?, kind))
        }
        3 => {
            let (round, valid_round) = (round(r)?, maybe_round(r)?);
            let proposer = Voter(Address::decode(r)?);
            let validity = Validity::from_bool(r.u8()? == 1);
            let value = logged_value(realm, r, known)?;
            let height = Height(value.block().checkpoint.height);
            let value = ProposedValue { height, round, valid_round, proposer, value, validity };
            Input::ProposedValue(value, ValueOrigin::Consensus)
        }
        4 => Input::PolkaCertificate(polka(r)?),
        _ => return Err(DecodeError::Invalid("log entry")),
    })
}

/// Digest of sign bytes, as the guard keeps it.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}
