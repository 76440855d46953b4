//! Locks with fencing tokens, and the resources they guard.
//!
//! A holder that was paused past its lease still believes that it holds the lock. No store can
//! prevent that; what can be demanded is that tokens increase, and that a resource which compares
//! them never goes back to an older holder. The same check over an unguarded resource must fail,
//! or the experiment shows nothing.

use std::collections::BTreeMap;

use crate::{Nanos, Rule, Violation};

/// A token: (epoch, counter), or (0, create revision) for etcd's locks.
pub type Token = (u64, i64);

/// A lock was given to a holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The lock or role.
    pub lock: String,
    /// The holder.
    pub holder: u32,
    /// When the holder asked.
    pub call_ns: Nanos,
    /// When it knew that it had the lock.
    pub return_ns: Nanos,
    /// The token.
    pub token: Token,
}

/// A resource was asked to take a write, in the order in which it decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The resource, which belongs to the lock of the same name.
    pub lock: String,
    /// The holder that wrote.
    pub holder: u32,
    /// The token shown.
    pub token: Token,
    /// Whether the resource took it.
    pub admitted: bool,
}

/// Checks HISTLEASE-4 for grants and HISTLEASE-5 for accesses.
#[must_use]
pub fn check(grants: &[Grant], accesses: &[Access]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut by_lock: BTreeMap<&str, Vec<&Grant>> = BTreeMap::new();
    for grant in grants {
        by_lock.entry(&grant.lock).or_default().push(grant);
    }
    for grants in by_lock.values() {
        increases(grants, &mut found);
    }
    let mut newest: BTreeMap<&str, &Access> = BTreeMap::new();
    for access in accesses.iter().filter(|access| access.admitted) {
        let newest = newest.entry(&access.lock).or_insert(access);
        if access.token < newest.token {
            let what = format!("{access:?} was admitted after {newest:?}");
            found.push(Violation::new(Rule::ResourceRegressed, what));
        } else if access.token == newest.token && access.holder != newest.holder {
            let what = format!("{access:?} and {newest:?} share a token");
            found.push(Violation::new(Rule::TokenIncreases, what));
        } else {
            *newest = access;
        }
    }
    found
}

/// HISTLEASE-4: a grant that was asked for after another was known has the greater token.
fn increases(grants: &[&Grant], found: &mut Vec<Violation>) {
    let mut by_return: Vec<&Grant> = grants.to_vec();
    by_return.sort_by_key(|grant| grant.return_ns);
    let mut by_call: Vec<&Grant> = grants.to_vec();
    by_call.sort_by_key(|grant| grant.call_ns);
    let mut returned = by_return.into_iter().peekable();
    let mut newest: Option<&Grant> = None;
    let mut tokens: BTreeMap<Token, &Grant> = BTreeMap::new();
    for grant in by_call {
        while let Some(before) = returned.next_if(|before| before.return_ns < grant.call_ns) {
            if newest.is_none_or(|newest| newest.token < before.token) {
                newest = Some(before);
            }
        }
        let twin = tokens.insert(grant.token, grant);
        let older = newest.filter(|newest| newest.token >= grant.token);
        if let Some(other) = twin.or(older) {
            let what = format!("{grant:?} follows {other:?}");
            found.push(Violation::new(Rule::TokenIncreases, what));
        }
    }
}
