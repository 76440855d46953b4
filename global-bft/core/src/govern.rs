//! Judges and applies changes of the governance state: validity rules V12 to V16.
//!
//! They keep a realm governable: enough principals stay to approve what comes next, no key works
//! that any program could use, and voting power moves slowly enough for light clients to follow.

use satrap_certify::{
    Governance, GovernanceAct, PublicKey, ValidatorInfo, ValidatorSet,
    governance::check_distinct,
    limits::{GOVERNANCE_ITEMS_MAX, VALIDATORS_MAX},
};

use crate::rejection::Rejection;

/// The governance state after `act`, in a block that `signing_set` signs.
///
/// # Errors
///
/// The [`Rejection`] names the rule.
pub fn govern(
    governance: &Governance,
    act: &GovernanceAct,
    signing_set: &ValidatorSet,
) -> Result<Governance, Rejection> {
    let mut next = governance.clone();
    next.version += 1;
    let governance = &mut next;
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
            let is_new_region = !governance.region_keys.contains_key(region);
            let items = governance.region_items() + 1 + usize::from(is_new_region);
            let keys = governance.region_keys.entry(region.clone()).or_default();
            let fresh = items <= GOVERNANCE_ITEMS_MAX && !keys.contains(public);
            usable("region key", public, fresh)?;
            keys.insert(*public);
        }
        GovernanceAct::RevokeRegionKey(region, public) => {
            let keys = governance.region_keys.entry(region.clone()).or_default();
            let found = keys.remove(public);
            revoked("region key", public, found)?;
            if keys.is_empty() {
                governance.region_keys.remove(region);
            }
        }
        GovernanceAct::SetValidators(validators) => {
            check_validators(validators, governance, signing_set)?;
            governance.validators = validators.clone();
        }
    }
    Ok(next)
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
    check_distinct(validators).map_err(Rejection::Validators)?;
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
