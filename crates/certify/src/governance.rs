//! The governance state, which decides who may change what: operators, bundle classes, region keys
//! and validators.
//!
//! The governance state is part of what every checkpoint commits to: it is itself a Merkle tree,
//! one leaf per item, so that a single operator or class can be proven to a third party later.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use satrap_merkle::{
    BundleTree, Digest, Key,
    codec::{Canonical, DecodeError, Reader, Writer, ascending},
};

use crate::{
    keys::PublicKey,
    limits::{
        BUNDLE_NAME_BYTES_MAX, CLASSES_MAX, GOVERNANCE_ITEMS_MAX, HEADS_MAX,
        PUBLISHES_PER_HOUR_DEFAULT, REALM_BYTES_MAX, TRUST_BYTES_RESERVED, TRUST_HEADS_RESERVED,
        URL_BYTES_MAX, VALIDATORS_MAX,
    },
    names::{BundleName, Label},
    validators::{SetError, Validator, ValidatorSet},
};

/// A person or pipeline that may sign changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The key its approvals are signed with.
    pub public: PublicKey,
    /// The principal that holds the key. Two keys of one principal count once.
    pub principal: Label,
}

/// The check that validators make of the values of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassKind {
    /// Nothing beyond sizes.
    Opaque,
    /// Every value is PEM with X.509 certificates, and each version keeps part of the last one.
    X509Trust,
}

/// How much of the realm the bundles of a class may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bundles; one principal may own half of them.
    pub bundles_max: u32,
    /// Keys and values of all of them.
    pub bytes_max: u64,
    /// Publishes and retirements of one principal in the long run. After a while without any, a
    /// burst of [`crate::limits::PUBLISH_BURST`] is possible.
    pub publishes_per_hour: u32,
}

impl Quota {
    /// The quota of a class that names none: for a class of trust roots, the room that is reserved
    /// for them, any other class the rest.
    #[must_use]
    pub fn of(kind: ClassKind) -> Self {
        let (bundles, bytes_max) = match kind {
            ClassKind::Opaque => {
                (HEADS_MAX - TRUST_HEADS_RESERVED, REALM_BYTES_MAX - TRUST_BYTES_RESERVED)
            }
            ClassKind::X509Trust => (TRUST_HEADS_RESERVED, TRUST_BYTES_RESERVED),
        };
        let bundles_max = u32::try_from(bundles).expect("a directory has thousands of heads");
        Self { bundles_max, bytes_max, publishes_per_hour: PUBLISHES_PER_HOUR_DEFAULT }
    }
}

/// The rule for all bundles whose names start with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Matches bundle names by string prefix; the longest match decides. Empty matches all.
    pub prefix: String,
    /// Distinct principals that must approve.
    pub approvals: u32,
    /// The check of the content.
    pub kind: ClassKind,
    /// How much its bundles may take.
    pub quota: Quota,
}

impl Class {
    /// A class with the quota of its kind.
    #[must_use]
    pub fn new(prefix: &str, approvals: u32, kind: ClassKind) -> Self {
        Self { prefix: prefix.to_owned(), approvals, kind, quota: Quota::of(kind) }
    }
}

/// All there is to know about a validator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatorInfo {
    /// Name in its SPIFFE id.
    pub name: Label,
    /// The key its votes are signed with.
    pub public: PublicKey,
    /// Voting power.
    pub power: u64,
    /// The legal area it operates in, for quorum policies.
    pub jurisdiction: Label,
    /// Where its gRPC endpoint is reached.
    pub url: String,
}

/// The governance state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Governance {
    /// Rises by one with every governance change; a change names the version it expects, so none
    /// can be replayed.
    pub version: u64,
    /// Principals that must approve a governance change.
    pub approvals: u32,
    /// By key.
    pub operators: BTreeMap<PublicKey, Operator>,
    /// By prefix.
    pub classes: BTreeMap<String, Class>,
    /// Keys that may speak for a region.
    pub region_keys: BTreeMap<Label, BTreeSet<PublicKey>>,
    /// The validators that sign from the next height on.
    pub validators: Vec<ValidatorInfo>,
    /// The highest version that a retired bundle had; a bundle created from now on starts above
    /// it, so that the version of a name never falls although no name is remembered.
    pub retired_version: u64,
    /// Digest of who owns which bundle and who has published how much; zeros before the first
    /// block.
    pub accounts: Digest,
}

/// One change of the governance state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GovernanceAct {
    /// Adds an operator key.
    AuthorizeOperator(Operator),
    /// Removes an operator key.
    RevokeOperator(PublicKey),
    /// Adds a key that may speak for a region.
    AuthorizeRegionKey(Label, PublicKey),
    /// Removes such a key.
    RevokeRegionKey(Label, PublicKey),
    /// Replaces the validators from the next height on.
    SetValidators(Vec<ValidatorInfo>),
}

impl Governance {
    /// The class that governs `bundle`: the longest matching prefix.
    #[must_use]
    pub fn class_of(&self, bundle: &BundleName) -> Option<&Class> {
        self.classes
            .values()
            .filter(|class| bundle.as_str().starts_with(&class.prefix))
            .max_by_key(|class| class.prefix.len())
    }

    /// How many distinct principals hold the given keys. Unknown keys count nothing.
    #[must_use]
    pub fn principals<'a>(&self, keys: impl Iterator<Item = &'a PublicKey>) -> usize {
        let mut names: Vec<_> =
            keys.filter_map(|key| self.operators.get(key)).map(|o| &o.principal).collect();
        names.sort();
        names.dedup();
        names.len()
    }

    /// The validators as the set that signs.
    ///
    /// # Errors
    ///
    /// [`SetError`] if they do not form a set.
    pub fn validator_set(&self) -> Result<ValidatorSet, SetError> {
        ValidatorSet::new(
            self.validators
                .iter()
                .map(|v| Validator { public: v.public, power: v.power })
                .collect(),
        )
    }

    /// The validator that holds `public`.
    #[must_use]
    pub fn validator(&self, public: &PublicKey) -> Option<&ValidatorInfo> {
        self.validators.iter().find(|v| v.public == *public)
    }

    /// How many places regions and their keys take.
    #[must_use]
    pub fn region_items(&self) -> usize {
        self.region_keys.values().map(|keys| keys.len() + 1).sum()
    }

    /// The root that checkpoints commit to.
    #[must_use]
    pub fn root(&self) -> Digest {
        let mut items: BTreeMap<Key, Arc<[u8]>> = BTreeMap::new();
        let mut put = |key: String, value: &[u8]| {
            let key = Key::new(key.as_bytes()).expect("governance keys are short and NUL-free");
            items.insert(key, Arc::from(value));
        };
        put("meta/version".into(), &self.version.to_be_bytes());
        put("meta/approvals".into(), &self.approvals.to_be_bytes());
        put("meta/retired-version".into(), &self.retired_version.to_be_bytes());
        put("meta/accounts".into(), &self.accounts);
        for operator in self.operators.values() {
            put(format!("operator/{}", operator.public), &operator.to_canonical());
        }
        for class in self.classes.values() {
            put(format!("class/{}", class.prefix), &class.to_canonical());
        }
        for (region, keys) in &self.region_keys {
            for key in keys {
                put(format!("region/{region}/{key}"), &[]);
            }
        }
        for validator in &self.validators {
            put(format!("validator/{}", validator.public), &validator.to_canonical());
        }
        let items: Vec<_> = items.into_iter().collect();
        BundleTree::from_sorted(&items).expect("the keys of a map ascend").root()
    }
}

impl Canonical for Operator {
    fn encode(&self, w: &mut Writer) {
        self.public.encode(w);
        self.principal.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { public: PublicKey::decode(r)?, principal: Label::decode(r)? })
    }
}

impl Canonical for Class {
    fn encode(&self, w: &mut Writer) {
        w.bytes(self.prefix.as_bytes());
        w.u32(self.approvals);
        w.u8(match self.kind {
            ClassKind::Opaque => 0,
            ClassKind::X509Trust => 1,
        });
        w.u32(self.quota.bundles_max);
        w.u64(self.quota.bytes_max);
        w.u32(self.quota.publishes_per_hour);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let prefix = r.text(BUNDLE_NAME_BYTES_MAX)?.to_owned();
        if prefix.contains('\0') {
            return Err(DecodeError::Invalid("class prefix"));
        }
        let approvals = r.u32()?;
        let kind = match r.u8()? {
            0 => ClassKind::Opaque,
            1 => ClassKind::X509Trust,
            _ => return Err(DecodeError::Invalid("class kind")),
        };
        let quota =
            Quota { bundles_max: r.u32()?, bytes_max: r.u64()?, publishes_per_hour: r.u32()? };
        Ok(Self { prefix, approvals, kind, quota })
    }
}

impl Canonical for ValidatorInfo {
    fn encode(&self, w: &mut Writer) {
        self.name.encode(w);
        self.public.encode(w);
        w.u64(self.power);
        self.jurisdiction.encode(w);
        w.bytes(self.url.as_bytes());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: Label::decode(r)?,
            public: PublicKey::decode(r)?,
            power: r.u64()?,
            jurisdiction: Label::decode(r)?,
            url: r.text(URL_BYTES_MAX)?.to_owned(),
        })
    }
}

impl Canonical for Governance {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.version);
        w.u32(self.approvals);
        w.count(self.operators.len());
        self.operators.values().for_each(|o| o.encode(w));
        w.count(self.classes.len());
        self.classes.values().for_each(|c| c.encode(w));
        w.count(self.region_keys.len());
        for (region, keys) in &self.region_keys {
            region.encode(w);
            w.count(keys.len());
            keys.iter().for_each(|key| key.encode(w));
        }
        w.list(&self.validators);
        w.u64(self.retired_version);
        w.array(&self.accounts);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (version, approvals) = (r.u64()?, r.u32()?);
        let operators: Vec<Operator> = r.list(GOVERNANCE_ITEMS_MAX)?;
        ascending(operators.iter().map(|o| o.public))?;
        let classes: Vec<Class> = r.list(CLASSES_MAX)?;
        ascending(classes.iter().map(|c| &c.prefix))?;
        let region_keys = decode_region_keys(r)?;
        let validators: Vec<ValidatorInfo> = r.list(VALIDATORS_MAX)?;
        check_distinct(&validators).map_err(|_| DecodeError::Invalid("repeated validator"))?;
        Ok(Self {
            version,
            approvals,
            operators: operators.into_iter().map(|o| (o.public, o)).collect(),
            classes: classes.into_iter().map(|c| (c.prefix.clone(), c)).collect(),
            region_keys,
            validators,
            retired_version: r.u64()?,
            accounts: r.array()?,
        })
    }
}

fn decode_region_keys(
    r: &mut Reader<'_>,
) -> Result<BTreeMap<Label, BTreeSet<PublicKey>>, DecodeError> {
    let (mut regions, mut items) = (Vec::new(), 0);
    for _ in 0..r.count(GOVERNANCE_ITEMS_MAX)? {
        let region = Label::decode(r)?;
        let keys: Vec<PublicKey> = r.list(GOVERNANCE_ITEMS_MAX.saturating_sub(items + 1))?;
        ascending(&keys)?;
        if keys.is_empty() {
            return Err(DecodeError::Invalid("region without keys"));
        }
        items += 1 + keys.len();
        regions.push((region, keys.into_iter().collect()));
    }
    ascending(regions.iter().map(|(region, _)| region))?;
    Ok(regions.into_iter().collect())
}

/// Refuses two validators of one name or key.
///
/// # Errors
///
/// Which name or key is listed twice.
pub fn check_distinct(validators: &[ValidatorInfo]) -> Result<(), String> {
    let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for validator in validators {
        if !names.insert(&validator.name) {
            return Err(format!("name `{}` is listed twice", validator.name));
        }
        if !keys.insert(validator.public) {
            return Err(format!("key {} is listed twice", validator.public));
        }
    }
    Ok(())
}

impl Canonical for GovernanceAct {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::AuthorizeOperator(operator) => {
                w.u8(0);
                operator.encode(w);
            }
            Self::RevokeOperator(public) => {
                w.u8(1);
                public.encode(w);
            }
            Self::AuthorizeRegionKey(region, public) => {
                w.u8(2);
                region.encode(w);
                public.encode(w);
            }
            Self::RevokeRegionKey(region, public) => {
                w.u8(3);
                region.encode(w);
                public.encode(w);
            }
            Self::SetValidators(validators) => {
                w.u8(4);
                w.list(validators);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            0 => Self::AuthorizeOperator(Operator::decode(r)?),
            1 => Self::RevokeOperator(PublicKey::decode(r)?),
            2 => Self::AuthorizeRegionKey(Label::decode(r)?, PublicKey::decode(r)?),
            3 => Self::RevokeRegionKey(Label::decode(r)?, PublicKey::decode(r)?),
            4 => Self::SetValidators(r.list(VALIDATORS_MAX)?),
            _ => return Err(DecodeError::Invalid("governance act")),
        })
    }
}
