//! Opens all that a member keeps, and checks that the parts belong together.
//!
//! Log and state are files of their own, so an operator can remove one and leave the other, and a
//! restore can be interrupted. Either must be noticed before the member votes.

use std::sync::Arc;

use crate::{
    InstanceId, Owner, Recovered, Reserve, SpaceConfig, State, StateConfig, StorageError, Wal,
    WalConfig, files::Files, state::FILE, wal::is_segment,
};

/// How the data of a member is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Of the reserve.
    pub space: SpaceConfig,
    /// Of the log.
    pub wal: WalConfig,
    /// Of the state.
    pub state: StateConfig,
}

/// The data of a member, open.
#[derive(Debug)]
pub struct Member {
    /// Held for when the disk is full.
    pub reserve: Arc<Reserve>,
    /// The log; for one thread.
    pub wal: Wal,
    /// What the log held.
    pub recovered: Recovered,
    /// The last checkpoint; for another thread. The log begins at or before its end.
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
            let what = "the log is gone, and with it what this member voted";
            return Err(StorageError::damaged("wal-*.seg", 0, what));
        }
        let reserve = Arc::new(Reserve::open(files.clone(), config.space)?);
        let (wal, recovered) = Wal::open(files.clone(), reserve.clone(), config.wal, owner, fresh)?;
        if !has_state && recovered.purged.is_some() {
            return Err(StorageError::damaged(FILE, 0, "it is gone, and the log is purged"));
        }
        let state = State::open(files, config.state, owner, recovered.instance)?;
        let applied = state.applied()?.map(|(mark, _)| mark.index);
        let purged = recovered.purged.as_ref().map(|mark| mark.index);
        if purged > applied {
            let what = format!("it ends at {applied:?}, and the log is purged up to {purged:?}");
            return Err(StorageError::damaged(FILE, 0, what));
        }
        Ok(Self { reserve, wal, recovered, state })
    }
}
