//! Describes a change to an operator who is asked to approve it.
//!
//! The review is made from the very bytes that a signature covers, and from certified state: the
//! content that the change applies to, and who holds which key.

use std::fmt;

use satrap_certify::{
    Action, BundleName, ClassKind, Governance, GovernanceAct, PublicKey, Publish,
};
use satrap_merkle::BundleTree;
use serde::Serialize;

use super::Changes;
use crate::{
    content::{Difference, hazards},
    output::{count, one_line, short},
};

/// The state that a change applies to, as far as it is known here.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// The operators who may approve.
    pub governance: &'a Governance,
    /// Whether that is the certified state of now, and not that of the genesis.
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
    /// Points that deserve a second look.
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
        // A change that creates a bundle names the highest version that was ever retired.
        let creates = match present.base {
            Some((version, _)) => version == 0,
            None => from == 0,
        };
        let to = last.expect_version + 1;
        let versions = match creates {
            true => "as a new bundle".to_owned(),
            false => format!("version {from} to {to}"),
        };
        let publishes = || {
            changes.parts().iter().filter_map(|part| match &part.change.action {
                Action::Publish(publish) => Some(publish),
                Action::Retire(_) | Action::Govern(..) => None,
            })
        };
        let entries = publishes().flat_map(|part| part.puts.iter().map(|(k, v)| (k, v)));
        self.warnings.extend(hazards(entries));
        if let Some(base) = self.base(bundle, from, present) {
            let mut tree = base.clone();
            for part in publishes() {
                part.puts.iter().for_each(|(key, value)| {
                    tree.insert(key, value.clone());
                });
                part.deletes.iter().for_each(|key| {
                    tree.remove(key);
                });
            }
            if tree.root() != last.root {
                self.warnings.push(
                    "the content does not have the root that the change names; the validators will \
                     refuse it by rule V7"
                        .to_owned(),
                );
            }
            let difference = Difference::between(base, &tree);
            if difference.is_mass_deletion(base.len()) {
                let (removed, before) = (difference.removed.len(), base.len());
                self.warnings.push(format!("it removes {removed} of {before} entries"));
            }
            self.difference = Some(difference);
        }
        let sizes = match &self.difference {
            Some(difference) => difference.sizes(),
            None => {
                let puts = publishes().map(|part| part.puts.len()).sum();
                let deletes: usize = publishes().map(|part| part.deletes.len()).sum();
                format!("{} put, {deletes} removed", count(puts, "entry", "entries"))
            }
        };
        let parts = match self.parts {
            1 => String::new(),
            n => format!(", as {n} versions one after the other"),
        };
        self.action = format!("publish `{bundle}` {versions}: {sizes}{parts}");
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

/// Approvals on `changes` that the validators refuse. Without certified state, a key that the genesis
/// does not name may have been authorized since.
#[must_use]
pub fn void(changes: &Changes, present: &Present<'_>) -> Vec<PublicKey> {
    let unknown =
        |key: &PublicKey| present.is_certified && !present.governance.operators.contains_key(key);
    let all = changes.approvals().into_iter();
    all.filter(|(key, verifies)| !verifies || unknown(key)).map(|(key, _)| key).collect()
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
        for digest in &self.digests {
            writeln!(f, "  change          {digest}")?;
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
