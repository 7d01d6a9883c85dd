//! Spool file: temporary disk space on the disk of the cache, released with its last descriptor.
//!
//! The file has no name, so the kernel removes it even after a crash. It is not found again, counted or shared.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BlockCache, CacheError};

impl BlockCache {
    /// Opens a new file without a name, for reading and writing.
    pub fn spool(&self) -> Result<File, CacheError> {
        self.with_descriptors(|| self.spool_file())
    }

    fn spool_file(&self) -> Result<File, CacheError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let directory = self.root().join("tmp");
        if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(&directory) {
            return Ok(file);
        }
        // For file systems without O_TMPFILE.
        let path = self.temporary();
        let file =
            options.create_new(true).open(&path).map_err(|error| CacheError::io("create", &path, error))?;
        std::fs::remove_file(&path).map_err(|error| CacheError::io("remove", &path, error))?;
        Ok(file)
    }

    /// A spool for bytes that are too many for memory.
    pub fn spooled(&self) -> Result<SpooledBytes, CacheError> {
        Ok(SpooledBytes { file: self.spool()?, len: AtomicU64::new(0) })
    }
}

/// Bytes in a file without a name, which are appended and read again.
#[derive(Debug)]
pub struct SpooledBytes {
    file: File,
    len: AtomicU64,
}

impl SpooledBytes {
    /// Appends `bytes`, and returns the offset of the first.
    pub fn append(&self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.len.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(bytes, at)?;
        Ok(at)
    }

    /// Fills `into` with the bytes from `offset` on.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn spool_file_has_no_name_to_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlockCache::open(dir.path()).unwrap();
        let mut file = cache.spool().unwrap();
        file.write_all(b"bytes").unwrap();
        file.rewind().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "bytes");
        let spooled = cache.spooled().unwrap();
        for part in [&b"some"[..], b" bytes"] {
            spooled.append(part).unwrap();
        }
        let mut part = [0; 5];
        spooled.read_at(3, &mut part).unwrap();
        assert_eq!((&part, spooled.len()), (b"e byt", 10));
        assert!(spooled.read_at(6, &mut part).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("v1/tmp")).unwrap().count(), 0);
    }
}
