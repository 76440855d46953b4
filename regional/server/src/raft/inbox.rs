//! Where a snapshot from a peer arrives: beside the state, one at a time.
//!
//! # Invariants
//!
//! - **I1** Nobody begins another transfer before what has arrived is installed or given up: both
//!   use the same file. So whoever works on it holds the inbox, also on another thread, also when
//!   the peer that sent it is gone.
//! - **I2** A snapshot leaves the inbox only after all of its digests and all of its content
//!   verified.
//! - **I3** A disk that fails here ends the process, as one that fails the log does. What a peer sent
//!   never does.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use satrap_certify::Genesis;
use satrap_regional_storage::{
    InstanceId, Owner, State, StateConfig, StorageError,
    files::Files,
    snapshot::{ReceiveError, Received, Receiver},
};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::{
    disk::{DiskError, Restored, load_received},
    platform::Platform,
};

/// A snapshot that was received whole (I2).
pub struct Arrived {
    /// The file beside the state.
    pub received: Received,
    /// What is in it.
    pub restored: Restored,
    /// I1
    _held: Held,
}

/// What became of a stream of frames.
pub enum Taken {
    /// It ended early; it shall go on with this frame.
    Next(u64),
    /// All are there.
    All(Box<Arrived>),
}

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// A frame is not what it should be. The peer's fault.
    #[error(transparent)]
    Frame(#[from] ReceiveError),
    /// The content is not. The peer's fault, or the disk's.
    #[error(transparent)]
    Content(#[from] DiskError),
    /// This member stops.
    #[error(transparent)]
    Stopping(#[from] io::Error),
}

impl From<StorageError> for InboxError {
    fn from(error: StorageError) -> Self {
        Self::Content(error.into())
    }
}

type Held = OwnedMutexGuard<Option<Receiver>>;

/// Where to say that the disk has failed.
pub type DiskAlarm = mpsc::Sender<StorageError>;

/// The inbox of one member. Clones are the same one.
#[derive(Clone)]
pub struct Inbox {
    files: Arc<dyn Files>,
    owner: Owner,
    instance: InstanceId,
    genesis: Arc<Genesis>,
    alarm: DiskAlarm,
    receiver: Arc<Mutex<Option<Receiver>>>,
}

impl Inbox {
    /// An inbox in `files`, for the member `owner` with that instance.
    #[must_use]
    pub fn new(
        files: Arc<dyn Files>,
        owner: Owner,
        instance: InstanceId,
        genesis: Arc<Genesis>,
        alarm: DiskAlarm,
    ) -> Self {
        Self { files, owner, instance, genesis, alarm, receiver: Arc::default() }
    }

    /// Takes frames until the stream ends, or all are there; verifies them beside `state`.
    ///
    /// # Errors
    ///
    /// The stream's own error, or [`InboxError`]; what was taken before is kept.
    pub async fn take<P: Platform, E: From<InboxError>>(
        &self,
        state: Arc<State>,
        mut frames: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Taken, E> {
        let mut held = self.receiver.clone().lock_owned().await;
        if held.is_none() {
            let inbox = self.clone();
            held = self.off_thread::<P, _>(move || inbox.open(held)).await?;
        }
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            let accepted = self.off_thread::<P, _>(move || accept(held, &frame));
            let (back, complete) = accepted.await?;
            held = back;
            if complete {
                let inbox = self.clone();
                let arrived = self.off_thread::<P, _>(move || inbox.judge(held, &state)).await?;
                return Ok(Taken::All(Box::new(arrived)));
            }
        }
        Ok(Taken::Next(held.as_ref().map_or(0, Receiver::next)))
    }

    fn open(&self, mut held: Held) -> Result<Held, InboxError> {
        let (files, config) = (self.files.clone(), StateConfig::default());
        *held = Some(Receiver::open(files, config, &self.owner, self.instance)?);
        Ok(held)
    }

    /// I2
    fn judge(&self, mut held: Held, state: &State) -> Result<Arrived, InboxError> {
        let receiver = held.take().ok_or(StorageError::Stopped)?;
        let received = receiver.finish()?;
        let restored = load_received(state, &received, &self.genesis)?;
        Ok(Arrived { received, restored, _held: held })
    }

    async fn off_thread<P: Platform, T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, InboxError> + Send + 'static,
    ) -> Result<T, InboxError> {
        P::off_thread(work).await?.map_err(|error| self.judge_disk(error))
    }

    /// I3
    fn judge_disk(&self, error: InboxError) -> InboxError {
        let failed = match error {
            InboxError::Frame(ReceiveError::Storage(error))
            | InboxError::Content(DiskError::Storage(error))
                if error.is_fatal() && !matches!(error, StorageError::Damaged { .. }) =>
            {
                error
            }
            error => return error,
        };
        let why = io::Error::other(failed.to_string());
        // One report is enough.
        let _ = self.alarm.try_send(failed);
        InboxError::Stopping(why)
    }
}

fn accept(mut held: Held, frame: &[u8]) -> Result<(Held, bool), InboxError> {
    let receiver = held.as_mut().ok_or(StorageError::Stopped)?;
    match receiver.accept(frame) {
        Ok(accepted) => Ok((held, accepted.complete)),
        Err(error) => {
            if let ReceiveError::Storage(_) = &error {
                // It is opened anew, from what is on disk.
                *held = None;
            }
            Err(error.into())
        }
    }
}
