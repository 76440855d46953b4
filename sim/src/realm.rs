//! A global quorum without a network: it decides every valid change, with real signatures.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use satrap_certify::{
    Action, Block, BundleName, ChainId, Change, Checkpoint, Class, ClassKind, Commit, Genesis,
    Governance, GovernanceAct, Key, Label, Operator, Policy, PublicKey, Publish, Realm, Retire,
    SignedChange, Timestamp, Update, ValidatorInfo, keys,
};
use satrap_global_core::{Ledger, Rejection};
use satrap_merkle::BundleTree;
use sha2::{Digest as _, Sha256};

/// When simulated realms begin: 2026-01-01T00:00:00Z.
pub const GENESIS_TIME: Timestamp = Timestamp(1_767_225_600_000_000_000);

/// A realm whose validators always agree.
#[derive(Debug)]
pub struct SimRealm {
    /// The root of trust.
    pub genesis: Genesis,
    /// The state that the validators agree on.
    pub ledger: Ledger,
    /// Keys of all present and former validators, by public key.
    pub validator_keys: BTreeMap<PublicKey, SigningKey>,
    /// Keys of the operators `alice`, `bob`, `carol`.
    pub operators: Vec<SigningKey>,
    /// Certified time; every block is one second later.
    pub now: Timestamp,
    /// Every decided block.
    pub blocks: Vec<(Block, Commit)>,
}

/// A key derived from words, the same in every run.
#[must_use]
pub fn key(words: &str) -> SigningKey {
    SigningKey::from_bytes(&Sha256::digest(words.as_bytes()).into())
}

/// A validator of power 1 with a derived key.
#[must_use]
pub fn validator(chain: &str, name: &str) -> ValidatorInfo {
    ValidatorInfo {
        name: Label::new(name).expect("test names are labels"),
        public: PublicKey::of(&key(&format!("{chain}/{name}"))),
        power: 1,
        jurisdiction: Label::new("zz").expect("a label"),
        url: format!("https://{name}.invalid:1"),
    }
}

impl SimRealm {
    /// A realm with validators `v0`, `v1`, … and the classes `pki/` and `config/`.
    #[must_use]
    pub fn new(chain: &str, validators: usize) -> Self {
        let classes = [
            Class::new("pki/", 2, ClassKind::X509Trust),
            Class::new("config/", 1, ClassKind::Opaque),
        ];
        Self::with_classes(chain, validators, &classes)
    }

    /// A realm with validators `v0`, `v1`, … and these classes.
    #[must_use]
    pub fn with_classes(chain: &str, validators: usize, classes: &[Class]) -> Self {
        let names: Vec<_> = (0..validators).map(|i| format!("v{i}")).collect();
        let infos: Vec<_> = names.iter().map(|name| validator(chain, name)).collect();
        let operators: Vec<_> =
            ["alice", "bob", "carol"].iter().map(|n| key(&format!("{chain}/{n}"))).collect();
        let operator = |(name, key): (&str, &SigningKey)| {
            let public = PublicKey::of(key);
            (public, Operator { public, principal: Label::new(name).expect("a label") })
        };
        let governance = Governance {
            version: 0,
            approvals: 2,
            operators: ["alice", "bob", "carol"]
                .into_iter()
                .zip(&operators)
                .map(operator)
                .collect(),
            classes: classes.iter().map(|c| (c.prefix.clone(), c.clone())).collect(),
            region_keys: BTreeMap::new(),
            validators: infos,
            retired_version: 0,
            accounts: [0; 32],
        };
        let policy = Policy {
            heartbeat: Duration::from_secs(30),
            trusting_period: Duration::from_secs(90 * 24 * 3600),
            clock_drift: Duration::from_secs(10),
            leader_rotation_heights: 100,
        };
        let chain_id = ChainId::new(chain).expect("test chain ids are valid");
        let genesis = Genesis::new(&chain_id, GENESIS_TIME, policy, governance)
            .expect("the simulated genesis is valid");
        let validator_keys = names.iter().map(|name| key(&format!("{chain}/{name}")));
        Self {
            ledger: Ledger::genesis(&genesis),
            genesis,
            validator_keys: validator_keys.map(|k| (PublicKey::of(&k), k)).collect(),
            operators,
            now: GENESIS_TIME,
            blocks: Vec::new(),
        }
    }

    /// Decides the next block with `changes`, signed by the first validators in set order that
    /// make a quorum, and returns it as an update from the block before.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] of the first change that does not apply.
    pub fn decide(&mut self, changes: &[SignedChange]) -> Result<Update, Rejection> {
        for change in changes {
            self.ledger.check(change)?;
        }
        self.now = self.now.plus(Duration::from_secs(1));
        let proposer = self.ledger.validators().addresses()[0];
        let block = self.ledger.build(proposer, self.now, changes);
        let commit = self.commit(&block, self.quorum());
        let update = self.ledger.apply(&block, &commit)?;
        self.blocks.push((block, commit));
        Ok(update)
    }

    /// How many validators, taken in set order, are needed to certify.
    #[must_use]
    pub fn quorum(&self) -> usize {
        let set = self.ledger.validators();
        let mut power = 0;
        let enough = set.validators().iter().position(|v| {
            power += v.power;
            power >= set.quorum_power()
        });
        enough.expect("all validators together are a quorum") + 1
    }

    /// A commit of the next block by the first `signers` validators in set order.
    #[must_use]
    pub fn commit(&self, block: &Block, signers: usize) -> Commit {
        self.commit_in(self.genesis.realm(), &block.checkpoint, signers)
    }

    /// A commit by this realm's validators over a checkpoint of any realm.
    #[must_use]
    pub fn commit_in(&self, realm: &Realm, checkpoint: &Checkpoint, signers: usize) -> Commit {
        let set = self.ledger.validators();
        let mut commit = Commit { round: 0, signatures: vec![None; set.len()] };
        let bytes = commit.sign_bytes(realm, checkpoint);
        for (place, validator) in set.validators().iter().enumerate().take(signers) {
            let key = &self.validator_keys[&validator.public];
            commit.signatures[place] = Some(keys::sign(key, &bytes));
        }
        commit
    }

    /// A publish of `entries` as the whole new content of `bundle`, approved by all operators.
    #[must_use]
    pub fn publish(&self, bundle: &str, entries: &[(&str, &str)]) -> SignedChange {
        let name = BundleName::new(bundle).expect("test bundles have valid names");
        let mut to = BundleTree::default();
        for (key, value) in entries {
            let key = Key::new(key.as_bytes()).expect("test keys are valid");
            to.insert(&key, Arc::from(value.as_bytes()));
        }
        let absent = self.ledger.governance().retired_version;
        let version = self.ledger.heads().get(&name).map_or(absent, |head| head.version);
        let from = self.ledger.content(&name).cloned().unwrap_or_default();
        self.approved(Action::Publish(Publish::between(name, version, &from, &to)))
    }

    /// The retirement of `bundle`, approved by all operators.
    #[must_use]
    pub fn retire(&self, bundle: &str) -> SignedChange {
        let bundle = BundleName::new(bundle).expect("test bundles have valid names");
        let expect_version = self.ledger.heads().get(&bundle).map_or(0, |head| head.version);
        self.approved(Action::Retire(Retire { bundle, expect_version }))
    }

    /// A governance change, approved by all operators.
    #[must_use]
    pub fn govern(&self, act: GovernanceAct) -> SignedChange {
        self.approved(Action::Govern(self.ledger.governance().version, act))
    }

    /// `action`, approved by all operators.
    #[must_use]
    pub fn approved(&self, action: Action) -> SignedChange {
        let mut signed = SignedChange::unsigned(Change::new(self.genesis.realm(), action));
        self.operators.iter().for_each(|key| signed.approve(key));
        signed
    }

    /// The change that adds validator `name` (its key is derived), and remembers its key.
    #[must_use]
    pub fn add_validator(&mut self, name: &str) -> SignedChange {
        let chain = self.genesis.realm().chain_id().to_owned();
        let info = validator(&chain, name);
        let key = key(&format!("{chain}/{name}"));
        self.validator_keys.insert(info.public, key);
        let mut validators = self.ledger.governance().validators.clone();
        validators.push(info);
        self.govern(GovernanceAct::SetValidators(validators))
    }

    /// The change that removes validator `name`.
    #[must_use]
    pub fn remove_validator(&self, name: &str) -> SignedChange {
        let mut validators = self.ledger.governance().validators.clone();
        validators.retain(|v| v.name.as_str() != name);
        self.govern(GovernanceAct::SetValidators(validators))
    }
}
