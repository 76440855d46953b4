//! The journal of one validator: the log of the height in progress, the last-sign guard, and the
//! messages that the signer was asked to sign.
//!
//! A restarted validator must not sign a message that contradicts an earlier one, although signatures
//! are made outside this process and may arrive late, or after the restart. Three records see to it:
//! a restart derives the same messages from the logged inputs; the guard remembers digests in a
//! second file; and the log names each message that was requested, signed or not.
//!
//! ```text
//!   input ────▶ log buffer ──┐
//!   message ──▶ guard ───────┴─▶ log on disk ─▶ guard on disk ─▶ signer ─▶ core and network
//! ```
//!
//! # Invariants
//!
//! - **JOURNAL-1** The signer is asked for a message only after the guard admitted it and log and guard are
//!   on disk, in that order. No signature can exist for a message that a restart would not derive
//!   again. The guard is never ahead of the log, so a crash between the two cannot make a restarted
//!   validator abstain.
//! - **JOURNAL-2** A validator that lost part of its log has forgotten what it locked, so it signs nothing
//!   up to the height of the newest message that the guard remembers.
//! - **JOURNAL-3** A message that the guard refuses is neither signed nor sent. The core gets a placeholder
//!   for each message of this validator, and drops it.
//! - **JOURNAL-4** A signature counts only for the message that was requested, if it verifies, while the
//!   height of that message is in progress. It is then an input like any other: it is logged before
//!   anything that follows from it is requested.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use arc_malachitebft_core_consensus::{ConsensusMsg, Input, SignedConsensusMsg};
use satrap_certify::{Block, Commit, Digest, PublicKey, Realm, SignatureBytes};

use super::{
    codec::{self, Blocks, LogEntry},
    context::{Ctx, Value, ValueId, Voter},
    effects::{Fatal, SignRequest},
    signing::{UNSIGNED, author_of, bytes_of, parts, place_of, signed},
};
use crate::{
    guard::{Guard, Place},
    store::{Decision, DiskError, Storage},
};

/// The blocks that the log of this height holds whole.
#[derive(Default)]
struct LoggedBlocks(BTreeSet<ValueId>);

impl Blocks for LoggedBlocks {
    fn note(&mut self, id: ValueId) -> bool {
        !self.0.insert(id)
    }
}

/// A message of this validator for the height in progress.
struct Own {
    digest: Digest,
    /// `None` if the log says that it was requested, and the replay has not derived it yet.
    message: Option<ConsensusMsg<Ctx>>,
    signature: Option<SignatureBytes>,
}

/// The log of the height in progress, parsed.
pub(super) struct Log {
    /// The inputs of the core, in order.
    pub inputs: Vec<Input<Ctx>>,
    /// The blocks that they name.
    pub values: Vec<Value>,
}

/// The durable side of one validator, and its own messages of the height in progress.
pub(super) struct Journal {
    realm: Realm,
    public: PublicKey,
    store: Box<dyn Storage>,
    guard: Guard,
    /// JOURNAL-2: nothing is signed up to this height.
    abstain_through: u64,
    /// Log entries of the height in progress that are not on disk yet.
    unwritten: Vec<Vec<u8>>,
    blocks: LoggedBlocks,
    own: BTreeMap<Place, Own>,
    /// The inputs being replayed; empty afterwards.
    replaying: Vec<Input<Ctx>>,
    /// Requests to the signer that wait for the disk (JOURNAL-1).
    requests: Vec<SignRequest>,
    must_flush: bool,
}

impl Journal {
    /// A journal on `store` and `guard`, of the validator with the key `public`.
    pub fn new(realm: Realm, public: PublicKey, store: Box<dyn Storage>, guard: Guard) -> Self {
        Self {
            realm,
            public,
            store,
            guard,
            abstain_through: 0,
            unwritten: Vec::new(),
            blocks: LoggedBlocks::default(),
            own: BTreeMap::new(),
            replaying: Vec::new(),
            requests: Vec::new(),
            must_flush: false,
        }
    }

    /// Parses the log of `height`, which is in progress, for [`Journal::begin_replay`].
    ///
    /// # Errors
    ///
    /// [`Fatal`] if the log is damaged, or names a message that contradicts the guard.
    pub fn read(&mut self, height: u64) -> Result<Log, Fatal> {
        let mut log = Log { inputs: Vec::new(), values: Vec::new() };
        for entry in self.store.logged()? {
            let entry = codec::read_log_entry(&self.realm, &entry, &mut log.values);
            match entry.map_err(Fatal::Log)? {
                LogEntry::Input(input) => {
                    self.recall(&input);
                    log.inputs.push(input);
                }
                LogEntry::Requested(place, digest) => {
                    let unseen = Own { digest, message: None, signature: None };
                    self.own.entry(place).or_insert(unseen);
                }
            }
        }
        self.blocks.0.extend(log.values.iter().map(Value::value_id));
        self.check(height)?;
        Ok(log)
    }

    /// Remembers a message of this validator that the log holds with its signature.
    fn recall(&mut self, input: &Input<Ctx>) {
        let me = self.me();
        let (message, signature) = match input {
            Input::Vote(vote) if vote.voter == me => {
                (ConsensusMsg::Vote(vote.message.clone()), vote.signature)
            }
            Input::Proposal(proposal) if proposal.proposer == me => {
                (ConsensusMsg::Proposal(proposal.message.clone()), proposal.signature)
            }
            _ => return,
        };
        let digest = codec::digest(&bytes_of(&self.realm, &message));
        let place = place_of(&message);
        let own = Own { digest, message: Some(message), signature: Some(signature) };
        self.own.insert(place, own);
    }

    /// Compares the log with the guard: refuses a log that contradicts it, and notices one that
    /// lacks the newest message that the guard remembers (JOURNAL-2).
    fn check(&mut self, height: u64) -> Result<(), Fatal> {
        for (place, own) in &self.own {
            self.guard.check(*place, &own.digest).map_err(Fatal::Rollback)?;
        }
        let newest = self.guard.newest().filter(|newest| newest.height >= height);
        if let Some(lost) = newest.filter(|newest| !self.own.contains_key(newest)) {
            tracing::error!(
                height = lost.height,
                "the log of this height is lost; this validator abstains until the quorum has \
                 decided it"
            );
            self.abstain_through = lost.height;
        }
        // The crash may have come between log and guard. They are admitted in the order of signing.
        for (place, own) in &self.own {
            // The guard refuses one that is older than it remembers again when it is to be sent.
            let _ = self.guard.admit(*place, &own.digest);
        }
        Ok(())
    }

    fn me(&self) -> Voter {
        Voter(self.public.address())
    }

    /// The core is about to be fed `log`, whose entries are not written again.
    pub fn begin_replay(&mut self, log: Vec<Input<Ctx>>) {
        self.replaying = log;
    }

    /// The core has been fed the log, which is returned.
    pub fn end_replay(&mut self) -> Vec<Input<Ctx>> {
        std::mem::take(&mut self.replaying)
    }

    /// The signed messages of this validator for the height in progress, in the order of signing.
    pub fn own(&self) -> Vec<SignedConsensusMsg<Ctx>> {
        let whole = |own: &Own| Some(signed(own.message.clone()?, own.signature?));
        self.own.values().filter_map(whole).collect()
    }

    /// Logs an input that the core has verified.
    pub fn append(&mut self, input: &Input<Ctx>) {
        // A replayed input is already logged; one derived for the first time is not.
        if !self.replaying.contains(input) {
            self.unwritten.extend(codec::log_entry(input, &mut self.blocks));
        }
    }

    /// Requests the signature of a message that the core derived (JOURNAL-1, JOURNAL-2, JOURNAL-3).
    pub fn request(&mut self, message: ConsensusMsg<Ctx>) {
        let (place, bytes) = (place_of(&message), bytes_of(&self.realm, &message));
        if place.height <= self.abstain_through {
            return;
        }
        let digest = codec::digest(&bytes);
        if let Err(refused) = self.guard.admit(place, &digest) {
            tracing::error!(%refused, "abstaining: the last-sign guard refuses to sign");
            return;
        }
        let own = match self.own.entry(place) {
            Entry::Occupied(requested) => requested.into_mut(),
            Entry::Vacant(new) => {
                self.unwritten.push(codec::requested_entry(place, &digest));
                new.insert(Own { digest, message: None, signature: None })
            }
        };
        own.message = Some(message);
        // The log of a replay supplies the signature as an input, where it came the first time.
        if own.signature.is_none() {
            self.requests.push(SignRequest { place, bytes });
            self.must_flush = true;
        }
    }

    /// Takes an answer of the signer; returns the message if it may be used now (JOURNAL-4).
    pub fn answer(
        &mut self,
        place: Place,
        signature: SignatureBytes,
    ) -> Option<SignedConsensusMsg<Ctx>> {
        let own = self.own.get_mut(&place).filter(|own| own.signature.is_none());
        let Some((own, message)) = own.and_then(|own| own.message.clone().map(|m| (own, m))) else {
            tracing::debug!(?place, "ignored a signature that came after its height was decided");
            return None;
        };
        if !self.public.verifies(&bytes_of(&self.realm, &message), &signature) {
            tracing::error!(?place, "the signature does not verify; this message is not sent");
            return None;
        }
        own.signature = Some(signature);
        Some(signed(message, signature))
    }

    /// The message to send for one that the core wants sent. For a placeholder that is the message of
    /// this validator, once it is signed; a message from the log is sent if the guard admits it (JOURNAL-3).
    pub fn sendable(
        &mut self,
        message: SignedConsensusMsg<Ctx>,
    ) -> Option<SignedConsensusMsg<Ctx>> {
        let (message, signature) = parts(message);
        let place = place_of(&message);
        if signature == UNSIGNED {
            if !self.replaying.is_empty() {
                // Signed messages of the log are sent after the replay, by `own`.
                return None;
            }
            let mut own = self.own.iter();
            let same = |of: &Place| (of.round, of.step) == (place.round, place.step);
            let (_, own) = own.find(|(of, _)| same(of))?;
            return Some(signed(own.message.clone()?, own.signature?));
        }
        if author_of(&message) == self.me() {
            let digest = codec::digest(&bytes_of(&self.realm, &message));
            if let Err(refused) = self.guard.admit(place, &digest) {
                tracing::error!(%refused, "not sending a logged message: the guard refused it");
                return None;
            }
        }
        Some(signed(message, signature))
    }

    /// Everything logged so far must be on disk before this step ends.
    pub fn flush(&mut self) {
        self.must_flush = true;
    }

    /// Ends a step: writes log and guard, and returns the requests that may leave (JOURNAL-1).
    ///
    /// # Errors
    ///
    /// [`Fatal`] from the disk.
    pub fn settle(&mut self) -> Result<Vec<SignRequest>, Fatal> {
        if std::mem::take(&mut self.must_flush) {
            let entries = std::mem::take(&mut self.unwritten);
            if !entries.is_empty() {
                self.store.log(&entries)?;
            }
            self.guard.persist()?;
        }
        Ok(std::mem::take(&mut self.requests))
    }

    /// Makes a decision durable, and with it ends the log of its height.
    ///
    /// # Errors
    ///
    /// [`Fatal`] from the disk.
    pub fn decide(&mut self, decision: &Decision) -> Result<(), Fatal> {
        self.store.decide(decision)?;
        self.unwritten.clear();
        self.blocks = LoggedBlocks::default();
        self.own.clear();
        self.requests.clear();
        Ok(())
    }

    /// A decided block.
    ///
    /// # Errors
    ///
    /// [`DiskError`]
    pub fn decided(&self, height: u64) -> Result<Option<(Block, Commit)>, DiskError> {
        self.store.decided(height)
    }
}
