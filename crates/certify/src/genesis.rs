//! The root of trust: who the first validators and operators are, and the realm's policy.
//!
//! Every process gets the same genesis file and derives the same genesis hash from it. The hash
//! is in every header (as `consensus_hash`) and in every signed change, so nothing signed in
//! one realm means anything in another, even if both chose the same chain id.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use satrap_merkle::{
    Digest,
    codec::{Canonical, Writer},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    governance::{Class, ClassKind, Governance, Operator, ValidatorInfo, check_distinct},
    keys::PublicKey,
    limits::{
        APPROVALS_MAX, BUNDLE_NAME_BYTES_MAX, CLASSES_MAX, GOVERNANCE_ITEMS_MAX, HEADS_MAX,
        PUBLISHES_PER_HOUR_MAX, REALM_BYTES_MAX, URL_BYTES_MAX,
    },
    names::{ChainId, Label},
    timestamp::Timestamp,
    validators::ValidatorSet,
};

/// Which realm something belongs to. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm(Arc<RealmInner>);

#[derive(Debug, PartialEq, Eq)]
struct RealmInner {
    chain_id: tendermint::chain::Id,
    genesis_hash: Digest,
}

impl Realm {
    /// The chain id.
    #[must_use]
    pub fn chain_id(&self) -> &str {
        self.0.chain_id.as_str()
    }

    /// The hash of the genesis.
    #[must_use]
    pub fn genesis_hash(&self) -> &Digest {
        &self.0.genesis_hash
    }

    /// The chain id as Tendermint's type.
    #[must_use]
    pub fn tendermint_chain_id(&self) -> &tendermint::chain::Id {
        &self.0.chain_id
    }
}

/// Numbers that all processes of a realm must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// An idle realm certifies a heartbeat block this often.
    pub heartbeat: Duration,
    /// How long keys of former validators are assumed not to be abused; a follower that was away
    /// longer must be provisioned again.
    pub trusting_period: Duration,
    /// How far a certified time may lie ahead of a follower's clock.
    pub clock_drift: Duration,
    /// The leader changes at the latest after this many heights.
    pub leader_rotation_heights: u64,
}

/// A checked genesis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The realm's first time; every block is later.
    pub time: Timestamp,
    /// The rules that never change.
    pub policy: Policy,
    /// Operators, classes, region keys and the first validators; version 0.
    pub governance: Governance,
    realm: Realm,
    validators: ValidatorSet,
}

/// Why a genesis file is refused.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// Not JSON of the expected form.
    #[error("genesis file is not valid JSON for a genesis: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has a value it must not have.
    #[error("genesis field `{field}`: {why}")]
    Field {
        /// Which field.
        field: &'static str,
        /// The fault, and what was expected.
        why: String,
    },
}

fn field(field: &'static str, why: impl ToString) -> GenesisError {
    GenesisError::Field { field, why: why.to_string() }
}

impl Genesis {
    /// Checks the parts and derives the genesis hash.
    ///
    /// # Errors
    ///
    /// [`GenesisError::Field`] names the part that is wrong.
    pub fn new(
        chain_id: &ChainId,
        time: Timestamp,
        policy: Policy,
        governance: Governance,
    ) -> Result<Self, GenesisError> {
        check(&policy, &governance)?;
        let validators = governance.validator_set().map_err(|e| field("validators", e))?;
        let mut w = Writer::tagged("satrap/genesis/v1");
        chain_id.encode(&mut w);
        time.encode(&mut w);
        for duration in [policy.heartbeat, policy.trusting_period, policy.clock_drift] {
            w.u64(u64::try_from(duration.as_millis()).map_err(|e| field("policy", e))?);
        }
        w.u64(policy.leader_rotation_heights);
        governance.encode(&mut w);
        let genesis_hash = Sha256::digest(w.finish()).into();
        let chain_id =
            tendermint::chain::Id::try_from(chain_id.as_str()).map_err(|e| field("chain_id", e))?;
        let realm = Realm(Arc::new(RealmInner { chain_id, genesis_hash }));
        Ok(Self { time, policy, governance, realm, validators })
    }

    /// The realm this genesis founds.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The set that signs height 1.
    #[must_use]
    pub fn validators(&self) -> &ValidatorSet {
        &self.validators
    }

    /// Reads a genesis file.
    ///
    /// # Errors
    ///
    /// [`GenesisError`] says which field is wrong.
    pub fn from_json(json: &[u8]) -> Result<Self, GenesisError> {
        let raw: RawGenesis = serde_json::from_slice(json)?;
        raw.check()
    }

    /// The genesis file.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(&RawGenesis::of(self))
            .expect("a struct of strings and numbers is JSON");
        json.push('\n');
        json
    }
}

fn check(policy: &Policy, governance: &Governance) -> Result<(), GenesisError> {
    if policy.heartbeat.is_zero() || policy.heartbeat >= policy.trusting_period {
        return Err(field("policy.heartbeat_ms", "must be above 0 and below the trusting period"));
    }
    if policy.leader_rotation_heights == 0 {
        return Err(field("policy.leader_rotation_heights", "must be at least 1"));
    }
    let approvers = governance.principals(governance.operators.keys());
    let needed = governance.classes.values().map(|c| c.approvals).chain([governance.approvals]);
    for approvals in needed {
        let most = approvers.min(APPROVALS_MAX);
        if !(1..=most).contains(&(approvals as usize)) {
            let of = if most == approvers { "the number of operators" } else { "the limit" };
            return Err(field(
                "approvals",
                format!("expected 1 to {most} ({of}), found {approvals}"),
            ));
        }
    }
    for (name, items, max) in [
        ("operators", governance.operators.len(), GOVERNANCE_ITEMS_MAX),
        ("classes", governance.classes.len(), CLASSES_MAX),
        ("regions", governance.region_items(), GOVERNANCE_ITEMS_MAX),
    ] {
        if items > max {
            return Err(field(name, format!("{items} items, at most {max} are allowed")));
        }
    }
    if let Some(region) = governance.region_keys.iter().find(|(_, keys)| keys.is_empty()) {
        return Err(field("regions", format!("region `{}` has no key", region.0)));
    }
    governance.classes.values().try_for_each(check_class)?;
    if governance.validators.iter().any(|v| v.url.len() > URL_BYTES_MAX) {
        return Err(field("validators", format!("a url is longer than {URL_BYTES_MAX} bytes")));
    }
    check_distinct(&governance.validators).map_err(|why| field("validators", why))?;
    if (governance.version, governance.retired_version, governance.accounts) != (0, 0, [0; 32]) {
        return Err(field("governance", "a realm that begins has no versions and no accounts"));
    }
    Ok(())
}

fn check_class(class: &Class) -> Result<(), GenesisError> {
    let Class { prefix, quota, .. } = class;
    if prefix.len() > BUNDLE_NAME_BYTES_MAX || prefix.contains('\0') {
        return Err(field("classes.prefix", "a prefix is longer than a bundle name"));
    }
    for (name, value, max) in [
        ("classes.bundles_max", u64::from(quota.bundles_max), HEADS_MAX as u64),
        ("classes.bytes_max", quota.bytes_max, REALM_BYTES_MAX),
        (
            "classes.publishes_per_hour",
            u64::from(quota.publishes_per_hour),
            u64::from(PUBLISHES_PER_HOUR_MAX),
        ),
    ] {
        if !(1..=max).contains(&value) {
            let why = format!("class `{prefix}` says {value}, expected 1 to {max}");
            return Err(field(name, why));
        }
    }
    Ok(())
}

/// `genesis.json`: the root of trust of a realm. `satrap init` writes it, and it never changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGenesis {
    /// Name of the realm; part of every signature.
    chain_id: String,
    /// When the realm begins, in RFC 3339.
    genesis_time: String,
    /// Times that all followers agree on.
    policy: RawPolicy,
    /// Distinct principals that must approve a change of governance.
    governance_approvals: u32,
    /// The operators, who may approve changes.
    operators: Vec<RawOperator>,
    /// Rules for bundles, by prefix.
    classes: Vec<RawClass>,
    /// Regions with their keys.
    #[serde(default)]
    regions: Vec<RawRegion>,
    /// The first validator set.
    validators: Vec<RawValidator>,
}

/// Times that all followers agree on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    /// Longest time without a block: an idle realm certifies a heartbeat block.
    heartbeat_ms: u64,
    /// How old the last verified checkpoint of a follower may be; after that it must be provisioned
    /// again.
    trusting_period_s: u64,
    /// How far a certified time may lie ahead of a follower's clock.
    clock_drift_ms: u64,
    /// The leader changes at the latest after this many heights.
    leader_rotation_heights: u64,
}

/// An operator key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperator {
    /// The person or team that the key belongs to. Approvals count principals, not keys.
    principal: String,
    /// Ed25519 public key, 64 hex digits.
    public_key: String,
}

/// A class as text files name it: the genesis, and plans of realms.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawClass {
    /// Bundles whose names begin with it; the longest prefix that matches counts.
    prefix: String,
    /// Distinct principals that must approve a change.
    approvals: u32,
    /// The content that is accepted.
    kind: RawKind,
    /// Bundles that the class may hold.
    ///
    /// Default: by the kind, see `docs/authority.md`.
    bundles_max: Option<u32>,
    /// Bytes of content that the class may hold.
    ///
    /// Default: by the kind, see `docs/authority.md`.
    bytes_max: Option<u64>,
    /// Publishes per principal, after a burst of 1024.
    ///
    /// Default: `PUBLISHES_PER_HOUR_DEFAULT`.
    publishes_per_hour: Option<u32>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawKind {
    Opaque,
    X509Trust,
}

/// A region with its keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegion {
    /// The region's name.
    name: String,
    /// Ed25519 public keys, 64 hex digits each.
    public_keys: Vec<String>,
}

/// A validator of the first set.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawValidator {
    /// The validator's name.
    name: String,
    /// Ed25519 public key that signs its votes, 64 hex digits.
    public_key: String,
    /// Voting power.
    power: u64,
    /// The legal area it operates in.
    jurisdiction: String,
    /// `https://HOST:PORT` where the other validators reach it.
    url: String,
}

fn label(name: &'static str, text: &str) -> Result<Label, GenesisError> {
    Label::new(text).map_err(|e| field(name, e))
}

/// An item that an earlier one of the file equals.
fn repeated(name: &'static str, item: impl ToString) -> GenesisError {
    field(name, format!("`{}` is listed twice", item.to_string()))
}

fn public_key(name: &'static str, text: &str) -> Result<PublicKey, GenesisError> {
    let bytes = hex::decode(text).map_err(|e| field(name, e))?;
    let key = <[u8; 32]>::try_from(bytes).map(PublicKey);
    let key = key.map_err(|_| field(name, "expected 64 hex digits (an Ed25519 public key)"))?;
    if !key.is_usable() {
        return Err(field(name, format!("{key} is not a usable Ed25519 key")));
    }
    Ok(key)
}

impl RawGenesis {
    fn of(genesis: &Genesis) -> Self {
        let g = &genesis.governance;
        let ms = |d: Duration| u64::try_from(d.as_millis()).expect("checked by Genesis::new");
        Self {
            chain_id: genesis.realm.chain_id().to_owned(),
            genesis_time: genesis.time.to_string(),
            policy: RawPolicy {
                heartbeat_ms: ms(genesis.policy.heartbeat),
                trusting_period_s: genesis.policy.trusting_period.as_secs(),
                clock_drift_ms: ms(genesis.policy.clock_drift),
                leader_rotation_heights: genesis.policy.leader_rotation_heights,
            },
            governance_approvals: g.approvals,
            operators: g.operators.values().map(RawOperator::of).collect(),
            classes: g.classes.values().map(RawClass::of).collect(),
            regions: g.region_keys.iter().map(RawRegion::of).collect(),
            validators: g.validators.iter().map(RawValidator::of).collect(),
        }
    }

    fn check(self) -> Result<Genesis, GenesisError> {
        let chain_id = ChainId::new(&self.chain_id).map_err(|e| field("chain_id", e))?;
        let format = &time::format_description::well_known::Rfc3339;
        let time = time::OffsetDateTime::parse(&self.genesis_time, format)
            .map_err(|e| field("genesis_time", format!("expected RFC 3339: {e}")))?;
        let time = u64::try_from(time.unix_timestamp_nanos())
            .map_err(|_| field("genesis_time", "must be after 1970 and before 2262"))?;
        let mut governance = Governance {
            version: 0,
            approvals: self.governance_approvals,
            operators: BTreeMap::new(),
            classes: BTreeMap::new(),
            region_keys: BTreeMap::new(),
            validators: Vec::new(),
            retired_version: 0,
            accounts: [0; 32],
        };
        for o in &self.operators {
            let public = public_key("operators.public_key", &o.public_key)?;
            let principal = label("operators.principal", &o.principal)?;
            let operator = Operator { public, principal };
            if governance.operators.insert(public, operator).is_some() {
                return Err(repeated("operators.public_key", public));
            }
        }
        for c in self.classes {
            let class = c.class();
            if let Some(twin) = governance.classes.insert(class.prefix.clone(), class) {
                return Err(repeated("classes.prefix", twin.prefix));
            }
        }
        for r in &self.regions {
            let name = label("regions.name", &r.name)?;
            let mut keys = BTreeSet::new();
            for key in &r.public_keys {
                let key = public_key("regions.public_keys", key)?;
                if !keys.insert(key) {
                    return Err(repeated("regions.public_keys", key));
                }
            }
            if governance.region_keys.insert(name, keys).is_some() {
                return Err(repeated("regions.name", &r.name));
            }
        }
        for v in self.validators {
            governance.validators.push(ValidatorInfo {
                name: label("validators.name", &v.name)?,
                public: public_key("validators.public_key", &v.public_key)?,
                power: v.power,
                jurisdiction: label("validators.jurisdiction", &v.jurisdiction)?,
                url: v.url,
            });
        }
        let policy = Policy {
            heartbeat: Duration::from_millis(self.policy.heartbeat_ms),
            trusting_period: Duration::from_secs(self.policy.trusting_period_s),
            clock_drift: Duration::from_millis(self.policy.clock_drift_ms),
            leader_rotation_heights: self.policy.leader_rotation_heights,
        };
        Genesis::new(&chain_id, Timestamp(time.min(Timestamp::MAX.0)), policy, governance)
    }
}

impl RawOperator {
    fn of(o: &Operator) -> Self {
        Self { principal: o.principal.to_string(), public_key: o.public.to_string() }
    }
}

impl RawClass {
    /// The text of `c`, with every number of its quota.
    #[must_use]
    pub fn of(c: &Class) -> Self {
        let kind = match c.kind {
            ClassKind::Opaque => RawKind::Opaque,
            ClassKind::X509Trust => RawKind::X509Trust,
        };
        Self {
            prefix: c.prefix.clone(),
            approvals: c.approvals,
            kind,
            bundles_max: Some(c.quota.bundles_max),
            bytes_max: Some(c.quota.bytes_max),
            publishes_per_hour: Some(c.quota.publishes_per_hour),
        }
    }

    /// The class, with the quota of its kind where the text names none.
    #[must_use]
    pub fn class(self) -> Class {
        let kind = match self.kind {
            RawKind::Opaque => ClassKind::Opaque,
            RawKind::X509Trust => ClassKind::X509Trust,
        };
        let mut class = Class::new(&self.prefix, self.approvals, kind);
        let quota = &mut class.quota;
        quota.bundles_max = self.bundles_max.unwrap_or(quota.bundles_max);
        quota.bytes_max = self.bytes_max.unwrap_or(quota.bytes_max);
        quota.publishes_per_hour = self.publishes_per_hour.unwrap_or(quota.publishes_per_hour);
        class
    }
}

impl RawRegion {
    fn of((name, keys): (&Label, &BTreeSet<PublicKey>)) -> Self {
        let public_keys = keys.iter().map(ToString::to_string).collect();
        Self { name: name.to_string(), public_keys }
    }
}

impl RawValidator {
    fn of(v: &ValidatorInfo) -> Self {
        Self {
            name: v.name.to_string(),
            public_key: v.public.to_string(),
            power: v.power,
            jurisdiction: v.jurisdiction.to_string(),
            url: v.url.clone(),
        }
    }
}
