//! The applied state of one member, and the one function that changes it: [`AppliedState::apply`].
//!
//! A running member, an offline recovery, a restore from a snapshot and every simulation apply the
//! entries of the log with this function, so all of them reach the same state as the ring.
//!
//! ```text
//!   Entry ─┬─ Blank ─────────────────────────▶ nothing
//!          ├─ Members(ids) ──────────────────▶ alarms of members that left
//!          └─ Command ─┬─ Batch ─────────────▶ Keyspace
//!                      ├─ Extension(tag) ────▶ the extension with that tag
//!                      └─ does not decode ───▶ nothing
//! ```
//!
//! `apply` is [`Extensions::prepare`], [`Prepared::verify`] and [`AppliedState::commit`] in one.
//! Only `commit` changes the state. A running member calls the three one by one, to verify a long
//! command without holding the lock that readers wait for.
//!
//! # Invariants
//!
//! - **STATE-1** The same entries give the same state and the same outcomes, on every member.
//! - **STATE-3** A command that cannot be decoded or verified changes nothing.
//! - **STATE-6** When a member leaves the ring, its NOSPACE alarm is cleared: its disk no longer concerns
//!   the ring. Its CORRUPT alarm stays until an operator clears it.
//!
//! # Deliberately absent
//!
//! Terms, indices, votes and the members' addresses, which are Raft's. Locks and disks.

use std::{collections::BTreeSet, sync::Arc};

use satrap_merkle::codec::DecodeError;

use crate::{
    Command, Refusal,
    alarm::{AlarmKind, AlarmMember},
    extension::{Extension, Extensions, Rejected},
    keyspace::{Changes, Keyspace, Pages, Reply, RestoreError},
    kv,
    recovery::{RecoveryRecord, Signatories},
};

/// One committed entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The first entry of a new leader.
    Blank,
    /// A change of the ring's members, by the ids that clients know.
    Members(BTreeSet<u64>),
    /// A proposed command, or the reason why it cannot be decoded.
    Command(Result<Command, DecodeError>),
}

/// The result of applying an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entry carried no command.
    Blank,
    /// One reply for each proposal, in the same order.
    Batch(Vec<Reply>),
    /// An extension moved to this [version](Extension::version).
    Extension(u64),
    /// The command was refused; nothing changed.
    Rejected(Rejected),
}

/// The configuration of a ring's state: the same on all members, for as long as the ring lives.
#[derive(Clone, Debug, Default)]
pub struct StateSetup {
    /// The extensions before any command.
    pub extensions: Extensions,
    /// The operators whose signatures a forced recovery needs.
    pub signatories: Signatories,
}

/// The state that results from all applied entries.
#[derive(Debug, Default)]
pub struct AppliedState {
    keyspace: Keyspace,
    extensions: Extensions,
    /// The members of the last applied membership.
    members: BTreeSet<u64>,
}

/// All changes since the last checkpoint.
#[derive(Debug)]
pub struct StateChanges {
    /// The changes of the keyspace.
    pub keyspace: Changes,
    /// The changed extensions, with the names of their pages.
    pub extensions: Vec<(&'static str, Arc<dyn Extension>)>,
}

/// An entry, with the extension that it is for.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) entry: Entry,
    pub(crate) extension: Option<Arc<dyn Extension>>,
}

/// An entry whose command its extension has verified.
#[derive(Debug)]
pub struct Verified {
    entry: Entry,
    verdict: Option<Result<Arc<dyn Extension>, Rejected>>,
}

impl AppliedState {
    /// The state of a ring before its first entry.
    #[must_use]
    pub fn new(config: &StateSetup) -> Self {
        let keyspace = Keyspace::signed_by(config.signatories.clone());
        Self { keyspace, extensions: config.extensions.clone(), members: BTreeSet::new() }
    }

    /// Applies one entry.
    pub fn apply(&mut self, entry: Entry) -> Outcome {
        let verified = self.extensions.prepare(entry).verify();
        self.commit(verified)
    }

    /// Changes the state by the entry.
    pub fn commit(&mut self, verified: Verified) -> Outcome {
        let Verified { entry, verdict } = verified;
        match entry {
            Entry::Blank => Outcome::Blank,
            Entry::Members(members) => {
                self.change_members(members);
                Outcome::Blank
            }
            Entry::Command(Ok(Command::Batch(batch))) => {
                Outcome::Batch(self.keyspace.apply(&batch))
            }
            Entry::Command(Ok(Command::Extension { tag, .. })) => match verdict {
                Some(Ok(next)) => {
                    let version = next.version();
                    self.extensions.replace(tag, next);
                    Outcome::Extension(version)
                }
                Some(Err(rejected)) => Outcome::Rejected(rejected),
                None => Outcome::Rejected(undecoded(&DecodeError::Invalid("command"))),
            },
            // STATE-3
            Entry::Command(Err(error)) => Outcome::Rejected(undecoded(&error)),
        }
    }

    /// STATE-6
    fn change_members(&mut self, members: BTreeSet<u64>) {
        for gone in self.members.difference(&members) {
            self.keyspace.clear_alarm(AlarmMember { kind: AlarmKind::NoSpace, member: *gone });
        }
        self.members = members;
    }

    /// Begins the next epoch outside the log, for offline commands: a restore needs no signature,
    /// because the operator who runs it has access to the disk.
    ///
    /// # Errors
    ///
    /// [`Refusal`]: nothing changed.
    pub fn recover(&mut self, record: &RecoveryRecord) -> Result<(), Refusal> {
        self.keyspace.recover_offline(record).map(drop)
    }

    /// The keyspace: keys, leases, users and all other data of clients.
    #[must_use]
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// The extensions.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Frees memory of versions that were compacted; see [`kv::Store::reclaim`].
    pub fn reclaim(&mut self, budget: usize) -> kv::Reclaimed {
        self.keyspace.reclaim(budget)
    }

    /// Takes all changes since the last call. The caller must make them durable together, or stop.
    pub fn take_changes(&mut self) -> StateChanges {
        let keyspace = self.keyspace.take_changes();
        StateChanges { keyspace, extensions: self.extensions.take_changes() }
    }

    /// Restores a state from a checkpoint: pages, and events as for [`Keyspace::restore`].
    /// `members` are those of the checkpoint's membership.
    ///
    /// # Errors
    ///
    /// A [`RestoreError`] names the fault in the checkpoint.
    pub fn restore(
        config: &StateSetup,
        members: BTreeSet<u64>,
        mut pages: Pages,
        events: impl Iterator<Item = kv::Event>,
    ) -> Result<Self, RestoreError> {
        let extensions = config
            .extensions
            .restore(&mut pages)
            .map_err(|(page, why)| RestoreError::Extension(page, why))?;
        let keyspace = Keyspace::restore(&pages, events)?.require(&config.signatories)?;
        Ok(Self { keyspace, extensions, members })
    }
}

impl Prepared {
    /// The number of bytes that [`Prepared::verify`] processes; zero if it does nothing.
    #[must_use]
    pub fn bytes_to_verify(&self) -> usize {
        match (&self.entry, &self.extension) {
            (Entry::Command(Ok(Command::Extension { body, .. })), Some(_)) => body.len(),
            _ => 0,
        }
    }

    /// Lets the extension verify its command. Needs no access to the state.
    #[must_use]
    pub fn verify(self) -> Verified {
        let Self { entry, extension } = self;
        let verdict = match (&entry, extension) {
            (Entry::Command(Ok(Command::Extension { body, .. })), Some(extension)) => {
                Some(extension.apply(body))
            }
            _ => None,
        };
        Verified { entry, verdict }
    }
}

fn undecoded(error: &DecodeError) -> Rejected {
    Rejected { rule: "STATE-3".to_owned(), why: error.to_string() }
}
