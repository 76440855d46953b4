//! The lies a compromised region can tell an edge, made from true updates.
//!
//! The liar has everything a region has: valid mTLS credentials, every certified block, all
//! content. It does not have a validator's key. Each [`Lie`] names the rules of
//! `docs/spec/verification.md` that may refuse it; an edge that accepts one is broken.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use satrap_certify::{
    BundleName, Commit, Key, PublicKey, Realm, Step, Update, ValidatorSet, change::Entry,
    directory::Head, keys, update::Delta, validators::Validator,
};
use satrap_merkle::{codec::Canonical as _, directory::Directory};

/// One way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// One byte of one value is changed.
    TamperValue,
    /// An older checkpoint is offered as the newest.
    OldVersion,
    /// One key is left out.
    WithholdKey,
    /// Some values come from the version before.
    MixVersions,
    /// The head names another root, and the content fits it.
    ForgeHead,
    /// A certificate of another realm, for content of the liar's choice.
    ForeignCertificate,
    /// Bytes that are no message at all.
    Garbage,
    /// A message larger than any honest one.
    Oversized,
}

/// The true state, now and before, from which a liar makes its lies.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    /// The victim's realm.
    pub realm: &'a Realm,
    /// The answer of an honest server to this edge now.
    pub update: &'a Update,
    /// The answer of an honest server, before the victim's version, to an edge that held nothing.
    pub old: &'a Update,
    /// The bundle to lie about.
    pub bundle: &'a BundleName,
    /// Its whole present content.
    pub whole: &'a Delta,
    /// Its whole content one version ago.
    pub old_whole: &'a Delta,
}

/// Bytes to send instead of an update.
pub type LieBytes = Vec<u8>;

impl Lie {
    /// All lies, in the order in which a liar sends them.
    pub const ALL: [Self; 8] = [
        Self::TamperValue,
        Self::OldVersion,
        Self::WithholdKey,
        Self::MixVersions,
        Self::ForgeHead,
        Self::ForeignCertificate,
        Self::Garbage,
        Self::Oversized,
    ];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TamperValue => "tamper-value",
            Self::OldVersion => "old-version",
            Self::WithholdKey => "withhold-key",
            Self::MixVersions => "mix-versions",
            Self::ForgeHead => "forge-head",
            Self::ForeignCertificate => "foreign-certificate",
            Self::Garbage => "garbage",
            Self::Oversized => "oversized",
        }
    }

    /// The rules that may refuse it.
    #[must_use]
    pub fn refused_by(self) -> &'static [&'static str] {
        match self {
            Self::TamperValue | Self::WithholdKey | Self::MixVersions => &["B4"],
            Self::OldVersion => &["C2"],
            Self::ForgeHead => &["D1"],
            // The foreign set is not the announced one (adjacent height), or none of ours signed
            // (skipped heights).
            Self::ForeignCertificate => &["C4", "C7"],
            Self::Garbage => &["WIRE-1"],
            Self::Oversized => &["WIRE-2"],
        }
    }

    /// The message for an edge, made from `truth`. `frame_bytes_max` is what an honest server
    /// never exceeds.
    #[must_use]
    pub fn tell(self, truth: Truth<'_>, frame_bytes_max: usize) -> LieBytes {
        match self {
            Self::TamperValue => with_content(truth, |delta| {
                let value = &mut delta.puts[0].1;
                let mut bytes = value.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                *value = Arc::from(bytes);
            }),
            Self::WithholdKey => with_content(truth, |delta| {
                delta.puts.pop();
            }),
            Self::MixVersions => {
                let old = truth.old_whole.clone();
                with_content(truth, |delta| delta.puts = mix(&delta.puts, &old.puts))
            }
            Self::OldVersion => truth.old.to_canonical(),
            Self::ForgeHead => forge(truth).0.to_canonical(),
            Self::ForeignCertificate => foreign(truth),
            Self::Garbage => vec![0xA5; 1_000],
            // Beyond what any envelope could add.
            Self::Oversized => vec![0; frame_bytes_max + 4_096],
        }
    }
}

/// The true update, with the bundle sent whole and altered.
fn with_content(truth: Truth<'_>, alter: impl FnOnce(&mut Delta)) -> LieBytes {
    let mut update = truth.update.clone();
    let mut delta = truth.whole.clone();
    alter(&mut delta);
    update.contents.retain(|delta| delta.bundle != *truth.bundle);
    update.contents.push(delta);
    update.to_canonical()
}

/// Neither version, but made of both: old values where a key changed, else without the new keys,
/// else with one that was removed.
fn mix(new: &[Entry], old: &[Entry]) -> Vec<Entry> {
    let in_old = |key: &Key| old.iter().find(|(k, _)| k == key).map(|(_, value)| value);
    let old_value = |(key, value): &Entry| (key.clone(), in_old(key).unwrap_or(value).clone());
    let mut mixed: Vec<_> = new.iter().map(old_value).collect();
    if mixed == new {
        mixed.retain(|(key, _)| in_old(key).is_some());
    }
    if mixed == new {
        mixed.extend(old.iter().find(|(key, _)| new.iter().all(|(k, _)| k != key)).cloned());
        mixed.sort();
    }
    mixed
}

/// The true update with a directory in which the bundle's head names content the liar made.
fn forge(truth: Truth<'_>) -> (Update, Directory) {
    let mut update = truth.update.clone();
    let mut delta = truth.whole.clone();
    let first = delta.puts[0].0.clone();
    delta.puts[0] = (first, Arc::from(&b"the region's own idea"[..]));
    let tree = delta.apply(&Default::default());
    let head = Head {
        name: truth.bundle.clone(),
        version: u64::MAX / 2,
        root: tree.root(),
        entries: tree.len() as u64,
        bytes: tree.bytes(),
        height: newest(&mut update).checkpoint.height,
    };
    let forged = Directory::new(vec![(truth.bundle.as_str().to_owned(), head.to_canonical())]);
    update.heads = Some(forged.prove_all());
    update.contents = vec![delta];
    (update, forged)
}

/// The step to the newest checkpoint.
fn newest(update: &mut Update) -> &mut Step {
    update.steps.last_mut().expect("a true update has a checkpoint")
}

/// The forged directory, certified by validators that the liar made up, over this realm's own chain
/// id and genesis: the best certificate there is without one of the realm's keys.
fn foreign(truth: Truth<'_>) -> LieBytes {
    let (mut update, forged) = forge(truth);
    let keys = [1, 2, 3, 4].map(|seed| SigningKey::from_bytes(&[seed; 32]));
    let validator = |key| Validator { public: PublicKey::of(key), power: 1 };
    let set = ValidatorSet::new(keys.iter().map(validator).collect());
    let set = set.expect("four different keys are a set");
    let Step { checkpoint, commit, sets } = newest(&mut update);
    checkpoint.validators_hash = set.hash();
    checkpoint.next_validators_hash = set.hash();
    checkpoint.proposer = set.addresses()[0];
    checkpoint.commitments.directory_root = forged.root();
    checkpoint.commitments.directory_size = forged.size();
    *commit = Commit { round: 0, signatures: vec![None; set.len()] };
    let bytes = commit.sign_bytes(truth.realm, checkpoint);
    for key in &keys {
        let place = set.index_of(&PublicKey::of(key).address()).expect("a key of the set");
        commit.signatures[place] = Some(keys::sign(key, &bytes));
    }
    *sets = vec![set];
    update.to_canonical()
}
