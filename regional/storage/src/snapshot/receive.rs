//! Builds the state of another member beside one's own, and only then takes its place.

use std::{io, sync::Arc};

use redb::{Database, ReadableDatabase, WriteTransaction};

use super::{
    Header, ReceiveError, Refused,
    frame::{self, Chain},
    stream::{Progress, SealedRow, Step, Stream},
};
use crate::{
    InstanceId, Owner, StateConfig, StorageError,
    files::Files,
    limits::{CHECKPOINT_SPARE_BYTES, RECEIVE_SYNC_BYTES},
    state::{
        CheckpointRow, HISTORY, Identity, META, PAGES, create, guarded, meta, open_database,
        put_identity, put_meta, write,
    },
};

/// Where a snapshot is built.
pub(crate) const INCOMING: &str = "state.incoming";
const PROGRESS: &str = "incoming";
const HEADER: &str = "incoming header";

/// What a receiver made of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The frame to send next. After the header of an interrupted transfer this may be far ahead.
    pub next: u64,
    /// Whether everything has arrived, which may be so right after the header; then
    /// [`Receiver::finish`].
    pub complete: bool,
}

/// A snapshot that has arrived whole; [`crate::State::replace`] puts it in place.
#[derive(Debug)]
pub struct Received {
    /// What it is of.
    pub header: Header,
}

/// Receives one snapshot into a file of its own.
///
/// Dropping it keeps what has arrived, for a receiver opened later.
#[derive(Debug)]
pub struct Receiver {
    files: Arc<dyn Files>,
    config: StateConfig,
    identity: Identity,
    /// None only while the file is made anew.
    database: Option<Database>,
    stream: Stream,
    pending: Vec<SealedRow>,
    pending_bytes: usize,
}

impl Receiver {
    /// Opens what an interrupted transfer left, or starts with nothing.
    ///
    /// # Errors
    ///
    /// [`StorageError`]
    pub fn open(
        files: Arc<dyn Files>,
        config: StateConfig,
        owner: &Owner,
        instance: InstanceId,
    ) -> Result<Self, StorageError> {
        owner.check()?;
        let identity = Identity { owner: owner.clone(), instance };
        let mut receiver = Self {
            files,
            config,
            identity,
            database: None,
            stream: Stream::default(),
            pending: Vec::new(),
            pending_bytes: 0,
        };
        match receiver.reopen() {
            Ok(true) => {}
            Err(error @ StorageError::Io { .. }) => return Err(error),
            // What a crash, the disk or another member left here is only worth a new transfer.
            Ok(false) | Err(_) => receiver.start_over()?,
        }
        Ok(receiver)
    }

    /// The frame to send next, or 0 if nothing has arrived. What arrived since the last sync is
    /// asked for again by a receiver that is opened later.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.stream.progress.next
    }

    /// What is being received, once its header has arrived.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.stream.header.as_ref()
    }

    /// Takes one frame. A header that is not that of the interrupted transfer starts over.
    ///
    /// # Errors
    ///
    /// [`Refused`] is the sender's fault and changes nothing; the same receiver may go on with
    /// another frame. A [`StorageError`] of [`StorageError::NoSpace`] changes nothing either. Any
    /// other ends this receiver; the state in place is not touched.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<Accepted, ReceiveError> {
        if frame::number(bytes)? == 0 {
            let mut other = Stream::default();
            other.accept(bytes)?;
            if other.progress.stream == self.stream.progress.stream {
                return Ok(self.accepted());
            }
            self.check_header(other.header.as_ref())?;
            self.start_over()?;
            self.stream = other;
            self.sync()?;
            return Ok(self.accepted());
        }
        match self.stream.accept(bytes)? {
            Step::Header => {}
            Step::Rows(rows) => {
                self.pending.extend(rows);
                self.pending_bytes += bytes.len();
                if self.pending_bytes >= RECEIVE_SYNC_BYTES && !self.stream.is_inside_row() {
                    self.sync()?;
                }
            }
            Step::Complete => self.sync()?,
        }
        Ok(self.accepted())
    }

    /// Completes the file, to be put in place by [`crate::State::replace`].
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`] if not everything has arrived, or any other from the disk.
    pub fn finish(self) -> Result<Received, StorageError> {
        let header = self.stream.header.clone().unwrap_or_default();
        let owner = self.identity.owner.clone();
        self.finish_as(&owner, |_, row| Ok(row))?;
        Ok(Received { header })
    }

    /// As [`Receiver::finish`], but the state will be `owner`'s, and as `edit` changes it.
    pub(super) fn finish_as(
        mut self,
        owner: &Owner,
        edit: impl FnOnce(&WriteTransaction, CheckpointRow) -> Result<CheckpointRow, StorageError>,
    ) -> Result<(), StorageError> {
        let (true, Some(header)) = (self.stream.progress.complete, self.stream.header.take())
        else {
            return Err(StorageError::Order("the snapshot has not arrived whole".into()));
        };
        let identity = Identity { owner: owner.clone(), instance: self.identity.instance };
        self.close(header, &identity, edit).inspect_err(|_| self.give_up())
    }

    fn close(
        &mut self,
        header: Header,
        identity: &Identity,
        edit: impl FnOnce(&WriteTransaction, CheckpointRow) -> Result<CheckpointRow, StorageError>,
    ) -> Result<(), StorageError> {
        let Header { applied, compacted, totals, .. } = header;
        write(self.database()?, |txn| {
            let row = edit(txn, CheckpointRow { applied, compacted, totals })?;
            put_meta(txn, CheckpointRow::KEY, &row.encode())?;
            put_identity(txn, identity)?;
            let mut table = txn.open_table(META)?;
            table.remove(PROGRESS)?;
            table.remove(HEADER)?;
            Ok(())
        })?;
        // Closing writes; the rename must come after.
        self.database = None;
        let file = self.files.open(INCOMING).map_err(StorageError::io(INCOMING, "open"))?;
        file.sync_data().map_err(StorageError::io(INCOMING, "sync"))
    }

    /// Digest of all that has arrived.
    pub(super) fn chain(&self) -> Chain {
        self.stream.progress.chain
    }

    fn accepted(&self) -> Accepted {
        let Progress { next, complete, .. } = self.stream.progress;
        Accepted { next, complete }
    }

    fn database(&self) -> Result<&Database, StorageError> {
        self.database.as_ref().ok_or(StorageError::Stopped)
    }

    fn check_header(&self, header: Option<&Header>) -> Result<(), ReceiveError> {
        let header = header.ok_or(Refused::Malformed("no header"))?;
        if header.ring != self.identity.owner.ring {
            return Err(Refused::Ring.into());
        }
        let free_bytes = self.files.free_bytes().map_err(StorageError::io(INCOMING, "space"))?;
        let bytes = header.totals.bytes;
        let needed_bytes = bytes.saturating_add(bytes / 2).saturating_add(CHECKPOINT_SPARE_BYTES);
        if free_bytes < needed_bytes {
            return Err(StorageError::NoSpace { needed_bytes, free_bytes }.into());
        }
        Ok(())
    }

    /// Continues an interrupted transfer; says whether there was one.
    fn reopen(&mut self) -> Result<bool, StorageError> {
        let names = self.files.list().map_err(StorageError::io("the data directory", "list"))?;
        if !names.iter().any(|name| name == INCOMING) {
            return Ok(false);
        }
        let database = open_database(&*self.files, INCOMING, self.config.cache_bytes)?;
        let read = || -> Result<_, StorageError> {
            crate::state::check_identity(&database, &self.identity)?;
            let table = database.begin_read()?.open_table(META)?;
            Ok((meta(&table, HEADER)?, meta(&table, PROGRESS)?))
        };
        let (Some(header), Some(progress)) = guarded(read)? else { return Ok(false) };
        let (Ok(header), Some(progress)) = (Header::decode(&header), Progress::decode(&progress))
        else {
            return Ok(false);
        };
        self.stream = Stream::resume(header, progress);
        self.database = Some(database);
        Ok(true)
    }

    fn start_over(&mut self) -> Result<(), StorageError> {
        self.database = None;
        self.stream = Stream::default();
        (self.pending, self.pending_bytes) = (Vec::new(), 0);
        match self.files.remove(INCOMING) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::io(INCOMING, "remove")(error));
            }
            _ => {}
        }
        let database = create(&*self.files, INCOMING, self.config.cache_bytes)?;
        write(&database, |txn| put_identity(txn, &self.identity))?;
        self.files.sync_dir().map_err(StorageError::io(INCOMING, "sync the directory"))?;
        self.database = Some(database);
        Ok(())
    }

    /// Stores the rows that have arrived, with the progress that includes them.
    fn sync(&mut self) -> Result<(), StorageError> {
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let (progress, header) = (self.stream.progress.encode(), self.stream.header.as_ref());
        let header = header.map(Header::encode).unwrap_or_default();
        let stored = write(self.database()?, |txn| {
            for row in rows {
                match row {
                    SealedRow::Page(name, row) => {
                        txn.open_table(PAGES)?.insert(name.as_str(), row.as_slice())?;
                    }
                    SealedRow::Chunk(key, row) => {
                        txn.open_table(HISTORY)?.insert(key, row.as_slice())?;
                    }
                }
            }
            put_meta(txn, PROGRESS, &progress)?;
            put_meta(txn, HEADER, &header)
        });
        stored.inspect_err(|_| self.give_up())
    }

    /// After a failed write or sync: what can be read here may not be on disk, and a later sync would
    /// not tell. So nothing of it may be taken over by a receiver that is opened later.
    fn give_up(&mut self) {
        self.database = None;
        // If even this fails, the disk is gone, and the state in place has not been touched.
        let _ = self.files.remove(INCOMING);
    }
}
