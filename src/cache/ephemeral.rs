//! Private cache: a directory of one process, removed when the process ends.
//!
//! The process holds a lock on its directory, so that a cleanup can distinguish a directory in use from one whose
//! owner was killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::CacheError;
use super::directory_walk::{UnreadablePolicy, each_entry};
use super::layout::{VERSION_DIR, check_owned, check_parent, make_dir};
use super::lock::try_alone;
use super::remove::occupied;

/// Directory in `v1`: on the same disk as the cache, and under its owner and mode.
pub(super) const DIRECTORY: &str = "private";

/// A directory that is removed with its content on drop.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl PrivateDir {
    /// Makes a private directory in the cache directory `dir`, which is made if missing.
    pub fn make(dir: &Path) -> Result<Self, CacheError> {
        let root = dir.join(VERSION_DIR);
        make_dir(dir)?;
        check_parent(dir)?;
        make_dir(&root)?;
        check_owned(&root)?;
        let parent = root.join(DIRECTORY);
        make_dir(&parent)?;
        // Keeps a cleanup away until the new directory is locked itself.
        let _making = lock_directory(&parent)?;
        let template = parent.join("XXXXXX");
        let path = nix::unistd::mkdtemp(OsStr::new(&template))
            .map_err(|errno| CacheError::io("make", &template, errno.into()))?;
        let lock = File::open(&path).map_err(|error| CacheError::io("open", &path, error))?;
        if try_alone(&lock, &path)? { Ok(Self { path, _lock: lock }) } else { Err(CacheError::Busy { path }) }
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // An interrupted fetch may still be making a file in it.
        for _ in 0..3 {
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %self.path.display(), "cannot remove the private cache");
                    return;
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// Removes a private directory of a dead process and returns the disk bytes freed; `None` when the process lives.
pub(super) fn remove_left(path: &Path) -> Result<Option<u64>, CacheError> {
    let fail = |action| move |error| CacheError::io(action, path, error);
    let parent = path.parent().unwrap_or(path);
    let making = lock_directory(parent)?;
    let lock = match File::open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        Err(error) => return Err(CacheError::io("open", path, error)),
    };
    if !try_alone(&lock, path)? {
        return Ok(None);
    }
    drop(making);
    let bytes = measure(path)?;
    fs::remove_dir_all(path).map_err(fail("remove"))?;
    Ok(Some(bytes))
}

/// Disk bytes of everything below `path`. The tree is ours and a few directories deep; links are not followed.
fn measure(path: &Path) -> Result<u64, CacheError> {
    let fail = |error| CacheError::io("list", path, error);
    let mut bytes = 0;
    each_entry(path, UnreadablePolicy::Fail, |entry| {
        let found = entry.metadata().map_err(fail)?;
        bytes += occupied(&found) + if found.is_dir() { measure(&entry.path())? } else { 0 };
        Ok(ControlFlow::<()>::Continue(()))
    })?;
    Ok(bytes)
}

/// Waits for the lock on a directory: it is held for an instant only.
fn lock_directory(path: &Path) -> Result<File, CacheError> {
    let file = File::open(path).map_err(|error| CacheError::io("open", path, error))?;
    file.lock().map_err(|error| CacheError::io("lock", path, error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_directory_ends_with_its_owner_and_gc_removes_orphans() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let private = PrivateDir::make(&cache).unwrap();
        let path = private.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        fs::create_dir(path.join("v1")).unwrap();
        fs::write(path.join("v1/x"), [1; 10_000]).unwrap();
        assert_eq!(remove_left(&path).unwrap(), None, "it is in use");
        assert!(path.exists());
        let left = cache.join("v1/private/left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("x"), [1; 10_000]).unwrap();
        assert!(remove_left(&left).unwrap().unwrap() >= 10_000);
        assert!(!left.exists());
        drop(private);
        assert!(!path.exists());
    }
}
