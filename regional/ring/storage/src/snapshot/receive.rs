//! Receives another member's state into a file beside this member's own state, and completes it for
//! [`crate::State::replace`].

use std::{io, sync::Arc};

use redb::Database;

use super::{
    Header, ReceiveError, Refused,
    frame::{self, Chain},
    stream::{Progress, Step, Stream, VerifiedRow},
};
use crate::{
    InstanceId, Owner, StateConfig, StorageError,
    files::Files,
    limits::{CHECKPOINT_SPARE_BYTES, RECEIVE_SYNC_BYTES},
    state::{
        CheckpointRow, HISTORY, Identity, META, PAGES, check_identity, create, meta, open_database,
        put_identity, put_meta, read, write,
    },
};

/// The file that a snapshot is received into.
pub(crate) const INCOMING: &str = "state.incoming";
const PROGRESS: &str = "incoming";
const HEADER: &str = "incoming header";

/// The result of accepting a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The frame to send next. After the header of an interrupted transfer it may be far ahead.
    pub next: u64,
    /// Whether the whole snapshot has arrived; then call [`Receiver::finish`]. Can be true right
    /// after the header of an interrupted transfer.
    pub complete: bool,
}

/// A snapshot that has arrived completely; [`crate::State::replace`] puts it in place.
#[derive(Debug)]
pub struct Received {
    /// The description of the snapshot.
    pub header: Header,
}

/// Receives one snapshot into a file of its own.
///
/// Dropping a receiver keeps the synced rows for a receiver that is opened later.
#[derive(Debug)]
pub struct Receiver {
    files: Arc<dyn Files>,
    config: StateConfig,
    identity: Identity,
    /// `None` only while the file is created anew.
    database: Option<Database>,
    stream: Stream,
    pending: Vec<VerifiedRow>,
    pending_bytes: usize,
}

impl Receiver {
    /// Continues an interrupted transfer, or starts an empty one.
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
            // The file is damaged or of another instance: only a new transfer helps.
            Ok(false) | Err(_) => receiver.start_over()?,
        }
        Ok(receiver)
    }

    /// The frame to send next, or 0 if nothing has arrived. A receiver that is opened later asks
    /// again for the frames since the last sync.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.stream.progress.next
    }

    /// The description of the snapshot, once its header has arrived.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.stream.header.as_ref()
    }

    /// Accepts one frame. The header of another snapshot than the interrupted one starts over.
    ///
    /// # Errors
    ///
    /// [`Refused`] is the sender's fault and changes nothing; the receiver may go on with another
    /// frame. [`StorageError::NoSpace`] changes nothing either. Any other [`StorageError`] ends
    /// this receiver; the state in place is untouched.
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

    /// Completes the file, so that [`crate::State::replace`] can put it in place.
    ///
    /// # Errors
    ///
    /// [`StorageError::Order`] if frames are missing, or any other error of the disk.
    pub fn finish(self) -> Result<Received, StorageError> {
        let header = self.stream.header.clone().unwrap_or_default();
        let owner = self.identity.owner.clone();
        self.finish_as(&owner)?;
        Ok(Received { header })
    }

    /// Completes the file as [`Receiver::finish`] does, with `owner` as its owner.
    pub(super) fn finish_as(mut self, owner: &Owner) -> Result<(), StorageError> {
        let (true, Some(header)) = (self.stream.progress.complete, self.stream.header.take())
        else {
            return Err(StorageError::Order("the snapshot is incomplete".into()));
        };
        let identity = Identity { owner: owner.clone(), instance: self.identity.instance };
        self.close(header, &identity).inspect_err(|_| self.give_up())
    }

    fn close(&mut self, header: Header, identity: &Identity) -> Result<(), StorageError> {
        let Header { applied, compacted, totals, .. } = header;
        let row = CheckpointRow { applied, compacted, totals };
        write(INCOMING, self.database()?, |txn| {
            put_meta(txn, CheckpointRow::KEY, &row.encode())?;
            put_identity(txn, identity)?;
            let mut table = txn.open_table(META)?;
            table.remove(PROGRESS)?;
            table.remove(HEADER)?;
            Ok(())
        })?;
        // Closing the database writes to the file, so it must come before the rename.
        self.database = None;
        let file = self.files.open(INCOMING).map_err(StorageError::io(INCOMING, "open"))?;
        file.sync_data().map_err(StorageError::io(INCOMING, "sync"))
    }

    /// The digest of all frames so far.
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
        let free_bytes = self
            .files
            .free_bytes()
            .map_err(StorageError::io(INCOMING, "read the free disk space for"))?;
        let bytes = header.totals.bytes;
        let needed_bytes = bytes.saturating_add(bytes / 2).saturating_add(CHECKPOINT_SPARE_BYTES);
        if free_bytes < needed_bytes {
            return Err(StorageError::NoSpace { needed_bytes, free_bytes }.into());
        }
        Ok(())
    }

    /// Continues an interrupted transfer; returns whether there was one.
    fn reopen(&mut self) -> Result<bool, StorageError> {
        let names = self.files.list().map_err(StorageError::io("the data directory", "list"))?;
        if !names.iter().any(|name| name == INCOMING) {
            return Ok(false);
        }
        let database = open_database(&*self.files, INCOMING, self.config.cache_bytes)?;
        let stored = read(INCOMING, &database, |txn| {
            check_identity(txn, &self.identity)?;
            let table = txn.open_table(META)?;
            Ok((meta(&table, HEADER)?, meta(&table, PROGRESS)?))
        })?;
        let (Some(header), Some(progress)) = stored else { return Ok(false) };
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
        write(INCOMING, &database, |txn| put_identity(txn, &self.identity))?;
        self.files.sync_dir().map_err(StorageError::io(INCOMING, "sync the directory of"))?;
        self.database = Some(database);
        Ok(())
    }

    /// Stores the received rows, and the progress that includes them, in one transaction.
    fn sync(&mut self) -> Result<(), StorageError> {
        let rows = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let (progress, header) = (self.stream.progress.encode(), self.stream.header.as_ref());
        let header = header.map(Header::encode).unwrap_or_default();
        let stored = write(INCOMING, self.database()?, |txn| {
            for row in rows {
                match row {
                    VerifiedRow::Page(name, row) => {
                        txn.open_table(PAGES)?.insert(name.as_str(), row.as_slice())?;
                    }
                    VerifiedRow::Chunk(key, row) => {
                        txn.open_table(HISTORY)?.insert(key, row.as_slice())?;
                    }
                }
            }
            put_meta(txn, PROGRESS, &progress)?;
            put_meta(txn, HEADER, &header)
        });
        stored.inspect_err(|_| self.give_up())
    }

    /// Ends this receiver after a failed write or sync: readable content may not be on disk, and a
    /// later sync would not report it. So the file is removed, and a receiver that is opened later
    /// starts over.
    fn give_up(&mut self) {
        self.database = None;
        // If the removal fails too, the disk has failed; the state in place is untouched.
        let _ = self.files.remove(INCOMING);
    }
}
