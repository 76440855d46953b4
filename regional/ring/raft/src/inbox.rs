//! Receives snapshots from peers, one at a time, into a file beside this member's state.
//!
//! # Invariants
//!
//! - **INBOX-1** No other transfer begins before the received frames are installed or given up:
//!   both use the same file. So the task that works on a transfer holds the inbox, also on another
//!   thread, also when the sending peer is gone.
//! - **INBOX-2** A snapshot leaves the inbox only after all of its digests and all of its content
//!   verified.
//! - **INBOX-3** A failure of this disk ends the process, as one of the log does. Invalid data from
//!   a peer never does.

use std::{
    io,
    sync::{Arc, Mutex as StdMutex},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::type_config::alias::SnapshotOf;
use satrap_ring_core::StateSetup;
use satrap_ring_storage::{
    InstanceId, Owner, State, StateConfig, StorageError,
    files::Files,
    snapshot::{Reader, ReceiveError, Received, Receiver},
};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::{
    disk::{DiskError, Restored, load_received},
    platform::Platform,
    types::Types,
};

/// A snapshot that was received completely (INBOX-2).
pub struct Arrived {
    /// The file beside the state.
    pub received: Received,
    /// Its content.
    pub restored: Restored,
    /// INBOX-1
    _held: Held,
}

/// A snapshot in transit.
pub enum SnapshotContent {
    /// The checkpoint on this member's disk, ready to be sent.
    Stored(Arc<StdMutex<Reader>>),
    /// A verified snapshot from a peer (APPLY-2).
    Arrived(Box<Arrived>),
}

/// A snapshot with its content.
pub type Snapshot = SnapshotOf<Types, SnapshotContent>;

/// The result of receiving a stream of frames.
pub enum Transfer {
    /// The stream ended early; the sender shall continue with this frame.
    Next(u64),
    /// All frames arrived.
    All(Box<Arrived>),
}

/// The reason why a snapshot is refused.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// A frame is invalid. The peer's fault.
    #[error(transparent)]
    Frame(#[from] ReceiveError),
    /// The content is invalid. The peer's fault, or the disk's.
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

/// The channel that reports a failed disk.
pub type DiskAlarm = mpsc::Sender<StorageError>;

/// The inbox of one member. Clones share it.
#[derive(Clone)]
pub struct Inbox {
    files: Arc<dyn Files>,
    owner: Owner,
    instance: InstanceId,
    setup: StateSetup,
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
        setup: StateSetup,
        alarm: DiskAlarm,
    ) -> Self {
        Self { files, owner, instance, setup, alarm, receiver: Arc::default() }
    }

    /// Receives frames until the stream ends or the snapshot is complete; verifies them beside
    /// `state`.
    ///
    /// # Errors
    ///
    /// The stream's own error, or [`InboxError`]; earlier frames are kept.
    pub async fn take<P: Platform, E: From<InboxError>>(
        &self,
        state: Arc<State>,
        mut frames: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Transfer, E> {
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
                let arrived = self.off_thread::<P, _>(move || inbox.verify(held, &state)).await?;
                return Ok(Transfer::All(Box::new(arrived)));
            }
        }
        Ok(Transfer::Next(held.as_ref().map_or(0, Receiver::next)))
    }

    fn open(&self, mut held: Held) -> Result<Held, InboxError> {
        let (files, config) = (self.files.clone(), StateConfig::default());
        *held = Some(Receiver::open(files, config, &self.owner, self.instance)?);
        Ok(held)
    }

    /// INBOX-2
    fn verify(&self, mut held: Held, state: &State) -> Result<Arrived, InboxError> {
        let receiver = held.take().ok_or(StorageError::Stopped)?;
        let received = receiver.finish()?;
        let restored = load_received(state, &received, &self.setup)?;
        Ok(Arrived { received, restored, _held: held })
    }

    async fn off_thread<P: Platform, T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, InboxError> + Send + 'static,
    ) -> Result<T, InboxError> {
        P::off_thread(work).await?.map_err(|error| self.report_disk_failure(error))
    }

    /// INBOX-3
    fn report_disk_failure(&self, error: InboxError) -> InboxError {
        let failed = match error {
            InboxError::Frame(ReceiveError::Storage(error))
            | InboxError::Content(DiskError::Storage(error))
                if error.is_fatal() =>
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
                // The next transfer opens it again, from the rows on disk.
                *held = None;
            }
            Err(error.into())
        }
    }
}
