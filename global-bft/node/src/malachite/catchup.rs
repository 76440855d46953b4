//! Decides when a validator that is behind asks for decided blocks, which peers it asks, and what it
//! makes of their answers (value sync, one block at a time).
//!
//! The peer that delivered the last block is asked for the next one. While there is none, or while
//! it takes long, two are asked at once: a peer that claims every height and delivers none then
//! costs nothing but one request.

use std::time::Duration;

use arc_malachitebft_core_consensus::PeerId;
use arc_malachitebft_core_types::{
    CommitCertificate, CommitSignature, ExtendedCommitCertificate, Round, ValueResponse,
    VoteExtensions,
};
use bytes::Bytes;
use satrap_certify::{Commit, Label, ValidatorSet};

use super::{
    context::{Ctx, Height, Value, ValueId, Voter},
    holders::{Asked, Holders, Request},
    step::Verdict,
};
use crate::limits::{SYNC_HEDGE_AFTER, SYNC_PATIENCE, SYNC_REQUESTS_MAX, SYNC_TIMEOUT};

/// A height that is to be fetched, at one moment.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub height: u64,
    /// The validators of that height.
    pub set: &'a ValidatorSet,
    pub now: Duration,
}

/// Value sync of one validator.
#[derive(Default)]
pub(super) struct Catchup {
    holders: Holders,
    behind_since: Option<Duration>,
    /// Requests for the height in progress, oldest first.
    asked: Vec<Request>,
    last: Option<Label>,
    /// The peer that delivered the last block.
    proven: Option<Label>,
    value: Option<Value>,
    /// The height whose block came from a peer and was certified.
    delivered: Option<u64>,
}

impl Catchup {
    /// `peer` claims to have decided `height`.
    pub fn claims(&mut self, peer: &Label, height: u64) {
        self.holders.claims(peer, height);
    }

    /// The peers to ask now for the block of `next`.
    pub fn requests(&mut self, next: u64, now: Duration) -> Vec<Label> {
        let overdue = |r: &mut Request| now.saturating_sub(r.at) >= SYNC_TIMEOUT;
        let silent: Vec<_> = self.asked.extract_if(.., overdue).collect();
        silent.into_iter().for_each(|request| self.not_delivered(&request.peer, now));
        let mut peers = Vec::new();
        while self.asked.len() < self.requests_max(now) {
            let Some(peer) = self.choose(next, now) else {
                if self.asked.is_empty() {
                    self.behind_since = None;
                }
                break;
            };
            let since = *self.behind_since.get_or_insert(now);
            if now.saturating_sub(since) < SYNC_PATIENCE {
                break;
            }
            self.asked.push(Request { peer: peer.clone(), at: now });
            self.last = Some(peer.clone());
            peers.push(peer);
        }
        peers
    }

    /// How many requests may wait for an answer at `now`.
    fn requests_max(&self, now: Duration) -> usize {
        let waits_long = self.asked.first().is_some_and(|r| now - r.at >= SYNC_HEDGE_AFTER);
        if self.proven.is_some() && !waits_long { 1 } else { SYNC_REQUESTS_MAX }
    }

    fn choose(&self, next: u64, now: Duration) -> Option<Label> {
        let proven = self.proven.as_ref().filter(|_| self.asked.is_empty());
        let proven = proven.filter(|peer| self.holders.may_hold(peer, next, now)).cloned();
        let asked = Asked { now: &self.asked, last: self.last.as_ref() };
        proven.or_else(|| self.holders.choose(next, now, &asked))
    }

    /// Takes the answer of a peer: the certificate for the core to verify, which only hands it back.
    /// The block is kept here meanwhile.
    pub fn take(
        &mut self,
        from: &Label,
        (height, held): (u64, Option<(Value, Commit)>),
        wanted: Wanted<'_>,
    ) -> Verdict<ValueResponse<Ctx>> {
        let place = self.asked.iter().position(|request| request.peer == *from);
        let Some(place) = place.filter(|_| height == wanted.height) else { return Verdict::Leave };
        self.asked.remove(place);
        let Some((value, commit)) = held else {
            self.holders.claims(from, height - 1);
            self.not_delivered(from, wanted.now);
            return Verdict::Leave;
        };
        let is_of_height = value.block().checkpoint.height == height;
        if !is_of_height || commit.signatures.len() != wanted.set.len() {
            self.not_delivered(from, wanted.now);
            return Verdict::Junk;
        }
        let certificate = certificate(height, &value, &commit, wanted.set);
        self.value = Some(value);
        Verdict::Take(ValueResponse::new(core_peer(), Bytes::new(), certificate))
    }

    /// The block that was received for a certificate that verified, and the peer that sent both.
    pub fn certified(&mut self, height: u64, id: &ValueId, peer: Option<&Label>) -> Option<Value> {
        let value = self.value.take().filter(|value| value.value_id() == *id)?;
        if let Some(peer) = peer {
            self.holders.trust(peer);
            self.proven = Some(peer.clone());
            self.delivered = Some(height);
        }
        Some(value)
    }

    /// HOLDERS-1: a peer claimed a block and did not deliver it.
    pub fn not_delivered(&mut self, peer: &Label, now: Duration) {
        self.proven.take_if(|proven| proven == peer);
        self.holders.distrust(peer, now);
    }

    /// `height` was decided. Returns whether to go on at once, because its block came from a peer.
    pub fn decided(&mut self, height: u64) -> bool {
        self.asked.clear();
        let goes_on = self.delivered.take() == Some(height);
        if !goes_on {
            self.behind_since = None;
        }
        goes_on
    }
}

/// `commit` as the core verifies it.
fn certificate(
    height: u64,
    value: &Value,
    commit: &Commit,
    set: &ValidatorSet,
) -> ExtendedCommitCertificate<Ctx> {
    let signer = |(address, s): (&_, &Option<_>)| {
        s.map(|signature| CommitSignature::new(Voter(*address), signature))
    };
    let signers = set.addresses().iter().zip(&commit.signatures);
    let certificate = CommitCertificate {
        height: Height(height),
        round: Round::new(commit.round),
        value_id: value.value_id(),
        commit_signatures: signers.filter_map(signer).collect(),
    };
    let none = VoteExtensions::new(Vec::new());
    ExtendedCommitCertificate::from_commit_certificate_and_extensions(certificate, none)
}

/// The core names peers by libp2p ids, which nothing here uses.
fn core_peer() -> PeerId {
    /// Multihash "identity" of one zero byte.
    const IDENTITY: [u8; 3] = [0, 1, 0];
    PeerId::from_bytes(&IDENTITY).expect("an identity multihash is a peer id")
}
