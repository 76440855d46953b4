//! Judges one change: every validity rule for changes (V1 to V19, V27, V28) is applied here.
//!
//! The holder of one operator key can submit changes at will, so the cost of a change matters as
//! much as what it does. Judging one costs as much as the change touches, never as much as the
//! realm holds: nothing is cloned or summed, and what would result is refused before it is hashed.
//!
//! ```text
//!   admit    who approved, which version, whose budget        no signature, no content
//!   judge    + signatures, content, sizes, trust roots        the effects, not yet made
//!   commit   makes the effects                                cannot fail
//! ```
//!
//! # Invariants
//!
//! - A change that is refused leaves the state as it was: `judge` borrows it.
//! - Every signature is checked before anything that costs more is done.
//! - All changes of one block together cost at most [`BLOCK_APPROVALS_MAX`] signatures and
//!   [`BLOCK_NODES_MAX`] tree nodes (V25), and so does judging any one change.
//!
//! # Deliberately absent
//!
//! Blocks and heights: see [`crate::ledger`]. Evidence that a trust root is unused: rollouts bring
//! it; until then V10 only demands overlap.

use std::{collections::BTreeMap, sync::Arc};

use satrap_certify::{
    Action, BundleName, Change, Class, ClassKind, Governance, GovernanceAct, Head, Label, Publish,
    Realm, SignedChange, Timestamp, ValidatorSet,
    change::Retire,
    limits::{
        BLOCK_APPROVALS_MAX, BLOCK_NODES_MAX, BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX,
        GOVERNANCE_ITEMS_MAX, HISTORY_LEAVES_MAX, TRUST_HISTORY_RESERVED,
    },
    update::Delta,
};
use satrap_merkle::BundleTree;

use crate::{accounts::Accounts, govern::govern, rejection::Rejection, room::Room, x509};

/// The sum of all changes so far.
#[derive(Clone, Debug)]
pub struct State {
    /// Operators, classes, region keys, validators.
    pub governance: Arc<Governance>,
    /// Heads by name.
    pub heads: BTreeMap<BundleName, Head>,
    /// Content by name.
    pub contents: BTreeMap<BundleName, BundleTree>,
    /// The use that all principals have made of the realm.
    pub accounts: Accounts,
}

/// The block that a change is judged for.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The realm.
    pub realm: &'a Realm,
    /// The validators that sign the block.
    pub signing_set: &'a ValidatorSet,
    /// Its height.
    pub height: u64,
    /// Its time.
    pub time: Timestamp,
    /// Directories in the history before it.
    pub history_size: u64,
}

/// The cost of judging so far (V25).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Signatures verified.
    pub approvals: usize,
    /// Tree nodes visited or made.
    pub nodes: usize,
}

impl Cost {
    fn approvals(&mut self, more: usize) -> Result<(), Rejection> {
        self.approvals += more;
        if self.approvals > BLOCK_APPROVALS_MAX { Err(Rejection::BlockLimit) } else { Ok(()) }
    }

    fn nodes(&mut self, more: usize) -> Result<(), Rejection> {
        self.nodes += more;
        if self.nodes > BLOCK_NODES_MAX { Err(Rejection::BlockLimit) } else { Ok(()) }
    }
}

/// A class whose budget pays for a change of a bundle.
#[derive(Debug)]
struct Payment {
    class: Class,
    /// As many principals as the change needs; the first owns a bundle that it creates.
    payers: Vec<Label>,
    time: Timestamp,
}

/// A change that may be looked into.
enum Admitted<'a> {
    Publish(&'a Publish, Payment),
    Retire(&'a Retire, Payment),
    Govern(&'a GovernanceAct),
}

/// The effects of a change, judged and not yet made.
#[derive(Debug)]
pub struct Effects(Made);

#[derive(Debug)]
enum Made {
    Publish { head: Head, content: BundleTree, delta: Delta, payment: Payment },
    Retire { bundle: BundleName, payment: Payment },
    Govern(Governance),
}

/// The effect of a change on the directory.
#[derive(Debug)]
pub enum Applied {
    /// A bundle has new content.
    Published(Delta),
    /// A bundle is gone.
    Retired(BundleName),
    /// Nothing: the governance state changed.
    Governed,
}

impl Effects {
    /// The bundle's size after a publish; nothing otherwise. It holds for as long as the version
    /// that the change expects is the present one.
    #[must_use]
    pub fn room(&self) -> Room {
        match &self.0 {
            Made::Publish { head, .. } => Room::of(head),
            Made::Retire { .. } | Made::Govern(_) => Room::default(),
        }
    }
}

impl State {
    /// Before the first block.
    #[must_use]
    pub fn genesis(governance: Governance) -> Self {
        Self {
            governance: Arc::new(governance),
            heads: BTreeMap::new(),
            contents: BTreeMap::new(),
            accounts: Accounts::default(),
        }
    }

    /// Decides what `signed` does in the block of `setting`; adds to `cost`.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names the rule.
    pub fn judge(
        &self,
        setting: &Setting<'_>,
        signed: &SignedChange,
        cost: &mut Cost,
    ) -> Result<Effects, Rejection> {
        let admitted = self.admit(setting, signed)?;
        cost.approvals(signed.approvals.len())?;
        self.check_signatures(signed)?;
        let made = match admitted {
            Admitted::Publish(publish, payment) => {
                self.publish(publish, payment, setting.height, cost)?
            }
            Admitted::Retire(retire, payment) => {
                Made::Retire { bundle: retire.bundle.clone(), payment }
            }
            Admitted::Govern(act) => {
                // A change of the governance state copies it.
                cost.nodes(4 * GOVERNANCE_ITEMS_MAX)?;
                Made::Govern(govern(&self.governance, act, setting.signing_set)?)
            }
        };
        Ok(Effects(made))
    }

    /// Decides whether a change that was judged good before, and then gave its bundle the size
    /// `room`, is still good. Its content and signatures are not looked at again: they depend on
    /// the version it expects, and that must still be the present one.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] names the rule.
    pub fn recheck(
        &self,
        setting: &Setting<'_>,
        signed: &SignedChange,
        room: Room,
    ) -> Result<(), Rejection> {
        match self.admit(setting, signed)? {
            Admitted::Publish(publish, payment) => self.check_room(&publish.bundle, &payment, room),
            Admitted::Retire(..) | Admitted::Govern(_) => Ok(()),
        }
    }

    /// V1 to V4, V11, V17, V27: what can be said without a signature or content.
    fn admit<'a>(
        &self,
        setting: &Setting<'_>,
        signed: &'a SignedChange,
    ) -> Result<Admitted<'a>, Rejection> {
        let change = &signed.change;
        if change.genesis_hash != *setting.realm.genesis_hash() {
            return Err(Rejection::Realm(change.genesis_hash));
        }
        let class_of = |bundle: &BundleName| {
            let class = self.governance.class_of(bundle);
            class.ok_or_else(|| Rejection::Class(bundle.clone()))
        };
        match &change.action {
            Action::Publish(publish) => {
                let (bundle, expected) = (&publish.bundle, publish.expect_version);
                let class = class_of(bundle)?;
                let principals = self.check_approvals(signed, class.approvals)?;
                // V28: the creation of a bundle that was retired since is not valid again.
                self.check_version(bundle, expected, self.governance.retired_version)?;
                let payment = self.payment(setting, class, &principals, class.approvals)?;
                Ok(Admitted::Publish(publish, payment))
            }
            Action::Retire(retire) => {
                let (bundle, expected) = (&retire.bundle, retire.expect_version);
                let class = class_of(bundle)?;
                let needed = match class.kind {
                    ClassKind::Opaque => class.approvals,
                    // Retired and created again, trust roots would escape V10.
                    ClassKind::X509Trust => class.approvals.max(self.governance.approvals),
                };
                let principals = self.check_approvals(signed, needed)?;
                if self.check_version(bundle, expected, 0)? == 0 {
                    return Err(Rejection::NothingToRetire(bundle.clone()));
                }
                let payment = self.payment(setting, class, &principals, needed)?;
                Ok(Admitted::Retire(retire, payment))
            }
            Action::Govern(expected, act) => {
                self.check_approvals(signed, self.governance.approvals)?;
                let (expected, current) = (*expected, self.governance.version);
                if expected != current {
                    return Err(Rejection::GovernanceVersion { expected, current });
                }
                Ok(Admitted::Govern(act))
            }
        }
    }

    /// Whether `change` names a version that this state has not reached: a state that is behind refuses a
    /// change that others accept.
    #[must_use]
    pub fn is_behind(&self, realm: &Realm, change: &Change) -> bool {
        // V28: the versions of a bundle that is gone are not above the highest one that was retired.
        let reached = |bundle| match self.heads.get(bundle) {
            Some(head) => head.version,
            None => self.governance.retired_version,
        };
        let is_later = match &change.action {
            Action::Publish(publish) => publish.expect_version > reached(&publish.bundle),
            Action::Retire(retire) => retire.expect_version > reached(&retire.bundle),
            Action::Govern(expected, _) => *expected > self.governance.version,
        };
        change.genesis_hash == *realm.genesis_hash() && is_later
    }

    /// V4: the present version, which is the expected one; `absent` for a bundle that does not exist.
    fn check_version(
        &self,
        bundle: &BundleName,
        expected: u64,
        absent: u64,
    ) -> Result<u64, Rejection> {
        let current = self.heads.get(bundle).map_or(absent, |head| head.version);
        if expected != current {
            return Err(Rejection::Version { bundle: bundle.clone(), expected, current });
        }
        Ok(current)
    }

    /// V17, V27
    fn payment(
        &self,
        setting: &Setting<'_>,
        class: &Class,
        principals: &[&Label],
        needed: u32,
    ) -> Result<Payment, Rejection> {
        check_history_room(setting.history_size, class.kind)?;
        let time = setting.time;
        let payers = self.accounts.payers(class, principals, needed as usize, time)?;
        Ok(Payment { class: class.clone(), payers, time })
    }

    /// V3: the principals that approved, in order of their keys.
    fn check_approvals(
        &self,
        signed: &SignedChange,
        needed: u32,
    ) -> Result<Vec<&Label>, Rejection> {
        let mut principals: Vec<&Label> = Vec::new();
        for approval in &signed.approvals {
            let operator = self.governance.operators.get(&approval.operator);
            let operator = operator.ok_or(Rejection::UnknownKey(approval.operator))?;
            if !principals.contains(&&operator.principal) {
                principals.push(&operator.principal);
            }
        }
        let have = principals.len();
        if have < needed as usize {
            return Err(Rejection::Approvals { have, needed });
        }
        Ok(principals)
    }

    /// V3
    fn check_signatures(&self, signed: &SignedChange) -> Result<(), Rejection> {
        let bytes = signed.change.approval_bytes();
        for approval in &signed.approvals {
            if !approval.operator.verifies(&bytes, &approval.signature) {
                return Err(Rejection::Approval(approval.operator));
            }
        }
        Ok(())
    }

    /// V5 to V10, V18, V19
    fn publish(
        &self,
        publish: &Publish,
        payment: Payment,
        height: u64,
        cost: &mut Cost,
    ) -> Result<Made, Rejection> {
        let bundle = &publish.bundle;
        let empty = BundleTree::default();
        let before = self.contents.get(bundle).unwrap_or(&empty);
        let batch = before.batch(&publish.puts, &publish.deletes);
        let batch = batch.ok_or_else(|| Rejection::Order(bundle.clone()))?;
        cost.nodes(batch.nodes())?;
        if let Some(key) = batch.missing() {
            let (bundle, key) = (bundle.clone(), key.to_string());
            return Err(Rejection::Missing { bundle, key });
        }
        let room = Room { heads: 1, entries: batch.len() as u64, bytes: batch.bytes() };
        self.check_room(bundle, &payment, room)?;
        let kept = batch.kept();
        let after = batch.apply();
        if after.root() == before.root() {
            return Err(Rejection::Empty(bundle.clone()));
        }
        if after.root() != publish.root {
            let (computed, signed) = (after.root(), publish.root);
            return Err(Rejection::Root { bundle: bundle.clone(), computed, signed });
        }
        if payment.class.kind == ClassKind::X509Trust {
            check_trust_roots(publish)?;
            if kept == 0 && !before.is_empty() {
                return Err(Rejection::NoOverlap(bundle.clone()));
            }
        }
        // V28: a name that is used again continues above every version that was ever retired, which
        // is what its creation expects.
        let head = Head {
            name: bundle.clone(),
            version: publish.expect_version + 1,
            root: after.root(),
            entries: room.entries,
            bytes: room.bytes,
            height,
        };
        let delta = Delta {
            bundle: bundle.clone(),
            base: self.heads.get(bundle).map_or(0, |head| head.version),
            puts: publish.puts.clone(),
            deletes: publish.deletes.clone(),
        };
        Ok(Made::Publish { head, content: after, delta, payment })
    }

    /// V8, V18, V19
    fn check_room(
        &self,
        bundle: &BundleName,
        payment: &Payment,
        after: Room,
    ) -> Result<(), Rejection> {
        if after.entries > BUNDLE_ENTRIES_MAX as u64 || after.bytes > BUNDLE_BYTES_MAX {
            let (bundle, entries, bytes) = (bundle.clone(), after.entries, after.bytes);
            return Err(Rejection::BundleLimit { bundle, entries, bytes });
        }
        let before = self.heads.get(bundle).map(Room::of).unwrap_or_default();
        self.accounts.check_room(&payment.class, before, after)?;
        if before.heads > 0 {
            return Ok(());
        }
        self.accounts.check_owner(&payment.class, &payment.payers[0])
    }

    /// Makes what was judged good against this very state.
    pub fn commit(&mut self, effects: Effects) -> Applied {
        match effects.0 {
            Made::Publish { head, content, delta, payment } => {
                self.pay(&payment);
                self.hold(head, content, &payment.class, &payment.payers[0]);
                Applied::Published(delta)
            }
            Made::Retire { bundle, payment } => {
                self.pay(&payment);
                self.contents.remove(&bundle);
                if let Some(head) = self.heads.remove(&bundle) {
                    self.accounts.release(&bundle, &payment.class, Room::of(&head));
                    let governance = Arc::make_mut(&mut self.governance);
                    // V28: the retirement is a version of its own, so that no change of the bundle
                    // that was signed before passes for its creation.
                    governance.retired_version = governance.retired_version.max(head.version + 1);
                }
                Applied::Retired(bundle)
            }
            Made::Govern(governance) => {
                self.accounts.forget_strangers(&governance);
                self.governance = Arc::new(governance);
                Applied::Governed
            }
        }
    }

    fn pay(&mut self, payment: &Payment) {
        self.accounts.charge(&payment.class, &payment.payers, payment.time);
    }

    /// Puts a bundle of `class` in, in place of the version there was; `creator` owns it if there
    /// was none.
    pub fn hold(&mut self, head: Head, content: BundleTree, class: &Class, creator: &Label) {
        let before = self.heads.get(&head.name).map(Room::of).unwrap_or_default();
        self.accounts.hold(&head.name, class, (before, Room::of(&head)), creator);
        self.contents.insert(head.name.clone(), content);
        self.heads.insert(head.name.clone(), head);
    }

    /// Ends a block at `time`: what the accounts are goes into the governance state, whose root
    /// the header commits to.
    pub fn seal(&mut self, time: Timestamp) {
        self.accounts.expire(time);
        let accounts = self.accounts.digest();
        if self.governance.accounts != accounts {
            Arc::make_mut(&mut self.governance).accounts = accounts;
        }
    }
}

/// V17: the last quarter is left for trust roots.
fn check_history_room(size: u64, kind: ClassKind) -> Result<(), Rejection> {
    let max = match kind {
        ClassKind::Opaque => HISTORY_LEAVES_MAX - TRUST_HISTORY_RESERVED,
        ClassKind::X509Trust => HISTORY_LEAVES_MAX,
    };
    if size >= max as u64 { Err(Rejection::HistoryFull { size, max }) } else { Ok(()) }
}

/// V9
fn check_trust_roots(publish: &Publish) -> Result<(), Rejection> {
    for (key, value) in &publish.puts {
        x509::check_trust_root(value).map_err(|why| Rejection::NotATrustRoot {
            bundle: publish.bundle.clone(),
            key: key.to_string(),
            why,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v17_a_full_history_takes_no_more_directories() {
        let all = HISTORY_LEAVES_MAX;
        for (kind, max) in
            [(ClassKind::X509Trust, all), (ClassKind::Opaque, all - TRUST_HISTORY_RESERVED)]
        {
            let size = max as u64;
            assert_eq!(check_history_room(size - 1, kind), Ok(()));
            assert_eq!(check_history_room(size, kind), Err(Rejection::HistoryFull { size, max }));
        }
    }
}
