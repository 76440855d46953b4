//! Opens the log, the state and the reserve of a member, and checks that they belong together.
//!
//! Log and state are separate files, so an operator can remove one and leave the other, and a crash
//! can interrupt a restore. Both must be detected before the member votes.

use std::sync::Arc;

use crate::{
    InstanceId, Owner, Recovered, Reserve, SpaceConfig, State, StateConfig, StorageError, Wal,
    WalConfig, files::Files, state::FILE, wal::is_segment,
};

/// Configuration of a member's storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Configuration of the reserve.
    pub space: SpaceConfig,
    /// Configuration of the log.
    pub wal: WalConfig,
    /// Configuration of the state.
    pub state: StateConfig,
}

/// The open data of a member.
#[derive(Debug)]
pub struct Member {
    /// Disk space that is held back for when the disk is full.
    pub reserve: Arc<Reserve>,
    /// The log; one thread owns it.
    pub wal: Wal,
    /// The content of the log at the start.
    pub recovered: Recovered,
    /// The state as of the last checkpoint; another thread owns it. The log begins at or before its
    /// end.
    pub state: State,
}

impl Member {
    /// Opens or creates the data of `owner`; `fresh` becomes the id of a directory that is created.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the member must not start.
    pub fn open(
        files: Arc<dyn Files>,
        config: Config,
        owner: &Owner,
        fresh: InstanceId,
    ) -> Result<Self, StorageError> {
        let names = files.list().map_err(StorageError::io("the data directory", "list"))?;
        let has_state = names.iter().any(|name| name == FILE);
        if has_state && !names.iter().any(|name| is_segment(name)) {
            let what = "the log is missing, and with it the votes of this member";
            return Err(StorageError::damaged("wal-*.seg", what));
        }
        let reserve = Arc::new(Reserve::open(files.clone(), config.space)?);
        let (wal, recovered) = Wal::open(files.clone(), reserve.clone(), config.wal, owner, fresh)?;
        if !has_state && recovered.purged.is_some() {
            return Err(StorageError::damaged(FILE, "it is missing, and the log is purged"));
        }
        let state = State::open(files, config.state, owner, recovered.instance)?;
        let applied = state.applied()?.map(|(mark, _)| mark.index);
        let purged = recovered.purged.as_ref().map(|mark| mark.index);
        if let Some(purged) = purged.filter(|purged| applied < Some(*purged)) {
            let applied = applied.unwrap_or(0);
            let what = format!("it ends at entry {applied}, and the log is purged up to {purged}");
            return Err(StorageError::damaged(FILE, what));
        }
        Ok(Self { reserve, wal, recovered, state })
    }
}
