//! Opens the directory of a `dev` realm for this process alone, or makes it.
//!
//! # Invariants
//!
//! - **S1** One `dev` at a time: the lock is taken before anything in the directory is changed, and
//!   its file says whose it is.
//! - **S2** The ports of the realm are held for as long as it runs, so that none of its processes
//!   finds its own taken.

use std::path::Path;

use satrap_host::{
    files,
    lock::{DirectoryLock, LockError},
    ports::Reserved,
};

use super::{DevError, plan};
use crate::{
    error::CliError,
    realm::{self, CreateError, RealmPlan},
};

/// A plan of more bytes was not written by `dev`.
const PLAN_BYTES_MAX: u64 = 1024 * 1024;

/// The directory of a realm, held.
#[derive(Debug)]
pub struct Held {
    /// What the realm consists of.
    pub plan: RealmPlan,
    _ports: Reserved,
    _lock: DirectoryLock,
}

/// The realm in `dir`, which is made if there is none.
///
/// # Errors
///
/// If another `dev` has it, it holds something else, or a port is in use.
pub fn open_or_create(dir: &Path, evil: bool) -> Result<Held, DevError> {
    let path = dir.join("realm.toml");
    let mut reserved = None;
    if !path.exists() {
        let (plan, ports) = plan::new_realm(dir, evil)
            .map_err(|e| CliError::internal(format!("cannot reserve free ports: {e}")))?;
        match realm::create(&plan, dir) {
            Ok(_) => reserved = Some(ports),
            // Another `dev` was faster; its lock says so below.
            Err(CreateError::Taken(_)) if path.exists() => {}
            Err(error) => return Err(refuse(dir, error).into()),
        }
    }
    let lock = DirectoryLock::take(dir).map_err(|error| match &error {
        LockError::InUse { .. } => CliError::unavailable(format!(
            "{error}: another `satrap dev` runs there; stop it, or give another --state-dir"
        )),
        LockError::File { directory, error } => CliError::file("cannot lock", directory, error),
    })?;
    let plan = read(&path)?;
    if evil == plan::liars(&plan).is_empty() {
        let (is, asked) = if evil { ("honest", "an evil") } else { ("evil", "an honest") };
        return Err(CliError::usage(format!(
            "{} holds an {is} realm, not {asked} one; give another --state-dir",
            dir.display()
        ))
        .into());
    }
    let ports = match reserved {
        Some(ports) => ports,
        None => reserve(&plan)?,
    };
    Ok(Held { plan, _ports: ports, _lock: lock })
}

fn refuse(dir: &Path, error: CreateError) -> CliError {
    match error {
        CreateError::Taken(_) => CliError::usage(format!(
            "{} is not empty and holds no realm of `satrap dev`; give another --state-dir, or empty \
             this one",
            dir.display()
        )),
        CreateError::Disk { path, source } => CliError::file("cannot create", &path, &source),
        error => CliError::internal(error),
    }
}

fn read(path: &Path) -> Result<RealmPlan, CliError> {
    let text = files::read(path, PLAN_BYTES_MAX)
        .map_err(|e| CliError::file("plan of the realm", path, &e))?;
    let broken = |why: &dyn std::fmt::Display| {
        CliError::refused(format!(
            "{}: {why}; restore the file, or start a new realm with another --state-dir",
            path.display()
        ))
    };
    let text = String::from_utf8(text).map_err(|e| broken(&e))?;
    RealmPlan::from_toml(&text).map_err(|e| broken(&e))
}

/// S2 for a realm that was made before.
fn reserve(plan: &RealmPlan) -> Result<Reserved, CliError> {
    let liars = plan::liars(plan)
        .into_iter()
        .map(|liar| (format!("the liar at member {}-{}", liar.region, liar.member), liar.listen));
    let listens: Vec<_> = plan.listens().into_iter().chain(liars).collect();
    Reserved::these(listens.iter().map(|(_, address)| *address)).map_err(|(address, error)| {
        let whose = listens.iter().find(|(_, listen)| *listen == address);
        let whose = whose.map_or("a process", |(whose, _)| whose);
        CliError::unavailable(format!(
            "cannot listen on {address}, {whose}: {error}; stop the process that uses it, or start \
             a new realm with another --state-dir"
        ))
    })
}
