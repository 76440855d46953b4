//! Applies one change: every validity rule for changes (V1 to V16) stands here.
//!
//! # Invariants
//!
//! - A change that is refused leaves the state as it was.
//! - Every signature is checked before anything that costs more is done.
//!
//! # Deliberately absent
//!
//! Blocks and heights: see [`crate::ledger`]. Evidence that a trust root is unused: rollouts bring
//! it; until then V10 only demands overlap.

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    Action, BundleName, ClassKind, Governance, GovernanceAct, Head, PublicKey, Publish, Realm,
    SignedChange, ValidatorInfo, ValidatorSet,
    limits::{
        BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, GOVERNANCE_ITEMS_MAX, HEADS_MAX, REALM_BYTES_MAX,
        VALIDATORS_MAX,
    },
    update::Delta,
};
use satrap_merkle::BundleTree;

use crate::{rejection::Rejection, x509};

/// What all changes so far add up to. Cheap to clone: trees share structure.
#[derive(Clone, Debug)]
pub struct State {
    /// Operators, classes, region keys, validators.
    pub governance: Arc<Governance>,
    /// Heads by name.
    pub heads: BTreeMap<BundleName, Head>,
    /// Content by name.
    pub contents: BTreeMap<BundleName, BundleTree>,
}

/// What a change did to a bundle; governance changes leave no delta.
pub type Applied = Option<Delta>;

impl State {
    /// Applies `signed` in a block at `height` that `signing_set` signs.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names the rule; the state is unchanged.
    pub fn apply(
        &mut self,
        realm: &Realm,
        signing_set: &ValidatorSet,
        height: u64,
        signed: &SignedChange,
    ) -> Result<Applied, Rejection> {
        let change = &signed.change;
        if change.genesis_hash != *realm.genesis_hash() {
            return Err(Rejection::Realm(change.genesis_hash));
        }
        match &change.action {
            Action::Publish(publish) => {
                let class = self.governance.class_of(&publish.bundle);
                let class = class.ok_or_else(|| Rejection::Class(publish.bundle.clone()))?;
                let kind = class.kind;
                self.check_approvals(signed, class.approvals)?;
                self.publish(publish, kind, height).map(Some)
            }
            Action::Govern(expected, act) => {
                self.check_approvals(signed, self.governance.approvals)?;
                let current = self.governance.version;
                if *expected != current {
                    return Err(Rejection::GovernanceVersion { expected: *expected, current });
                }
                let mut governance = (*self.governance).clone();
                govern(&mut governance, act, signing_set)?;
                governance.version += 1;
                self.governance = Arc::new(governance);
                Ok(None)
            }
        }
    }

    /// V3
    fn check_approvals(&self, signed: &SignedChange, needed: u32) -> Result<(), Rejection> {
        let keys = signed.approvals.iter().map(|a| &a.operator);
        let have = self.governance.principals(keys);
        if have < needed as usize {
            return Err(Rejection::Approvals { have, needed });
        }
        let bytes = signed.change.approval_bytes();
        for approval in &signed.approvals {
            let known = self.governance.operators.contains_key(&approval.operator);
            if !known || !approval.operator.verifies(&bytes, &approval.signature) {
                return Err(Rejection::Approval(approval.operator));
            }
        }
        Ok(())
    }

    fn publish(
        &mut self,
        publish: &Publish,
        kind: ClassKind,
        height: u64,
    ) -> Result<Delta, Rejection> {
        let bundle = &publish.bundle;
        let current = self.heads.get(bundle).map_or(0, |head| head.version);
        if publish.expect_version != current {
            let expected = publish.expect_version;
            return Err(Rejection::Version { bundle: bundle.clone(), expected, current });
        }
        let empty = BundleTree::default();
        let before = self.contents.get(bundle).unwrap_or(&empty);
        if let Some(key) = publish.deletes.iter().find(|key| before.get(key).is_none()) {
            let (bundle, key) = (bundle.clone(), key.to_string());
            return Err(Rejection::Missing { bundle, key });
        }
        let delta = Delta {
            bundle: bundle.clone(),
            base: current,
            puts: publish.puts.clone(),
            deletes: publish.deletes.clone(),
        };
        let after = delta.apply(before);
        if after.root() == before.root() {
            return Err(Rejection::Empty(bundle.clone()));
        }
        if after.root() != publish.root {
            let (computed, signed) = (after.root(), publish.root);
            return Err(Rejection::Root { bundle: bundle.clone(), computed, signed });
        }
        self.check_limits(bundle, &after)?;
        if kind == ClassKind::X509Trust {
            check_trust_roots(publish, before, &after)?;
        }
        let head = Head {
            name: bundle.clone(),
            version: current + 1,
            root: after.root(),
            entries: after.len() as u64,
            bytes: after.bytes(),
            height,
        };
        self.heads.insert(bundle.clone(), head);
        self.contents.insert(bundle.clone(), after);
        Ok(delta)
    }

    /// V8
    fn check_limits(&self, bundle: &BundleName, after: &BundleTree) -> Result<(), Rejection> {
        let (entries, bytes) = (after.len(), after.bytes());
        if entries > BUNDLE_ENTRIES_MAX || bytes > BUNDLE_BYTES_MAX {
            return Err(Rejection::BundleLimit { bundle: bundle.clone(), entries, bytes });
        }
        let others = self.contents.iter().filter(|(name, _)| *name != bundle);
        let bytes = bytes + others.map(|(_, tree)| tree.bytes()).sum::<u64>();
        let heads = self.heads.len() + usize::from(!self.heads.contains_key(bundle));
        if heads > HEADS_MAX || bytes > REALM_BYTES_MAX {
            return Err(Rejection::RealmLimit { heads, bytes });
        }
        Ok(())
    }
}

/// V9, V10
fn check_trust_roots(
    publish: &Publish,
    before: &BundleTree,
    after: &BundleTree,
) -> Result<(), Rejection> {
    let bundle = &publish.bundle;
    for (key, value) in &publish.puts {
        x509::check_trust_root(value).map_err(|why| Rejection::NotATrustRoot {
            bundle: bundle.clone(),
            key: key.to_string(),
            why,
        })?;
    }
    let kept = before.iter().any(|(key, value)| after.get(key) == Some(value));
    if !kept && !before.is_empty() {
        return Err(Rejection::NoOverlap(bundle.clone()));
    }
    Ok(())
}

/// V12 to V16
fn govern(
    governance: &mut Governance,
    act: &GovernanceAct,
    signing_set: &ValidatorSet,
) -> Result<(), Rejection> {
    let usable = |what, key: &PublicKey, fresh: bool| {
        if fresh && key.is_usable() { Ok(()) } else { Err(Rejection::NotNew { what, key: *key }) }
    };
    let revoked = |what, key: &PublicKey, found: bool| {
        if found { Ok(()) } else { Err(Rejection::NotAuthorized { what, key: *key }) }
    };
    match act {
        GovernanceAct::AuthorizeOperator(operator) => {
            let room = governance.operators.len() < GOVERNANCE_ITEMS_MAX;
            let fresh = room && !governance.operators.contains_key(&operator.public);
            usable("operator key", &operator.public, fresh)?;
            governance.operators.insert(operator.public, operator.clone());
        }
        GovernanceAct::RevokeOperator(public) => {
            let found = governance.operators.remove(public).is_some();
            revoked("operator key", public, found)?;
            check_principals(governance)?;
        }
        GovernanceAct::AuthorizeRegionKey(region, public) => {
            let items: usize = governance.region_keys.values().map(|keys| keys.len() + 1).sum();
            let keys = governance.region_keys.entry(region.clone()).or_default();
            let fresh = items < GOVERNANCE_ITEMS_MAX && !keys.contains(public);
            usable("region key", public, fresh)?;
            keys.push(*public);
        }
        GovernanceAct::RevokeRegionKey(region, public) => {
            let keys = governance.region_keys.entry(region.clone()).or_default();
            let before = keys.len();
            keys.retain(|key| key != public);
            revoked("region key", public, keys.len() < before)?;
            if keys.is_empty() {
                governance.region_keys.remove(region);
            }
        }
        GovernanceAct::SetValidators(validators) => {
            check_validators(validators, governance, signing_set)?;
            governance.validators = validators.clone();
        }
    }
    Ok(())
}

/// V12
fn check_principals(governance: &Governance) -> Result<(), Rejection> {
    let left = governance.principals(governance.operators.keys());
    let classes = governance.classes.values().map(|class| class.approvals);
    let needed = classes.chain([governance.approvals]).max().unwrap_or(1);
    if left < needed as usize {
        return Err(Rejection::TooFewPrincipals { left, needed });
    }
    Ok(())
}

/// V15, V16
fn check_validators(
    validators: &[ValidatorInfo],
    governance: &Governance,
    signing_set: &ValidatorSet,
) -> Result<(), Rejection> {
    if validators.len() > VALIDATORS_MAX {
        return Err(Rejection::Validators(format!("more than {VALIDATORS_MAX}")));
    }
    let mut names: Vec<_> = validators.iter().map(|v| &v.name).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Rejection::Validators("a name is listed twice".into()));
    }
    let next = Governance { validators: validators.to_vec(), ..governance.clone() };
    let next = next.validator_set().map_err(|e| Rejection::Validators(e.to_string()))?;
    let power = |set: &ValidatorSet, key: &PublicKey| {
        set.validators().iter().find(|v| v.public == *key).map_or(0, |v| v.power)
    };
    // Measured against the set that signs this block, so that several changes in one block cannot
    // move more than one may.
    let gone_or_changed = signing_set
        .validators()
        .iter()
        .map(|v| v.power.abs_diff(power(&next, &v.public)))
        .sum::<u64>();
    let added = next
        .validators()
        .iter()
        .filter(|v| power(signing_set, &v.public) == 0)
        .map(|v| v.power)
        .sum::<u64>();
    let (moved, total) = (gone_or_changed + added, signing_set.total_power());
    if moved > total / 3 {
        return Err(Rejection::PowerMoved { moved, total });
    }
    Ok(())
}
