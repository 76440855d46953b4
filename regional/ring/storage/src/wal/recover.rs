//! Recovers the log when a member starts: reads all segments, and tells interrupted writes from
//! damage.
//!
//! Every acknowledged byte is read and compared with its checksum. An unreadable group is either
//! the tail of an interrupted write, which was never acknowledged, or damage; [`replay`] tells them
//! apart.

use std::{fmt::Display, sync::Arc};

use super::{
    Recovered, Wal, WalConfig,
    record::{Entries, Item, Meta},
    rotate::{self, Segment, Spare},
    segment::{
        Group, HEADER_BYTES, Header, Role, UNFINISHED, group_at, group_behind, items, role,
        segment_name,
    },
};
use crate::{
    InstanceId, Owner, Reserve, StorageError,
    files::{self, File, Files},
    limits::{SPARES_MAX, ZERO_BYTES},
};

/// The bytes cleared after the last group: an interrupted write, or an older life of the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// The end of the log; all bytes after it are zero now.
    pub offset: u64,
}

/// The sum of the segments read so far.
#[derive(Default)]
struct Replay {
    meta: Meta,
    entries: Entries,
    segments: Vec<Segment>,
    /// Sequence number of the next group.
    sequence: u64,
    /// The end of the log when its oldest segment began.
    base: Option<u64>,
    sealed: bool,
    instance: Option<InstanceId>,
}

/// Offsets of the last readable group in a segment.
struct Offsets {
    last: usize,
    end: usize,
}

/// The end of the last segment.
struct End {
    header: Header,
    offset: usize,
    cut: Option<Cut>,
}

pub(super) fn open(
    files: Arc<dyn Files>,
    reserve: Arc<Reserve>,
    config: WalConfig,
    owner: &Owner,
    fresh: InstanceId,
) -> Result<(Wal, Recovered), StorageError> {
    let (generations, spares) = survey(&*files, config)?;
    let Some(last) = generations.last().copied() else {
        return create(files, reserve, config, owner, fresh);
    };
    let (replay, end) = replay(&*files, &generations, owner)?;
    let End { header, offset, cut } = end;
    replay.check_holes(&header)?;
    let name = segment_name(last);
    let active = files.open(&name).map_err(StorageError::io(&name, "open"))?;
    let recovered = Recovered {
        instance: header.instance,
        created: false,
        vote: replay.meta.vote.clone(),
        committed: replay.meta.committed.clone(),
        purged: replay.meta.purged.clone(),
        entries: replay.entries.into_vec(),
        cut,
    };
    let mut wal = Wal {
        files,
        reserve,
        config,
        meta: replay.meta,
        segments: replay.segments,
        spares,
        active,
        header,
        offset: offset as u64,
        sequence: replay.sequence,
        sealed: replay.sealed,
        failed: false,
        buffer: Vec::new(),
    };
    wal.recycle()?;
    Ok((wal, recovered))
}

/// Reads all segments, and clears the bytes after the last group.
fn replay(
    files: &dyn Files,
    generations: &[u64],
    owner: &Owner,
) -> Result<(Replay, End), StorageError> {
    let mut replay = Replay::default();
    let mut end: Option<End> = None;
    for (position, generation) in generations.iter().enumerate() {
        let name = segment_name(*generation);
        let file = files.open(&name).map_err(StorageError::io(&name, "open"))?;
        let content = read(&*file, &name)?;
        let header = Header::decode(&name, &content)?;
        replay.check_header(&name, &header, *generation, owner, &content)?;
        if let Some(End { header: before, offset, .. }) = &end
            && header.first_sequence != replay.sequence
        {
            // The next segment was created after this one was synced (SEGMENT-1).
            return Err(unreadable(&segment_name(before.generation), *offset));
        }
        replay.sequence = header.first_sequence;
        let offset = replay.segment(&name, &content, &header)?;
        let mut cut = None;
        if position + 1 == generations.len() {
            if group_behind(&content, offset.end, &header).is_some() {
                return Err(unreadable(&name, offset.end));
            }
            cut = clear(&*file, &name, &content, offset.end)?;
            // The groups read may be in memory only, and are about to be treated as durable. For
            // the last group a sync is not enough: if the group's own sync failed and only the
            // process died, the kernel believes it written. So write it again.
            let last = &content[offset.last..offset.end];
            file.write_at(offset.last as u64, last).map_err(StorageError::io(&name, "write"))?;
            file.sync_twice().map_err(StorageError::io(&name, "sync"))?;
        }
        end = Some(End { header, offset: offset.end, cut });
    }
    Ok((replay, end.expect("there is a last segment")))
}

/// The generations of the segments in use, and the spares. Removes unfinished files.
fn survey(files: &dyn Files, config: WalConfig) -> Result<(Vec<u64>, Vec<Spare>), StorageError> {
    // A killed process may have left a name in memory only; sync it before entries go there.
    files.sync_dir().map_err(StorageError::io("the data directory", "sync"))?;
    let (mut generations, mut spares) = (Vec::new(), Vec::new());
    let mut garbage = Vec::new();
    for name in files.list().map_err(StorageError::io("the data directory", "list"))? {
        match role(&name) {
            Some(Role::Segment(generation)) => generations.push(generation),
            Some(Role::Spare(_)) => {
                let file = files.open(&name).map_err(StorageError::io(&name, "open"))?;
                let bytes = file.len().map_err(StorageError::io(&name, "read the size of"))?;
                if bytes == config.segment_bytes && spares.len() < SPARES_MAX {
                    spares.push(Spare { name, bytes, synced_to: 0 });
                } else {
                    garbage.push(name);
                }
            }
            Some(Role::Unfinished) => garbage.push(name),
            None => {}
        }
    }
    for name in &garbage {
        files.remove(name).map_err(StorageError::io(name, "remove"))?;
    }
    generations.sort_unstable();
    if let Some(gap) = generations.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        let missing = segment_name(gap[0] + 1);
        return Err(StorageError::damaged(&missing, "this segment of the log is missing"));
    }
    Ok((generations, spares))
}

fn create(
    files: Arc<dyn Files>,
    reserve: Arc<Reserve>,
    config: WalConfig,
    owner: &Owner,
    fresh: InstanceId,
) -> Result<(Wal, Recovered), StorageError> {
    let header = Header {
        generation: 1,
        first_sequence: 1,
        segment_bytes: config.segment_bytes,
        owner: owner.clone(),
        instance: fresh,
    };
    let name = segment_name(header.generation);
    let staged = name.clone() + UNFINISHED;
    let active = files.create(&staged).map_err(StorageError::io(&staged, "create"))?;
    active
        .allocate(config.segment_bytes)
        .map_err(StorageError::io(&staged, "allocate space for"))?;
    let bytes = config.segment_bytes;
    let mut wal = Wal {
        files,
        reserve,
        config,
        meta: Meta::default(),
        segments: vec![Segment {
            generation: header.generation,
            bytes,
            max_index: None,
            synced_to: 0,
        }],
        spares: Vec::new(),
        active,
        sequence: header.first_sequence + 1,
        header,
        offset: 0,
        sealed: true,
        failed: false,
        buffer: Vec::new(),
    };
    let head = wal.encode_head(&wal.header);
    wal.active.write_at(0, &head).map_err(StorageError::io(&staged, "write"))?;
    wal.active.sync_data().map_err(StorageError::io(&staged, "sync"))?;
    wal.files.rename(&staged, &name).map_err(StorageError::io(&staged, "rename"))?;
    wal.files.sync_dir().map_err(StorageError::io(&name, "sync the directory of"))?;
    wal.offset = head.len() as u64;
    let recovered = Recovered { instance: fresh, created: true, ..Recovered::default() };
    Ok((wal, recovered))
}

fn read(file: &dyn File, name: &str) -> Result<Vec<u8>, StorageError> {
    let bytes = file.len().map_err(StorageError::io(name, "read the size of"))?;
    let Ok(bytes) = u32::try_from(bytes) else {
        return Err(StorageError::damaged(name, format!("{bytes} bytes are no segment")));
    };
    let mut content = vec![0; bytes as usize];
    file.read_at(0, &mut content).map_err(StorageError::io(name, "read"))?;
    Ok(content)
}

/// Clears the bytes after `offset`, so that recovery never takes them for a later group.
fn clear(
    file: &dyn File,
    name: &str,
    content: &[u8],
    offset: usize,
) -> Result<Option<Cut>, StorageError> {
    let zeros = vec![0; ZERO_BYTES];
    let mut found = None;
    let mut at = offset;
    for block in content[offset..].chunks(ZERO_BYTES) {
        if block != &zeros[..block.len()] {
            files::zero(file, at as u64, (at + block.len()) as u64)
                .map_err(StorageError::io(name, "clear the end of"))?;
            found = Some(Cut { file: name.to_owned(), offset: offset as u64 });
        }
        at += block.len();
    }
    Ok(found)
}

fn unreadable(name: &str, offset: usize) -> StorageError {
    damaged_at(name, offset, "this group cannot be read, and a later group follows it")
}

fn damaged_at(name: &str, offset: usize, what: impl Display) -> StorageError {
    StorageError::damaged(name, format!("byte {offset}: {what}"))
}

impl Replay {
    fn check_header(
        &mut self,
        name: &str,
        header: &Header,
        generation: u64,
        owner: &Owner,
        content: &[u8],
    ) -> Result<(), StorageError> {
        // SEGMENT-3
        if header.owner != *owner {
            return Err(StorageError::foreign(name, header.owner.clone(), owner));
        }
        if *self.instance.get_or_insert(header.instance) != header.instance {
            return Err(StorageError::damaged(
                name,
                "its instance id differs from that of the segment before it",
            ));
        }
        if header.generation != generation || header.segment_bytes != content.len() as u64 {
            return Err(StorageError::damaged(name, "the header is of another segment"));
        }
        Ok(())
    }

    /// Replays the groups of a segment up to the first unreadable one.
    fn segment(
        &mut self,
        name: &str,
        content: &[u8],
        header: &Header,
    ) -> Result<Offsets, StorageError> {
        let (generation, bytes) = (header.generation, header.segment_bytes);
        let is_first = self.segments.is_empty();
        self.segments.push(Segment { generation, bytes, max_index: None, synced_to: 0 });
        let (mut offset, mut last) = (HEADER_BYTES, HEADER_BYTES);
        while let Some(group) = group_at(content, offset, header) {
            if group.sequence != self.sequence {
                let what = format!("this is group {}, expected {}", group.sequence, self.sequence);
                return Err(damaged_at(name, offset, what));
            }
            self.group(&group, is_first && offset == HEADER_BYTES)
                .map_err(|what| damaged_at(name, offset, what))?;
            self.sequence += 1;
            (last, offset) = (offset, group.end);
        }
        if offset == HEADER_BYTES {
            // The head was synced before the segment got its name.
            return Err(damaged_at(name, offset, "the head cannot be read"));
        }
        Ok(Offsets { last, end: offset })
    }

    fn group(&mut self, group: &Group<'_>, is_base: bool) -> Result<(), String> {
        self.sealed = false;
        for item in items(group.body)? {
            match item {
                Item::Record(record) => {
                    let follows = self.meta.ends.follow(&record).map_err(|e| e.to_string())?;
                    if follows {
                        self.meta.apply(&record);
                        rotate::follow(&mut self.segments, &record);
                        self.entries.apply(record);
                    }
                }
                Item::Last(last) if is_base => {
                    self.base = last;
                    self.meta.ends.last = last;
                    self.sealed = true;
                }
                Item::Last(last) if last != self.meta.ends.last => {
                    return Err(format!("the log ends at {:?} here", self.meta.ends.last));
                }
                // The head was synced before the segment became visible.
                Item::Last(_) | Item::Seal => self.sealed = true,
            }
        }
        Ok(())
    }

    /// SEGMENT-2
    fn check_holes(&self, header: &Header) -> Result<(), StorageError> {
        let ends = self.meta.ends;
        let whole = match (ends.purged, self.entries.first()) {
            (Some(purged), Some(first)) => purged.checked_add(1) == Some(first),
            (Some(purged), None) => ends.last == Some(purged),
            (None, _) => self.base.is_none(),
        };
        if whole {
            return Ok(());
        }
        let oldest = self.segments.first().map_or(header.generation, |first| first.generation);
        let what = match ends.purged {
            Some(purged) => format!("the log does not begin after {purged}, its last purged entry"),
            None => "the log begins with a later segment, and none of it was purged".to_owned(),
        };
        Err(StorageError::damaged(&segment_name(oldest), what))
    }
}
