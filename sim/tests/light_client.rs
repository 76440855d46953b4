//! Every certified block is a Tendermint light block: a verifier we did not write accepts what
//! ours accepts (docs/adr/0001, rules C2 to C10), and both refuse the same forgeries.

#![expect(clippy::unwrap_used, reason = "the lint exempts test functions but not their helpers")]

use std::time::Duration;

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Checkpoint, Clock, Commit, Linkage, PublicKey, Realm, StepRules, Timestamp, Trusted, Validator,
    ValidatorSet, light_block::signed_header,
};
use satrap_sim::{
    CertifiedBlock, SimRealm,
    realm::{GENESIS_TIME, key},
};
use tendermint::{block::signed_header::SignedHeader, evidence::ConflictingBlock, validator::Set};
use tendermint_light_client_verifier::{
    ProdVerifier, Verdict, Verifier as _,
    options::Options,
    types::{TrustThreshold, TrustedBlockState, UntrustedBlockState},
};
use tendermint_proto::{Protobuf, v0_37::types};

const HEIGHTS: u64 = 60;

fn chain() -> (SimRealm, Vec<CertifiedBlock>) {
    let mut realm = SimRealm::new("light", 4);
    let blocks = realm.four_five_four(HEIGHTS);
    (realm, blocks)
}

fn options(realm: &SimRealm) -> Options {
    Options {
        trust_threshold: TrustThreshold::ONE_THIRD,
        trusting_period: realm.genesis.policy.trusting_period,
        clock_drift: realm.genesis.policy.clock_drift,
    }
}

/// A block on the wire of a light client, after one round trip through protobuf.
struct Light {
    header: SignedHeader,
    validators: Set,
    next_validators: Set,
}

impl Light {
    fn of(block: &CertifiedBlock, realm: &Realm) -> Self {
        let decoded = <ConflictingBlock as Protobuf<types::LightBlock>>::decode_vec(
            &block.light_block(realm),
        );
        let decoded = decoded.expect("Tendermint's own type decodes our light block");
        let next_validators = block.next_validators.to_tendermint(&block.checkpoint.proposer);
        Self { header: decoded.signed_header, validators: decoded.validator_set, next_validators }
    }

    fn verify_from(&self, trusted: &Self, options: &Options, now: Timestamp) -> Verdict {
        let header = trusted.header.header();
        let trusted = TrustedBlockState {
            chain_id: &header.chain_id,
            header_time: header.time,
            height: header.height,
            next_validators: &trusted.next_validators,
            next_validators_hash: header.next_validators_hash,
        };
        let untrusted = UntrustedBlockState {
            signed_header: &self.header,
            validators: &self.validators,
            next_validators: Some(&self.next_validators),
        };
        ProdVerifier::default().verify_update_header(
            untrusted,
            trusted,
            options,
            now.to_tendermint(),
        )
    }
}

/// Both verifiers, side by side.
struct Judges {
    realm: SimRealm,
    options: Options,
}

impl Judges {
    fn new(realm: SimRealm) -> Self {
        Self { options: options(&realm), realm }
    }

    /// Ours, and the reference's, about a step from `trusted` to `block`.
    fn ask(
        &self,
        trusted: &CertifiedBlock,
        block: &CertifiedBlock,
        now: Timestamp,
    ) -> (Result<Trusted, &'static str>, Verdict) {
        let realm = self.realm.genesis.realm();
        let policy = &self.realm.genesis.policy;
        let rules = StepRules { clock: Clock::Now(now), linkage: Linkage::Overlap };
        let ours = trusted.trusted(realm).step(realm, policy, &block.step(), rules);
        let trusted = Light::of(trusted, realm);
        let reference = if block.commit.signatures.len() == block.validators.len() {
            Light::of(block, realm).verify_from(&trusted, &self.options, now)
        } else {
            // The converter refuses such a commit, so it is put together by hand.
            misshapen(block, realm).verify_from(&trusted, &self.options, now)
        };
        (ours.map_err(|e| e.rule()), reference)
    }

    /// Demands one verdict of both, and returns it.
    fn agree(
        &self,
        trusted: &CertifiedBlock,
        block: &CertifiedBlock,
        now: Timestamp,
    ) -> Result<Trusted, &'static str> {
        let (ours, reference) = self.ask(trusted, block, now);
        let heights = (trusted.checkpoint.height, block.checkpoint.height);
        assert_eq!(
            ours.is_ok(),
            reference == Verdict::Success,
            "{heights:?}: ours {ours:?}, reference {reference:?}"
        );
        ours
    }
}

/// A light block whose commit has more or fewer places than its set.
fn misshapen(block: &CertifiedBlock, realm: &Realm) -> Light {
    let places = block.validators.len();
    let mut whole = block.clone();
    whole.commit.signatures.resize(places, None);
    let mut light = Light::of(&whole, realm);
    let mut commit = light.header.commit().clone();
    let absent = tendermint::block::CommitSig::BlockIdFlagAbsent;
    commit.signatures.resize(block.commit.signatures.len(), absent);
    light.header = SignedHeader::new(light.header.header().clone(), commit).unwrap();
    light
}

#[test]
fn every_block_verifies_adjacent_across_both_set_changes() {
    let (realm, blocks) = chain();
    let sizes: Vec<_> = blocks.iter().map(|b| b.validators.len()).collect();
    assert!(sizes.len() >= 60 && sizes[0] == 4 && sizes[30] == 5 && sizes[59] == 4);
    assert_ne!(blocks[0].validators, blocks[59].validators, "another four");
    let judges = Judges::new(realm);
    let mut first = Trusted::genesis(&judges.realm.genesis);
    for pair in blocks.windows(2) {
        let now = pair[1].checkpoint.time;
        let stepped = judges.agree(&pair[0], &pair[1], now).unwrap();
        assert_eq!(stepped, pair[1].trusted(judges.realm.genesis.realm()));
    }
    // Ours starts at the genesis, where the reference wants a first trusted block.
    let (realm, policy) = (judges.realm.genesis.realm(), &judges.realm.genesis.policy);
    for block in &blocks {
        let clock = Clock::Now(block.checkpoint.time);
        let rules = StepRules { clock, linkage: Linkage::Announced };
        first = first.step(realm, policy, &block.step(), rules).unwrap();
    }
    assert_eq!(first.height, HEIGHTS);
}

#[test]
fn skipping_forwards_is_accepted_and_backwards_is_a_rollback() {
    let (realm, blocks) = chain();
    let judges = Judges::new(realm);
    let now = judges.realm.now;
    let (mut accepted, mut rollbacks) = (0, 0);
    for (i, trusted) in blocks.iter().enumerate().step_by(7) {
        for (j, block) in blocks.iter().enumerate().step_by(3) {
            match judges.agree(trusted, block, now) {
                Ok(_) => {
                    assert!(j > i);
                    accepted += 1;
                }
                Err(rule) => {
                    assert!(j <= i, "{rule} from {i} to {j}");
                    assert_eq!(rule, "C2");
                    rollbacks += 1;
                }
            }
        }
    }
    assert!(accepted > 80 && rollbacks > 80, "{accepted}, {rollbacks}");
}

#[test]
fn a_set_that_no_trusted_set_overlaps_cannot_be_skipped_to() {
    let mut realm = SimRealm::new("light", 4);
    let mut blocks = vec![realm.certify(&[])];
    // One by one, all four validators are replaced by others.
    for (joins, leaves) in [("w0", "v0"), ("w1", "v1"), ("w2", "v2"), ("w3", "v3")] {
        let change = realm.add_validator(joins);
        blocks.push(realm.certify(&[change]));
        let change = realm.remove_validator(leaves);
        blocks.push(realm.certify(&[change]));
    }
    blocks.push(realm.certify(&[]));
    let judges = Judges::new(realm);
    let now = judges.realm.now;
    let mut verdicts = Vec::new();
    for trusted in &blocks {
        for block in blocks.iter().filter(|b| b.checkpoint.height > trusted.checkpoint.height) {
            let (ours, reference) = judges.ask(trusted, block, now);
            let enough = !matches!(reference, Verdict::NotEnoughTrust(_));
            assert_eq!(ours.as_ref().err() == Some(&"C7"), !enough, "{reference:?}");
            assert_eq!(ours.is_ok(), reference == Verdict::Success);
            verdicts.push(ours.is_ok());
        }
    }
    assert!(verdicts.contains(&true) && verdicts.contains(&false));
    // From the first block to the last there is no way but over the steps between.
    assert_eq!(judges.agree(&blocks[0], blocks.last().unwrap(), now), Err("C7"));
}

/// A forgery of a block, and the rule of ours that refuses it.
type Forgery = (&'static str, &'static str, fn(&mut CertifiedBlock));

/// The first three of the set signed, all others are absent.
const FORGERIES: [Forgery; 20] = [
    ("tampered directory root", "C6", |b| b.checkpoint.commitments.directory_root[0] ^= 1),
    ("tampered directory size", "C6", |b| b.checkpoint.commitments.directory_size += 1),
    ("tampered history root", "C6", |b| b.checkpoint.commitments.history_root[31] ^= 0x80),
    ("tampered history size", "C6", |b| b.checkpoint.commitments.history_size += 1),
    ("tampered governance root", "C6", |b| b.checkpoint.commitments.governance_root[7] ^= 4),
    ("tampered payload", "C6", |b| b.checkpoint.data_hash[0] ^= 1),
    ("tampered predecessor", "C6", |b| {
        b.checkpoint.last_block.as_mut().unwrap().hash[0] ^= 1;
    }),
    ("tampered proposer", "C6", |b| b.checkpoint.proposer.0[0] ^= 1),
    ("time moved by a nanosecond", "C6", |b| b.checkpoint.time.0 += 1),
    ("another round", "C6", |b| b.commit.round += 1),
    ("2f signatures", "C5", |b| remove_signers(b, 1)),
    ("one signature", "C5", |b| remove_signers(b, usize::MAX)),
    ("no signature", "C5", |b| b.commit.signatures.fill(None)),
    ("duplicate signer", "C6", |b| b.commit.signatures[0] = b.commit.signatures[1]),
    ("duplicate signer for an absent one", "C6", |b| {
        remove_signers(b, 1);
        let copy = b.commit.signatures[0];
        *b.commit.signatures.iter_mut().find(|s| s.is_none()).unwrap() = copy;
    }),
    ("first signature altered", "C6", |b| alter_signature(b, 0)),
    ("second signature altered", "C6", |b| alter_signature(b, 1)),
    ("third signature altered", "C6", |b| alter_signature(b, 2)),
    ("one place too many", "C5", |b| b.commit.signatures.push(None)),
    ("one place too few", "C5", |b| b.commit.signatures.truncate(b.validators.len() - 1)),
];

fn remove_signers(block: &mut CertifiedBlock, most: usize) {
    let signed = block.commit.signatures.iter_mut().filter(|s| s.is_some());
    let signed: Vec<_> = signed.collect();
    let keep = signed.len().saturating_sub(most).max(1);
    signed.into_iter().skip(keep).for_each(|s| *s = None);
}

fn alter_signature(block: &mut CertifiedBlock, nth: usize) {
    let signature = block.commit.signatures.iter_mut().flatten().nth(nth);
    signature.expect("at least three signed")[5] ^= 1;
}

/// Four keys that no operator ever authorized.
fn forger() -> (Vec<SigningKey>, ValidatorSet) {
    let keys: Vec<_> = (0..4).map(|i| key(&format!("forger/{i}"))).collect();
    let validator = |key: &SigningKey| Validator { public: PublicKey::of(key), power: 1 };
    let set = ValidatorSet::new(keys.iter().map(validator).collect()).unwrap();
    (keys, set)
}

#[test]
fn both_verifiers_refuse_every_forgery_adjacent_and_skipping() {
    let (realm, blocks) = chain();
    let judges = Judges::new(realm);
    let now = judges.realm.now;
    // Within the first set, and over both changes; signers are absent and places are four.
    for (from, to) in [(9, 10), (2, 15), (44, 45), (2, 50)] {
        let (trusted, block) = (&blocks[from], &blocks[to]);
        judges.agree(trusted, block, now).unwrap();
        for (name, rule, forge) in FORGERIES {
            let mut forged = block.clone();
            forge(&mut forged);
            let refused = judges.agree(trusted, &forged, now).unwrap_err();
            assert_eq!(refused, rule, "{name}, from {from} to {to}");
        }
    }
}

#[test]
fn a_set_is_believed_only_if_it_was_announced_or_vouched_for() {
    let (realm, blocks) = chain();
    let judges = Judges::new(realm);
    let now = judges.realm.now;
    let (keys, set) = forger();
    // A header that names the forger's set, correctly signed by all of it.
    for (from, to, rule) in [(9, 10, "C4"), (2, 15, "C7"), (2, 50, "C7")] {
        let mut forged = blocks[to].clone();
        forged.validators = set.clone();
        forged.checkpoint.validators_hash = set.hash();
        forged.commit = sign(judges.realm.genesis.realm(), &keys, &forged.checkpoint, &set);
        assert_eq!(judges.agree(&blocks[from], &forged, now), Err(rule), "{from} to {to}");
    }
    // A true header, with the forger's set instead of the one it names: the signing one, and the
    // one announced by the block that changes it.
    let change = blocks.iter().position(|b| b.validators != b.next_validators).unwrap();
    let mut forged = blocks[50].clone();
    forged.validators = set.clone();
    forged.next_validators = set.clone();
    assert_eq!(judges.agree(&blocks[2], &forged, now), Err("C4"));
    for from in [2, change - 1] {
        let mut forged = blocks[change].clone();
        forged.next_validators = set.clone();
        assert_eq!(judges.agree(&blocks[from], &forged, now), Err("C4"));
    }
}

#[test]
fn a_surplus_signature_that_does_not_verify_is_refused_here_and_ignored_there() {
    let (realm, blocks) = chain();
    let judges = Judges::new(realm);
    let now = judges.realm.now;
    let mut padded = blocks[10].clone();
    padded.commit.signatures[3] = Some([7; 64]);
    let (ours, reference) = judges.ask(&blocks[9], &padded, now);
    assert_eq!((ours.unwrap_err(), reference), ("C6", Verdict::Success), "C6 is the stricter");
}

#[test]
fn a_block_of_another_chain_is_refused() {
    let (realm, blocks) = chain();
    // The worst case: the same validators, under another chain id.
    let other = SimRealm::new("dark", 4);
    let keys: Vec<_> = realm.validator_keys.values().cloned().collect();
    let foreign = |block: &CertifiedBlock| CertifiedBlock {
        commit: sign(other.genesis.realm(), &keys, &block.checkpoint, &block.validators),
        ..block.clone()
    };
    let judges = Judges::new(SimRealm::new("light", 4));
    let now = realm.now;
    for (from, to) in [(9, 10), (2, 15), (2, 50)] {
        let block = foreign(&blocks[to]);
        let ours = judges.agree(&blocks[from], &block, now);
        assert_eq!(ours, Err("C6"), "signed for another realm");
        let theirs = Light::of(&block, other.genesis.realm());
        let trusted = Light::of(&blocks[from], realm.genesis.realm());
        let verdict = theirs.verify_from(&trusted, &judges.options, now);
        assert!(format!("{verdict:?}").contains("ChainIdMismatch"), "{verdict:?}");
    }
}

/// A commit over a checkpoint of `realm` by those of `keys` that are in `set`.
fn sign(realm: &Realm, keys: &[SigningKey], checkpoint: &Checkpoint, set: &ValidatorSet) -> Commit {
    let mut commit = Commit { round: 0, signatures: vec![None; set.len()] };
    let bytes = commit.sign_bytes(realm, checkpoint);
    for (place, validator) in set.validators().iter().enumerate() {
        let key = keys.iter().find(|key| PublicKey::of(key) == validator.public);
        commit.signatures[place] = key.map(|key| satrap_certify::keys::sign(key, &bytes));
    }
    commit
}

#[test]
fn clocks_are_judged_alike_up_to_the_nanosecond_of_the_limit() {
    let (realm, blocks) = chain();
    let judges = Judges::new(realm);
    let policy = judges.realm.genesis.policy;
    let nanosecond = Duration::from_nanos(1);
    for (from, to) in [(9, 10), (2, 15), (2, 50)] {
        let (trusted, block) = (&blocks[from], &blocks[to]);
        // C9: how far the block may lie ahead of the clock.
        let earliest = Timestamp(block.checkpoint.time.0 - policy.clock_drift.as_nanos() as u64);
        judges.agree(trusted, block, earliest.plus(nanosecond)).unwrap();
        assert_eq!(judges.agree(trusted, block, Timestamp(earliest.0 - 1)), Err("C9"));
        // C8: how old the trusted block may be.
        let latest = trusted.checkpoint.time.plus(policy.trusting_period);
        judges.agree(trusted, block, Timestamp(latest.0 - 1)).unwrap();
        assert_eq!(judges.agree(trusted, block, latest.plus(nanosecond)), Err("C8"));
        // On the limit itself ours still accepts, Tendermint's does not.
        for limit in [earliest, latest] {
            let (ours, reference) = judges.ask(trusted, block, limit);
            assert!(ours.is_ok() && reference != Verdict::Success, "{reference:?}");
        }
    }
    // C10: time must advance, however well it is signed.
    let mut late = blocks[9].clone();
    late.checkpoint.time = blocks[10].checkpoint.time;
    assert_eq!(judges.agree(&late, &blocks[10], judges.realm.now), Err("C10"));
}

#[test]
fn the_light_block_holds_exactly_the_certified_header() {
    let (realm, blocks) = chain();
    let realm = realm.genesis.realm();
    for block in &blocks {
        let light = Light::of(block, realm);
        let header = signed_header(realm, &block.checkpoint, &block.commit, &block.validators);
        assert_eq!(light.header, header);
        assert_eq!(
            light.header.header().app_hash.as_bytes(),
            block.checkpoint.commitments.app_hash()
        );
        assert!(light.header.header().time > GENESIS_TIME.to_tendermint());
        assert_eq!(light.validators.hash().as_bytes(), block.validators.hash());
        assert!(light.validators.proposer().is_some(), "Go refuses a set without a proposer");
    }
}
