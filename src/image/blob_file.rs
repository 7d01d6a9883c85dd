//! Open file of a stored blob: the readahead of the blob ends when the file is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cache::CachedFile;
use crate::io::{BoxFuture, ByteRange, ReadAt, ReadError, SharedReader, forward_reads};

/// A stored blob as one open file.
pub(super) struct BlobFile {
    bytes: SharedReader,
    blob: Arc<CachedFile>,
    /// Set by the first read: a look at the attributes has no readahead, and ends none of other files.
    was_read: AtomicBool,
}

impl BlobFile {
    pub(super) fn new(bytes: SharedReader, blob: Arc<CachedFile>) -> Self {
        Self { bytes, blob, was_read: AtomicBool::new(false) }
    }

    fn whole(&self) -> ByteRange {
        ByteRange::new(0, self.blob.size())
    }

    fn note_read(&self) {
        if !self.was_read.swap(true, Ordering::Relaxed) {
            // A reader that begins in the middle still reads this file alone.
            self.blob.stop_readahead_after(self.whole());
        }
    }
}

impl ReadAt for BlobFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.note_read();
        self.bytes.read_at(offset, buf)
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.note_read();
        self.bytes.read_ready(offset, buf)
    }

    forward_reads!(bytes: size, read_exactly, next_data, next_hole, learn_holes, verified, backing);
}

impl Drop for BlobFile {
    fn drop(&mut self) {
        if *self.was_read.get_mut() {
            self.blob.close_readahead(self.whole());
        }
    }
}
