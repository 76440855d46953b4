//! Describes a change to an operator who is asked to approve it.
//!
//! The review is made from the very bytes that a signature covers, and from certified state: the
//! content that the change applies to, and who holds which key.

use std::{fmt, sync::Arc};

use satrap_certify::{
    Action, BundleName, ClassKind, Governance, GovernanceAct, PublicKey, Publish,
};
use satrap_global_core::x509;
use satrap_merkle::{BundleTree, Key};
use serde::Serialize;

use super::Changes;
use crate::{
    content::{Difference, hazards},
    text::{count, one_line, short},
};

/// How many refused entries are named; more are only counted.
const REFUSED_SHOWN: usize = 5;

/// The state that a change applies to, as far as it is known here.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// The operators who may approve.
    pub governance: &'a Governance,
    /// Whether that is certified state, and not that of the genesis.
    pub is_certified: bool,
    /// Version and content of the bundle, if they could be read; version 0 if it does not exist.
    pub base: Option<(u64, &'a BundleTree)>,
}

/// The effect of a change, and who approved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Review {
    /// Its effect, in words.
    pub action: String,
    /// The bundle it changes.
    pub bundle: Option<String>,
    /// Version of the bundle or of the governance state that it applies to.
    pub expect_version: u64,
    /// How many versions it makes, one after the other.
    pub parts: usize,
    /// Keys that are added, changed and removed, if the content before could be read.
    pub difference: Option<Difference>,
    /// The same for each part, if there are several: each is a version that edges may come to run
    /// without those after it.
    pub steps: Vec<Difference>,
    /// The first part, counted from 1, that does not make the root it names (V7). The validators refuse
    /// it and those after it, and may decide those before it.
    pub wrong_part: Option<usize>,
    /// For a publish: the root that results.
    pub root: Option<String>,
    /// Identify the parts, regardless of approvals.
    pub digests: Vec<String>,
    /// The realm it is for.
    pub genesis_hash: String,
    /// Distinct principals whose approvals count.
    pub approved_by: Vec<String>,
    /// How many principals must approve.
    pub approvals_needed: Option<u32>,
    /// Approvals that do not count, with the reason.
    pub approvals_void: Vec<Void>,
    /// Warnings for the approver.
    pub warnings: Vec<String>,
}

/// An approval that the validators refuse, and with it the change (V3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Void {
    /// The owner of the key.
    pub key: String,
    /// Why.
    pub why: &'static str,
}

impl Review {
    /// Whether enough principals approved, and no approval spoils the change (V3), as far as known.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        let needed = self.approvals_needed.map(|needed| needed as usize);
        self.approvals_void.is_empty() && needed.is_some_and(|n| self.approved_by.len() >= n)
    }

    /// Describes `changes`.
    #[must_use]
    pub fn of(changes: &Changes, present: &Present<'_>) -> Self {
        let (first, last) = (&changes.first().change, &changes.last().change);
        let mut review = Self {
            action: String::new(),
            bundle: first.action.bundle().map(ToString::to_string),
            expect_version: 0,
            parts: changes.parts().len(),
            difference: None,
            steps: Vec::new(),
            wrong_part: None,
            root: None,
            digests: changes.parts().iter().map(|part| hex::encode(part.change.digest())).collect(),
            genesis_hash: hex::encode(changes.genesis_hash()),
            approved_by: Vec::new(),
            approvals_needed: needed(&first.action, present.governance),
            approvals_void: Vec::new(),
            warnings: Vec::new(),
        };
        match (&first.action, &last.action) {
            (Action::Publish(first), Action::Publish(last)) => {
                review.publish(changes, (first, last), present);
            }
            (Action::Retire(retire), _) => {
                let (bundle, version) = (&retire.bundle, retire.expect_version);
                review.expect_version = version;
                review.action =
                    format!("retire `{bundle}` version {version}, with all its entries");
                if let Some(base) = review.base(bundle, version, present) {
                    review.difference = Some(Difference::between(base, &BundleTree::default()));
                }
            }
            (Action::Govern(version, act), _) => {
                review.expect_version = *version;
                review.action = describe_act(act);
                let now = present.governance.version;
                if present.is_certified && now != *version {
                    review.warnings.push(format!(
                        "governance is at version {now}, the change applies to {version}; the \
                         validators will refuse it by rule V11"
                    ));
                }
            }
            (Action::Publish(_), _) => unreachable!("the parts of a file are one publish"),
        }
        review.approvals(changes, present);
        review
    }

    fn publish(
        &mut self,
        changes: &Changes,
        (first, last): (&Publish, &Publish),
        present: &Present<'_>,
    ) {
        let (bundle, from) = (&first.bundle, first.expect_version);
        self.expect_version = from;
        self.root = Some(hex::encode(last.root));
        // A change that creates a bundle expects the highest retired version (V28).
        let creates = match present.base {
            Some((version, _)) => version == 0,
            None => from == 0,
        };
        let to = last.expect_version + 1;
        let versions = match creates {
            true => "as a new bundle".to_owned(),
            false => format!("version {from} to {to}"),
        };
        let entries = || changes.publishes().flat_map(|part| part.puts.iter().map(|(k, v)| (k, v)));
        let class = present.governance.class_of(bundle);
        if class.is_some_and(|class| class.kind == ClassKind::X509Trust) {
            self.warnings.extend(no_trust_roots(entries()));
        }
        self.warnings.extend(hazards(entries()));
        if let Some(base) = self.base(bundle, from, present) {
            let tree = self.steps(changes, base);
            self.difference = Some(Difference::between(base, &tree));
        }
        let sizes = match &self.difference {
            Some(difference) => difference.sizes(),
            None => {
                let puts = changes.publishes().map(|part| part.puts.len()).sum();
                let deletes: usize = changes.publishes().map(|part| part.deletes.len()).sum();
                format!("{} put, {deletes} removed", count(puts, "entry", "entries"))
            }
        };
        let parts = match self.parts {
            1 => String::new(),
            n => format!(", as {n} versions one after the other"),
        };
        self.action = format!("publish `{bundle}` {versions}: {sizes}{parts}");
    }

    /// Applies the parts of a publish to `base`, records each version, and returns the last.
    fn steps(&mut self, changes: &Changes, base: &BundleTree) -> BundleTree {
        let mut tree = base.clone();
        for (n, part) in changes.publishes().enumerate() {
            let before = tree.clone();
            apply(&mut tree, part);
            let what = match self.parts {
                1 => "it".to_owned(),
                all => format!("part {} of {all}", n + 1),
            };
            let difference = Difference::between(&before, &tree);
            if difference.is_mass_deletion(before.len()) {
                let (removed, before) = (difference.removed.len(), before.len());
                self.warnings.push(format!("{what} removes {removed} of {before} entries"));
            }
            if self.parts > 1 {
                self.steps.push(difference);
            }
            if tree.root() != part.root && self.wrong_part.is_none() {
                self.wrong_part = Some(n + 1);
                self.warnings.push(format!(
                    "the content after part {} does not have the root that the change names; the \
                     validators will refuse it by rule V7",
                    n + 1
                ));
            }
        }
        let whole = Difference::between(base, &tree);
        if self.parts > 1 && whole.is_mass_deletion(base.len()) {
            let (removed, before) = (whole.removed.len(), base.len());
            self.warnings.push(format!("all parts remove {removed} of {before} entries"));
        }
        tree
    }

    /// The content that a change of `bundle` at `version` applies to, if it is the present one.
    fn base<'a>(
        &mut self,
        bundle: &BundleName,
        version: u64,
        present: &Present<'a>,
    ) -> Option<&'a BundleTree> {
        let (now, tree) = present.base?;
        let expected = match now {
            0 => present.governance.retired_version,
            now => now,
        };
        if expected == version {
            return Some(tree);
        }
        self.warnings.push(match now {
            0 => format!("`{bundle}` does not exist now, the change applies to version {version}"),
            now => format!("`{bundle}` is at version {now}, the change applies to {version}"),
        });
        None
    }

    fn approvals(&mut self, changes: &Changes, present: &Present<'_>) {
        for (key, verifies) in changes.approvals() {
            let why = match (verifies, present.governance.operators.get(&key)) {
                (true, Some(operator)) => {
                    let name = operator.principal.to_string();
                    if !self.approved_by.contains(&name) {
                        self.approved_by.push(name);
                    }
                    continue;
                }
                (false, _) => "its signature does not verify",
                (true, None) if present.is_certified => "no operator of this realm holds it",
                (true, None) => "the genesis does not name it",
            };
            self.approvals_void.push(Void { key: key.to_string(), why });
        }
        self.approved_by.sort();
    }
}

fn apply(tree: &mut BundleTree, publish: &Publish) {
    publish.puts.iter().for_each(|(key, value)| {
        tree.insert(key, value.clone());
    });
    publish.deletes.iter().for_each(|key| {
        tree.remove(key);
    });
}

/// Approvals on `changes` that the validators refuse. Without certified state, a key that the genesis
/// does not name may have been authorized since.
#[must_use]
pub fn void(changes: &Changes, present: &Present<'_>) -> Vec<PublicKey> {
    let unknown =
        |key: &PublicKey| present.is_certified && !present.governance.operators.contains_key(key);
    let all = changes.approvals().into_iter();
    all.filter(|(key, verifies)| !verifies || unknown(key)).map(|(key, _)| key).collect()
}

/// Values that the validators refuse in a bundle of trust roots; a few of them.
fn no_trust_roots<'a>(
    entries: impl Iterator<Item = (&'a Key, &'a Arc<[u8]>)>,
) -> impl Iterator<Item = String> {
    let refused = entries.filter_map(|(key, value)| {
        let why = x509::check_trust_root(value).err()?;
        Some(format!(
            "entry `{key}` is not a trust root: {why}; the validators will refuse the change by rule V9"
        ))
    });
    refused.take(REFUSED_SHOWN)
}

/// Principals that must approve `action`; nothing if no class covers its bundle.
fn needed(action: &Action, governance: &Governance) -> Option<u32> {
    match action {
        Action::Govern(..) => Some(governance.approvals),
        Action::Publish(publish) => Some(governance.class_of(&publish.bundle)?.approvals),
        Action::Retire(retire) => {
            let class = governance.class_of(&retire.bundle)?;
            Some(match class.kind {
                ClassKind::Opaque => class.approvals,
                ClassKind::X509Trust => class.approvals.max(governance.approvals),
            })
        }
    }
}

fn describe_act(act: &GovernanceAct) -> String {
    match act {
        GovernanceAct::AuthorizeOperator(o) => {
            format!("authorize key {} of operator `{}`", o.public, o.principal)
        }
        GovernanceAct::RevokeOperator(key) => format!("revoke operator key {key}"),
        GovernanceAct::AuthorizeRegionKey(region, key) => {
            format!("authorize key {key} to speak for region `{region}`")
        }
        GovernanceAct::RevokeRegionKey(region, key) => {
            format!("revoke key {key} of region `{region}`")
        }
        GovernanceAct::SetValidators(validators) => {
            let one = |v: &satrap_certify::ValidatorInfo| {
                format!("{} (power {}, key {})", v.name, v.power, short(&v.public.0))
            };
            let list: Vec<_> = validators.iter().map(one).collect();
            format!("set {} validators: {}", validators.len(), list.join(", "))
        }
    }
}

impl fmt::Display for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.action)?;
        if let Some(difference) = &self.difference {
            write!(f, "{difference}")?;
        }
        if let Some(root) = &self.root {
            writeln!(f, "  resulting root  {root}")?;
        }
        for (n, digest) in self.digests.iter().enumerate() {
            match self.steps.get(n) {
                Some(step) => writeln!(f, "  part {:<10} {digest}: {}", n + 1, step.sizes())?,
                None => writeln!(f, "  change          {digest}")?,
            }
        }
        writeln!(f, "  realm genesis   {}", self.genesis_hash)?;
        let have = self.approved_by.len();
        let of = self.approvals_needed.map_or_else(String::new, |needed| format!(" of {needed}"));
        let names = match self.approved_by.as_slice() {
            [] => String::new(),
            names => format!(": {}", names.join(", ")),
        };
        writeln!(f, "  approvals       {have}{of}{names}")?;
        for Void { key, why } in &self.approvals_void {
            writeln!(f, "  void approval   key {key}: {why}")?;
        }
        self.warnings.iter().try_for_each(|w| writeln!(f, "  warning         {}", one_line(w)))
    }
}

#[cfg(test)]
mod tests {
    use satrap_certify::{Class, SignedChange, limits::VALUE_BYTES_MAX};
    use satrap_sim::SimRealm;

    use super::*;
    use crate::changes::split;

    /// `n` entries, so large that few of them fit one part.
    fn large(prefix: &str, n: usize) -> BundleTree {
        let mut tree = BundleTree::default();
        for i in 0..n {
            let key = Key::new(format!("{prefix}{i}").as_bytes()).unwrap();
            tree.insert(&key, Arc::from(vec![1; VALUE_BYTES_MAX]));
        }
        tree
    }

    #[test]
    fn each_part_is_shown_and_its_root_checked() {
        let realm = SimRealm::new("test", 1);
        let name = BundleName::new("config/x").unwrap();
        let (from, to) = (large("a", 4), large("b", 8));
        let made = split::publish(realm.genesis.realm(), &name, 6, (&from, &to)).unwrap();
        let present = Present {
            governance: &realm.genesis.governance,
            is_certified: true,
            base: Some((6, &from)),
        };
        let review = Review::of(&made, &present);
        let parts = made.parts().len();
        assert!(parts > 2, "{parts} parts");
        assert_eq!((review.steps.len(), review.wrong_part), (parts, None));
        let added: usize = review.steps.iter().map(|step| step.added.len()).sum();
        assert_eq!(added, 8);
        assert!(review.warnings.contains(&"all parts remove 4 of 4 entries".into()), "{review}");
        assert!(review.to_string().contains("\n  part 1          "), "{review}");

        // The same where the class takes trust roots only.
        let mut governance = realm.genesis.governance.clone();
        governance.classes.insert("config/".into(), Class::new("config/", 1, ClassKind::X509Trust));
        let review = Review::of(&made, &Present { governance: &governance, ..present });
        let refused = review.warnings.iter().filter(|warning| warning.ends_with("by rule V9"));
        assert_eq!(refused.count(), REFUSED_SHOWN, "{review}");

        // The last part has the root that was promised; the one in the middle does not.
        let mut forged = made.parts().to_vec();
        let Action::Publish(publish) = &mut forged[1].change.action else { panic!("a publish") };
        publish.root = [9; 32];
        forged[1] = SignedChange::unsigned(forged[1].change.clone());
        let review = Review::of(&Changes { parts: forged }, &present);
        assert_eq!(review.wrong_part, Some(2));
        assert!(review.warnings.iter().any(|w| w.contains("after part 2")), "{review}");
    }
}
