//! Frames and submissions at their limits and over them.

use std::time::Duration;

use arc_malachitebft_core_types::{
    NilOrVal, PolkaSignature, Round, RoundCertificateType, RoundSignature, SignedMessage, VoteType,
};
use satrap_certify::{Commit, Timestamp, limits::VALIDATORS_MAX};
use satrap_global_core::Ledger;
use satrap_global_node::{
    limits::{FRAME_BYTES_MAX, MEMPOOL_CHANGES_MAX, TICKETS_PER_CHANGE_MAX},
    malachite::{
        Frame,
        context::{
            Height, PolkaCertificate, Proposal, RoundCertificate, Value, ValueId, Vote, Voter,
        },
    },
    mempool::{Mempool, Refusal},
};
use satrap_proto::v1::{MeshFrame, mesh_frame::Body};

use crate::realm::{START, address, genesis, publish};

const HOUR: Duration = Duration::from_secs(3_600);

fn value() -> Value {
    let genesis = genesis(4, 100, HOUR);
    let ledger = Ledger::genesis(&genesis);
    let changes = [publish(&genesis, 1), publish(&genesis, 2)];
    let block = ledger.build(address(0), START.plus(HOUR), &changes);
    Value::new(genesis.realm(), block).unwrap()
}

fn vote(height: u64, round: u32, id: Option<ValueId>) -> Frame {
    let vote = Vote {
        vote_type: VoteType::Precommit,
        height: Height(height),
        round: Round::new(round),
        value: id.map_or(NilOrVal::Nil, NilOrVal::Val),
        voter: Voter(address(1)),
    };
    Frame::Vote(SignedMessage::new(vote, [7; 64]))
}

fn proposal(value: Value, pol_round: Round) -> Frame {
    let (height, round) = (Height(1), Round::new(3));
    let proposal = Proposal { height, round, pol_round, value, proposer: Voter(address(0)) };
    Frame::Proposal(SignedMessage::new(proposal, [8; 64]))
}

fn polka(value_id: ValueId, signatures: usize) -> Frame {
    let signature = PolkaSignature { address: Voter(address(2)), signature: [9; 64] };
    let polka_signatures = vec![signature; signatures];
    let (height, round) = (Height(1), Round::new(0));
    Frame::Polka(PolkaCertificate { height, round, value_id, polka_signatures })
}

fn round(signatures: usize) -> Frame {
    let signature = RoundSignature {
        vote_type: VoteType::Prevote,
        value_id: NilOrVal::Nil,
        address: Voter(address(2)),
        signature: [9; 64],
    };
    let round_signatures = vec![signature; signatures];
    let (height, round, cert_type) = (Height(1), Round::new(5), RoundCertificateType::Skip);
    Frame::Round(RoundCertificate { height, round, cert_type, round_signatures })
}

fn body(frame: &mut MeshFrame) -> Option<&mut bytes::Bytes> {
    match frame.body.as_mut()? {
        Body::Vote(bytes)
        | Body::Proposal(bytes)
        | Body::PolkaCertificate(bytes)
        | Body::RoundCertificate(bytes)
        | Body::Change(bytes) => Some(bytes),
        Body::SyncResponse(response) => Some(&mut response.block),
        Body::Status(_) | Body::SyncRequest(_) => None,
    }
}

#[test]
fn every_frame_survives_the_wire_and_none_survives_being_cut_or_extended() {
    let genesis = genesis(4, 100, HOUR);
    let (realm, value) = (genesis.realm(), value());
    let id = value.value_id();
    let commit = Commit { round: 1, signatures: vec![Some([3; 64]), None, None, Some([4; 64])] };
    let frames = [
        vote(1, 0, Some(id)),
        vote(i64::MAX as u64, i32::MAX as u32, None),
        proposal(value.clone(), Round::Nil),
        proposal(value.clone(), Round::new(2)),
        polka(id, VALIDATORS_MAX),
        round(VALIDATORS_MAX),
        Frame::Status(7),
        Frame::SyncRequest(8),
        Frame::SyncResponse(9, None),
        Frame::SyncResponse(1, Some((value, commit))),
        Frame::Change(publish(&genesis, 5)),
    ];
    for frame in frames {
        let wire = frame.to_wire();
        let read = Frame::from_wire(realm, wire.clone()).unwrap();
        assert_eq!(read.to_wire(), wire);
        let mut cut = wire.clone();
        let Some(bytes) = body(&mut cut).cloned().filter(|bytes| !bytes.is_empty()) else {
            continue;
        };
        for length in (1..bytes.len()).step_by(bytes.len() / 50 + 1) {
            *body(&mut cut).unwrap() = bytes.slice(..length);
            assert!(Frame::from_wire(realm, cut.clone()).is_err(), "{length} of {frame:?}");
        }
        *body(&mut cut).unwrap() = [&bytes[..], &[0]].concat().into();
        assert!(Frame::from_wire(realm, cut).is_err(), "extended {frame:?}");
    }
    assert!(Frame::from_wire(realm, MeshFrame { body: None }).is_err());
}

/// Sign bytes are undefined beyond these ranges: reaching them would be a remote crash.
#[test]
fn numbers_outside_tendermints_ranges_are_refused() {
    let genesis = genesis(4, 100, HOUR);
    for frame in [
        vote(0, 0, None),
        vote(1 << 63, 0, None),
        vote(1, 1 << 31, None),
        polka(value().value_id(), VALIDATORS_MAX + 1),
        round(VALIDATORS_MAX + 1),
    ] {
        assert!(Frame::from_wire(genesis.realm(), frame.to_wire()).is_err(), "{frame:?}");
    }
}

#[test]
fn a_block_whose_payload_is_not_the_one_its_header_names_does_not_parse() {
    let genesis = genesis(4, 100, HOUR);
    let mut block = value().block().clone();
    block.changes.swap(0, 1);
    assert!(Value::new(genesis.realm(), block.clone()).is_err());
    block.changes.swap(0, 1);
    block.checkpoint.time = Timestamp(block.checkpoint.time.0 + 1);
    let other = Value::new(genesis.realm(), block).unwrap();
    assert_ne!(other.value_id(), value().value_id(), "another header is another block");
}

#[test]
fn a_full_block_fits_a_frame() {
    let genesis = genesis(4, 100, HOUR);
    let ledger = Ledger::genesis(&genesis);
    let changes: Vec<_> = (0..1_200).map(|n| publish(&genesis, n)).collect();
    let block = ledger.build(address(0), START.plus(HOUR), &changes);
    assert_eq!(block.changes.len(), satrap_certify::limits::BLOCK_CHANGES_MAX);
    let frame = proposal(Value::new(genesis.realm(), block).unwrap(), Round::Nil).to_wire();
    assert!(prost::Message::encoded_len(&frame) <= FRAME_BYTES_MAX);
}

/// One unit is one verified signature; a frame that no budget could pay for would never be heard.
#[test]
fn frames_cost_what_their_sender_puts_into_them() {
    use satrap_global_node::{limits::FRAME_COST_MAX, malachite::Purpose::*};
    let genesis = genesis(4, 100, HOUR);
    let ledger = Ledger::genesis(&genesis);
    let block = |n: u64| {
        let changes: Vec<_> = (0..n).map(|n| publish(&genesis, n)).collect();
        let block = ledger.build(address(0), START.plus(HOUR), &changes);
        proposal(Value::new(genesis.realm(), block).unwrap(), Round::Nil).cost()
    };
    assert_eq!(vote(1, 0, None).cost(), (Consensus, 1));
    assert_eq!(polka(value().value_id(), VALIDATORS_MAX).cost(), (Consensus, 128));
    assert_eq!(round(7).cost(), (Consensus, 7));
    assert_eq!(block(100).1 - block(50).1, block(150).1 - block(100).1, "in proportion");
    assert_eq!(block(1_000), (Consensus, FRAME_COST_MAX), "at the limit");
    assert_eq!(Frame::Change(publish(&genesis, 1)).cost().0, Bulk);
    assert_eq!(Frame::SyncResponse(1, None).cost(), (Bulk, 1));
}

#[test]
fn the_mempool_is_bounded_in_changes_and_in_callers() {
    let genesis = genesis(4, 100, HOUR);
    let ledger = Ledger::genesis(&genesis);
    let mut mempool = Mempool::default();
    for n in 0..MEMPOOL_CHANGES_MAX as u64 {
        assert_eq!(mempool.relay(&ledger, publish(&genesis, n)), Ok(true));
    }
    let over = publish(&genesis, u64::MAX);
    let full = Refusal::Full { waiting: MEMPOOL_CHANGES_MAX };
    assert_eq!(mempool.relay(&ledger, over), Err(full));
    assert_eq!(mempool.relay(&ledger, publish(&genesis, 3)), Ok(false), "known already");
    for ticket in 0..TICKETS_PER_CHANGE_MAX as u64 {
        let known = mempool.submit(&ledger, publish(&genesis, 3), ticket, Duration::ZERO);
        assert_eq!(known, Ok(false));
    }
    assert!(mempool.submit(&ledger, publish(&genesis, 3), 999, Duration::ZERO).is_err());
}
