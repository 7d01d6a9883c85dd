//! The data of blocks: a file of the cache, or bytes that lie on this machine and stay as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FallocateFlags, fallocate};

use super::sidecar::ContentKind;
use crate::io::LocalBytes;

/// The unit in which zeros are not written.
pub(super) const PAGE: usize = 4096;

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Where the data of blocks lies.
pub(super) enum BlockData {
    /// In a file of the cache.
    Own(File),
    /// In a file of this machine: nothing writes to it, and a block that is stored is a checksum only.
    Local(LocalBytes),
}

impl BlockData {
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            BlockData::Own(file) => file.read_exact_at(buf, offset),
            BlockData::Local(bytes) => bytes.read_exact_at(buf, offset),
        }
    }

    /// Whether the file is still the one that was opened, so that bytes just read belong to it.
    pub(super) fn is_unchanged(&self) -> bool {
        match self {
            // Only caches write to it, and note that.
            BlockData::Own(_) => true,
            BlockData::Local(bytes) => bytes.is_unchanged(),
        }
    }

    /// The file of the cache, if it is one.
    pub(super) fn own(&self) -> Option<&File> {
        match self {
            BlockData::Own(file) => Some(file),
            BlockData::Local(_) => None,
        }
    }

    /// Writes the data of a block at `start`. In a decoded stream pages of zeros become holes; a blob has none, because its
    /// file may be passed through to the kernel as whole.
    pub(super) fn write(&self, kind: ContentKind, start: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = self.own() else { return Ok(()) };
        if kind == ContentKind::Blob || !bytes.chunks(PAGE).any(is_zero) {
            return file.write_all_at(bytes, start);
        }
        // The last page is written even if it is taken away again: the file has to reach that far, and cutting it to a length
        // could take away what another process has just written behind.
        let last = (bytes.len() - 1) / PAGE * PAGE;
        let (body, end) = bytes.split_at(last);
        file.write_all_at(end, start + last as u64)?;
        let taken = if is_zero(end) { bytes.len() } else { last };
        // Old bytes may be damaged, or left over from an interrupted write: only a punched hole reads as zeros.
        if !self.punch(start, taken as u64) {
            return file.write_all_at(bytes, start);
        }
        for (page, bytes) in body.chunks(PAGE).enumerate().filter(|(_, bytes)| !is_zero(bytes)) {
            file.write_all_at(bytes, start + (page * PAGE) as u64)?;
        }
        Ok(())
    }

    /// Takes the bytes away; `false` where the file system cannot do that.
    pub(super) fn punch(&self, start: u64, len: u64) -> bool {
        let (Ok(start), Ok(len)) = (i64::try_from(start), i64::try_from(len)) else { return false };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.own().is_some_and(|file| fallocate(file, flags, start, len).is_ok())
    }

    /// Whether just these bytes are at `start`.
    pub(super) fn holds(&self, start: u64, bytes: &[u8]) -> bool {
        let mut there = vec![0; bytes.len()];
        self.read_exact_at(&mut there, start).is_ok() && there == bytes
    }

    /// Takes all bytes away.
    pub(super) fn cut(&self) -> io::Result<()> {
        self.own().map_or(Ok(()), |file| file.set_len(0))
    }
}
