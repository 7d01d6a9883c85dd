//! Copy number: distinguishes a cached copy of content from earlier copies of it.
//!
//! An index that vouches for no block has its decoded stream named after the copy of the blob that it was decoded
//! from. A copy never changes a block, so the stream is right if the copy is. When the copy is removed, that name is
//! not looked up again.

use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::CacheError;
use super::sidecar::{SidecarFile, VerificationState, field, read_fully};

/// Offset in a sidecar; the first 16 bytes of its check follow the number.
const COPY_NUMBER_AT: u64 = 1536;

pub(super) type CopyNumber = [u8; 16];

impl SidecarFile {
    /// Drops all records: from now on this is another copy.
    pub(super) fn begin_anew(&self) -> io::Result<()> {
        self.drop_records()?;
        self.file.write_all_at(&[0; 32], COPY_NUMBER_AT)?;
        self.advance(VerificationState::Partial).map_err(io::Error::other).map(|_| ())
    }

    /// The number of this copy of the content, unique under all names that the content had or has. Made on first use;
    /// `None` where it cannot be written.
    pub(super) fn copy_number(&self) -> Option<CopyNumber> {
        let read = || {
            let mut bytes = [0; 32];
            let is_there = read_fully(&self.file, &mut bytes, COPY_NUMBER_AT)
                && self.check(&bytes[..16])[..16] == bytes[16..];
            is_there.then(|| field(&bytes, 0))
        };
        if let Some(known) = read() {
            return Some(known);
        }
        let made = self.with_status_lock(|| {
            if let Some(known) = read() {
                return Ok(known);
            }
            let number = self.new_number().map_err(|error| CacheError::io("stat", self.path(), error))?;
            let bytes = [&number[..], &self.check(&number)[..16]].concat();
            self.file
                .write_all_at(&bytes, COPY_NUMBER_AT)
                .map_err(|error| CacheError::io("write", self.path(), error))?;
            Ok(number)
        });
        made.ok()
    }

    fn new_number(&self) -> io::Result<CopyNumber> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let found = self.file.metadata()?;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&time.to_le_bytes());
        for part in
            [std::process::id().into(), MADE.fetch_add(1, Ordering::Relaxed), found.dev(), found.ino()]
        {
            hasher.update(&u64::to_le_bytes(part));
        }
        Ok(field(hasher.finalize().as_bytes(), 0))
    }
}
