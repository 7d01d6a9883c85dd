//! The data of blocks: a file of the cache, or bytes that lie on this machine and stay as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::io::LocalBytes;

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

    /// Whether what was just read is of the file that was opened.
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
}
