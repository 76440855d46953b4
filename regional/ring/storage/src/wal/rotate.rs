//! Moves the log from segment to segment, and recycles the oldest segments.
//!
//! A new segment gets its name once it is complete: header, and the log's state but for the
//! entries. So the oldest segment can go as soon as its entries are purged, and a crash at any
//! point leaves either the old last segment or the new one.

use std::{io, sync::Arc};

use super::{
    Wal,
    record::Record,
    segment::{HEADER_BYTES, Header, UNFINISHED, begin_group, end_group, segment_name, spare_name},
};
use crate::{
    StorageError,
    files::{self, File, Files},
    limits::SPARES_MAX,
};

/// A segment for one large commit is a multiple of this.
const SEGMENT_STEP_BYTES: u64 = 64 * 1024;

/// A segment in use.
#[derive(Debug)]
pub(super) struct Segment {
    pub generation: u64,
    pub bytes: u64,
    /// The highest index in the segment that is still in the log.
    pub max_index: Option<u64>,
    /// All bytes before this offset were written and synced (WAL-5), as far as this process knows.
    pub synced_to: u64,
}

/// A spare segment, ready to be reused.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// As [`Segment::synced_to`].
    pub(super) synced_to: u64,
}

/// A segment that is about to be the active one.
struct Next {
    file: Arc<dyn File>,
    header: Header,
    /// The end of its head.
    offset: u64,
    synced_to: u64,
}

fn create(files: &dyn Files, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
    let file = files.create(name)?;
    file.allocate(bytes)?;
    Ok(file)
}

/// Removes a file that could not be completed, so that a full disk has no other effect.
fn undo(files: &dyn Files, name: &str, needed_bytes: u64, error: io::Error) -> StorageError {
    if !files::is_full(&error) {
        return StorageError::io(name, "prepare")(error);
    }
    match files.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            StorageError::io(name, "remove")(error)
        }
        _ => StorageError::NoSpace { needed_bytes, free_bytes: files.free_bytes().unwrap_or(0) },
    }
}

impl Wal {
    /// Begins another segment if a group of `bytes` does not fit the active one.
    pub(super) fn rotate_for(&mut self, bytes: u64) -> Result<(), StorageError> {
        let active = self.segments.last().expect("the log has a segment");
        if self.offset + bytes <= active.bytes {
            return Ok(());
        }
        let next = self.next_segment(bytes).inspect_err(|error| {
            // WAL-3, unless nothing has changed.
            self.failed = error.is_fatal();
        })?;
        let Next { file, header, offset, synced_to } = next;
        (self.active, self.header, self.offset) = (file, header, offset);
        self.sequence = self.header.first_sequence + 1;
        let (generation, bytes) = (self.header.generation, self.header.segment_bytes);
        self.segments.push(Segment { generation, bytes, max_index: None, synced_to });
        Ok(())
    }

    fn next_segment(&mut self, bytes: u64) -> Result<Next, StorageError> {
        let mut header = self.header.clone();
        header.generation += 1;
        header.first_sequence = self.sequence;
        header.segment_bytes = self.config.segment_bytes;
        let head = self.encode_head(&header);
        let needed = (head.len() as u64 + bytes).next_multiple_of(SEGMENT_STEP_BYTES);
        if needed > header.segment_bytes {
            if needed > u64::from(u32::MAX) {
                let bytes_max = u64::from(u32::MAX);
                return Err(StorageError::TooLarge { what: "commit", bytes, bytes_max });
            }
            header.segment_bytes = needed;
        }
        // The header holds the size, so encode it again.
        let head = self.encode_head(&header);
        let (staged, file, synced_to) = self.take_or_create(&header)?;
        let name = segment_name(header.generation);
        let done = file.write_at(0, &head).and_then(|()| file.sync_data());
        if let Err(error) = done {
            return Err(undo(&*self.files, &staged, header.segment_bytes, error));
        }
        self.files.rename(&staged, &name).map_err(StorageError::io(&staged, "rename"))?;
        self.files.sync_dir().map_err(StorageError::io(&name, "sync the directory of"))?;
        Ok(Next { file, header, offset: head.len() as u64, synced_to })
    }

    /// Header and first group of a segment.
    pub(super) fn encode_head(&self, header: &Header) -> Vec<u8> {
        let mut group = Vec::new();
        begin_group(&mut group);
        self.meta.head().iter().for_each(|item| item.encode(&mut group));
        end_group(&mut group, header, header.first_sequence, HEADER_BYTES as u64);
        [header.encode(), group].concat()
    }

    /// The file of the next segment, its present name, and [`Segment::synced_to`].
    fn take_or_create(
        &mut self,
        header: &Header,
    ) -> Result<(String, Arc<dyn File>, u64), StorageError> {
        let fits = |spare: &Spare| spare.bytes == header.segment_bytes;
        if let Some(position) = self.spares.iter().position(fits) {
            let spare = self.spares.remove(position);
            let file =
                self.files.open(&spare.name).map_err(StorageError::io(&spare.name, "open"))?;
            return Ok((spare.name, file, spare.synced_to));
        }
        let staged = segment_name(header.generation) + UNFINISHED;
        let made = || {
            create(&*self.files, &staged, header.segment_bytes)
                .map_err(|error| undo(&*self.files, &staged, header.segment_bytes, error))
        };
        match made() {
            Ok(file) => Ok((staged, file, 0)),
            Err(error) if error.is_full() && self.reserve.release()? => {
                made().map(|file| (staged.clone(), file, 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Updates the segments for `record`.
    pub(super) fn follow(&mut self, record: &Record) {
        follow(&mut self.segments, record);
    }

    /// Recycles the oldest segments whose entries are all purged.
    ///
    /// Each segment is renamed durably before the next one: segments vanish in their order, so that
    /// a truncation never goes before the entries it truncated, and a gap always means damage.
    pub(super) fn recycle(&mut self) -> Result<(), StorageError> {
        while self.segments.len() > 1 && self.segments[0].max_index <= self.meta.ends.purged {
            let segment = self.segments.remove(0);
            let name = segment_name(segment.generation);
            let same = self.spares.len() < SPARES_MAX && segment.bytes == self.config.segment_bytes;
            if same {
                let Segment { generation, bytes, synced_to, .. } = segment;
                let spare = Spare { name: spare_name(generation), bytes, synced_to };
                self.files.rename(&name, &spare.name).map_err(StorageError::io(&name, "rename"))?;
                self.spares.push(spare);
            } else {
                self.files.remove(&name).map_err(StorageError::io(&name, "remove"))?;
            }
            self.files.sync_dir().map_err(StorageError::io(&name, "sync the directory of"))?;
        }
        Ok(())
    }
}

/// Keeps `max_index` of each segment at or above the entries that it holds.
pub(super) fn follow(segments: &mut [Segment], record: &Record) {
    match record {
        Record::Append { index, .. } => {
            if let Some(active) = segments.last_mut() {
                active.max_index = Some(*index);
            }
        }
        Record::Truncate { from } => {
            let last = from.checked_sub(1);
            segments.iter_mut().for_each(|segment| segment.max_index = segment.max_index.min(last));
        }
        _ => {}
    }
}
