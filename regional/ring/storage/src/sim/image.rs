//! The image of one simulated file: the content that readers see, the durable content, and every
//! unsynced version of a sector.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    SECTOR_BYTES,
    faults::{Chance, Survival},
};

type Sector = Box<[u8]>;

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// By sector, the writes since the last sync, oldest first: the disk may make any of them
    /// durable.
    pending: BTreeMap<usize, Vec<Sector>>,
    /// The sectors that have been durable once.
    written: BTreeSet<usize>,
    /// Readers of a removed file go on until they close it.
    pub(super) handles: usize,
}

impl Image {
    pub(super) fn live(&self) -> &[u8] {
        &self.live
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = self.live.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).expect("simulated files are small");
        let end = start + bytes.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[start..end].copy_from_slice(bytes);
        for sector in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let content = sector_of(&self.live, sector).into();
            self.pending.entry(sector).or_default().push(content);
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).expect("simulated files are small");
        self.live.resize(bytes, 0);
        self.pending.retain(|sector, _| sector * SECTOR_BYTES < bytes);
        self.written.retain(|sector| sector * SECTOR_BYTES < bytes);
    }

    pub(super) fn sync(&mut self) {
        // Copying the whole file at every sync would make large files too slow.
        self.durable.resize(self.live.len(), 0);
        for sector in std::mem::take(&mut self.pending).into_keys() {
            let content = sector_of(&self.live, sector);
            let start = sector * SECTOR_BYTES;
            self.durable[start..start + content.len()].copy_from_slice(content);
            self.written.insert(sector);
        }
    }

    /// A sync during which the file system turns read-only: sectors that were never written, and the
    /// length, are lost; the others are durable.
    pub(super) fn sync_what_was_written(&mut self) {
        let (live, written) = (&self.live, &self.written);
        for sector in std::mem::take(&mut self.pending).into_keys().filter(|s| written.contains(s))
        {
            let start = sector * SECTOR_BYTES;
            let content = sector_of(live, sector);
            let end = self.durable.len().min(start + content.len());
            if let Some(room) = self.durable.get_mut(start..end) {
                room.copy_from_slice(&content[..end - start]);
            }
        }
    }

    /// Some sectors become durable; the others are clean as far as the kernel knows.
    pub(super) fn fail_sync(&mut self, chance: &mut Chance) {
        self.settle(chance, Survival::Some(128));
    }

    pub(super) fn crash(&mut self, chance: &mut Chance, survival: Survival) {
        self.settle(chance, survival);
        self.live = self.durable.clone();
        self.handles = 0;
    }

    fn settle(&mut self, chance: &mut Chance, survival: Survival) {
        if self.durable.len() != self.live.len() && chance.keeps(survival) {
            self.durable.resize(self.live.len(), 0);
        }
        for (sector, versions) in std::mem::take(&mut self.pending) {
            if !chance.keeps(survival) {
                continue;
            }
            // The last version is the one that readers saw.
            let version = match survival {
                Survival::All => versions.last(),
                _ => versions.get(chance.below(versions.len())),
            };
            let start = sector * SECTOR_BYTES;
            if let (Some(content), Some(rest)) = (version, self.durable.get_mut(start..)) {
                let bytes = content.len().min(rest.len());
                rest[..bytes].copy_from_slice(&content[..bytes]);
            }
        }
    }

    pub(super) fn rot(&mut self, offset: u64, mask: u8) {
        let offset = usize::try_from(offset).expect("simulated files are small");
        self.live[offset] ^= mask;
        if let Some(byte) = self.durable.get_mut(offset) {
            *byte ^= mask;
        }
    }
}

fn sector_of(content: &[u8], sector: usize) -> &[u8] {
    let start = sector * SECTOR_BYTES;
    &content[start..content.len().min(start + SECTOR_BYTES)]
}
