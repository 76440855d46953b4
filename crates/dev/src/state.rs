//! Opens the directory of a `dev` realm for this process alone, or makes it.
//!
//! # Invariants
//!
//! - **DEVSTATE-1** One `dev` at a time: a realm is changed only under the lock of its directory, whose file
//!   names the owner. A new one appears there whole, and only in an empty directory.
//! - **DEVSTATE-2** The ports of the realm are held for as long as it runs, so that none of its processes
//!   finds its own taken.
//! - **DEVSTATE-3** Processes of an earlier `dev` that was killed stop by themselves and need their directories
//!   and ports until then, so those are waited for.

use std::{path::Path, time::Duration};

use satrap_operator::Error;
use satrap_realm::{CreateError, RealmFiles, RealmPlan};
use satrap_runtime::{
    clock, files,
    lock::{DirectoryLock, LockError},
    ports::Reserved,
};
use tokio::time::sleep;

use crate::{error::DevError, plan};

/// A plan of more bytes was not written by `dev`.
const PLAN_BYTES_MAX: u64 = 1024 * 1024;
/// How long a process of an earlier run may need to stop: a member 10 s, the others less. The rest is
/// for a busy machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two checks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The directory of a realm, locked, with its ports reserved.
#[derive(Debug)]
pub struct Held {
    /// The realm's processes and their addresses.
    pub plan: RealmPlan,
    _ports: Reserved,
    _lock: DirectoryLock,
}

/// The realm in `dir`, which is made if there is none.
///
/// # Errors
///
/// If another `dev` has it, it holds something else, or a port is in use. `say` gets a line if
/// processes have to be waited for.
pub async fn open_or_create(dir: &Path, evil: bool, say: impl Fn(&str)) -> Result<Held, DevError> {
    let path = dir.join("realm.toml");
    let mut reserved = None;
    if !path.exists() {
        let (plan, ports) = plan::new_realm(dir, evil)
            .map_err(|e| Error::internal(format!("cannot reserve free ports: {e}")))?;
        match satrap_realm::create(&plan, dir) {
            Ok(_) => reserved = Some(ports),
            // Another `dev` created it first; taking the lock fails below.
            Err(_) if path.exists() => {}
            Err(error) => return Err(refuse(dir, error).into()),
        }
    }
    let stop = "another `satrap dev` runs there; stop it, or give another --state-dir";
    let lock = DirectoryLock::take(dir).map_err(|error| not_locked(&error, stop))?;
    let plan = read(&path)?;
    if evil == plan::liars(&plan).is_empty() {
        let (is, asked) = if evil { ("honest", "an evil") } else { ("evil", "an honest") };
        return Err(Error::usage(format!(
            "{} holds an {is} realm, not {asked} one; give another --state-dir",
            dir.display()
        ))
        .into());
    }
    let ports = match reserved {
        Some(ports) => ports,
        None => take_over(dir, &plan, say).await?,
    };
    Ok(Held { plan, _ports: ports, _lock: lock })
}

fn not_locked(error: &LockError, stop: &str) -> Error {
    match error {
        LockError::InUse { .. } => Error::unavailable(format!("{error}: {stop}")),
        LockError::File { directory, error } => Error::file("cannot lock", directory, error),
    }
}

fn refuse(dir: &Path, error: CreateError) -> Error {
    match error {
        CreateError::Taken(_) => Error::usage(format!(
            "{} is not empty and holds no realm of `satrap dev`; give another --state-dir, or empty \
             this one",
            dir.display()
        )),
        CreateError::Disk { path, source } => Error::file("cannot create", &path, &source),
        error => Error::internal(error),
    }
}

fn read(path: &Path) -> Result<RealmPlan, Error> {
    let text = files::read(path, PLAN_BYTES_MAX)
        .map_err(|e| Error::file("plan of the realm", path, &e))?;
    let broken = |why: &dyn std::fmt::Display| {
        Error::refused(format!(
            "{}: {why}; restore the file, or start a new realm with another --state-dir",
            path.display()
        ))
    };
    let text = String::from_utf8(text).map_err(|e| broken(&e))?;
    RealmPlan::from_toml(&text).map_err(|e| broken(&e))
}

/// DEVSTATE-2 and DEVSTATE-3 for a realm that was made before.
async fn take_over(dir: &Path, plan: &RealmPlan, say: impl Fn(&str)) -> Result<Reserved, Error> {
    let started = clock::monotonic();
    let mut said = false;
    loop {
        match stopped(dir, plan).and_then(|()| reserve(plan)) {
            Err(error) if clock::monotonic() - started < STOPPED_WITHIN => {
                if !said {
                    say(&format!(
                        "waiting up to {} s for processes of an earlier run to stop: {error}",
                        STOPPED_WITHIN.as_secs()
                    ));
                    said = true;
                }
                sleep(LOOK_AGAIN).await;
            }
            ended => return ended,
        }
    }
}

/// Checks that no process holds its data directory.
fn stopped(dir: &Path, plan: &RealmPlan) -> Result<(), Error> {
    let files = RealmFiles::of(plan, dir);
    let processes = files.validators.iter().chain(&files.members).chain(&files.edges);
    let data = processes.map(|process| process.dir.join("data")).filter(|data| data.exists());
    for data in data {
        let stop = "stop that process, or start a new realm with another --state-dir";
        DirectoryLock::take(&data).map_err(|error| not_locked(&error, stop))?;
    }
    Ok(())
}

fn reserve(plan: &RealmPlan) -> Result<Reserved, Error> {
    let liars = plan::liars(plan)
        .into_iter()
        .map(|liar| (format!("the liar at member {}-{}", liar.region, liar.member), liar.listen));
    let listens: Vec<_> = plan.listens().into_iter().chain(liars).collect();
    Reserved::these(listens.iter().map(|(_, address)| *address)).map_err(|(address, error)| {
        let whose = listens.iter().find(|(_, listen)| *listen == address);
        let whose = whose.map_or("a process", |(whose, _)| whose);
        Error::unavailable(format!(
            "cannot listen on {address}, {whose}: {error}; stop the process that uses it, or start \
             a new realm with another --state-dir"
        ))
    })
}
