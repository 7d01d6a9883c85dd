//! A file for what has to lie on a disk for a while: on the disk of the cache, and gone with whoever holds it.
//!
//! Nothing here is found again, counted or shared. The idea: the file has no name, so that the kernel removes it when the last
//! descriptor is closed, whatever becomes of the process.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use super::{Cache, CacheError};

impl Cache {
    /// Opens a new file without a name, for reading and writing.
    pub fn spool(&self) -> Result<File, CacheError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let directory = self.root().join("tmp");
        if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(&directory) {
            return Ok(file);
        }
        // Not every file system has files that never had a name.
        let path = self.temporary();
        let file =
            options.create_new(true).open(&path).map_err(|error| CacheError::io("create", &path, error))?;
        std::fs::remove_file(&path).map_err(|error| CacheError::io("remove", &path, error))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_spool_has_no_name_that_anybody_would_have_to_remove() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let mut file = cache.spool().unwrap();
        file.write_all(b"bytes").unwrap();
        file.rewind().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "bytes");
        assert_eq!(std::fs::read_dir(dir.path().join("v1/tmp")).unwrap().count(), 0);
    }
}
