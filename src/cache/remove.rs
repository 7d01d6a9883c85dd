//! Removal of one content as a whole: its data file and its sidecar.
//!
//! Every process that has content open holds a shared lock on its sidecar. So an exclusive lock that is granted
//! without waiting proves that no process uses the content. A process that opens it meanwhile waits for that lock,
//! and then finds a sidecar without a name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::CacheError;
use super::files::BlockPaths;
use super::lock::try_alone;

/// The unit of `st_blocks`, for every block size of the file system.
const STAT_BLOCK: u64 = 512;

/// Result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemoveOutcome {
    /// Both files were removed; the bytes of the disk that they took.
    Gone(u64),
    /// A process has it open, perhaps this one. It stays as it is.
    InUse,
    /// There was no content, or another process was faster.
    Absent,
}

/// Removes the content `files`, unless a process uses it. A data file without a sidecar is removed, too. Does not
/// wait.
pub(super) fn remove(files: &BlockPaths) -> Result<RemoveOutcome, CacheError> {
    remove_if(files, |_| true)
}

/// Like [`remove`], if `still` accepts the sidecar once no other process can open it.
pub(super) fn remove_if(
    files: &BlockPaths,
    still: impl FnOnce(&fs::Metadata) -> bool,
) -> Result<RemoveOutcome, CacheError> {
    if !exists(&files.data) && !exists(&files.map) {
        return Ok(RemoveOutcome::Absent);
    }
    let Some((_sidecar, found)) = hold_alone(files)? else { return Ok(RemoveOutcome::InUse) };
    // The name may have gone, or may belong to a newer sidecar, since it was opened.
    if !is_same(&found, &files.map) {
        return Ok(RemoveOutcome::Absent);
    }
    if !still(&found) {
        return Ok(RemoveOutcome::InUse);
    }
    unlink_pair(files, &found).map(RemoveOutcome::Gone)
}

/// Removes both names of the content whose open sidecar is `sidecar`, unless they lead to another one by now. The
/// disk bytes freed. The caller holds the status lock.
pub(super) fn remove_open(sidecar: &File, files: &BlockPaths) -> Result<u64, CacheError> {
    let found = sidecar.metadata().map_err(|error| CacheError::io("stat", &files.map, error))?;
    if is_same(&found, &files.map) { unlink_pair(files, &found) } else { Ok(0) }
}

fn unlink_pair(files: &BlockPaths, sidecar: &fs::Metadata) -> Result<u64, CacheError> {
    let bytes = occupied(sidecar) + fs::symlink_metadata(&files.data).map_or(0, |data| occupied(&data));
    // The data first. A crash at this point leaves a sidecar whose blocks all fail their check; the other order would
    // leave data without a sidecar.
    unlink(&files.data)?;
    unlink(&files.map)?;
    Ok(bytes)
}

/// The sidecar of `files`, locked so that no other process can open the content meanwhile; `None` when one has it
/// open. Made when missing: a process that begins this content anew has to take the lock, too.
pub(super) fn hold_alone(files: &BlockPaths) -> Result<Option<(File, fs::Metadata)>, CacheError> {
    let fail = |action, path| move |error| CacheError::io(action, path, error);
    let sidecar = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&files.map)
        .map_err(fail("open", &files.map))?;
    if !try_alone(&sidecar, &files.map)? {
        return Ok(None);
    }
    let found = sidecar.metadata().map_err(fail("stat", &files.map))?;
    Ok(Some((sidecar, found)))
}

/// Disk bytes of a file; 0 when it does not exist.
pub(super) fn on_disk(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| occupied(&found))
}

impl BlockPaths {
    /// Disk bytes of both files.
    pub(super) fn on_disk(&self) -> u64 {
        on_disk(&self.data) + on_disk(&self.map)
    }
}

/// Disk bytes of a file: holes take none.
pub(super) fn occupied(found: &fs::Metadata) -> u64 {
    found.blocks().saturating_mul(STAT_BLOCK)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether the open file still has that name.
pub(super) fn is_same(open: &fs::Metadata, path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()))
}

fn unlink(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::block_file::BlockFile;
    use super::super::sidecar::ContentKind;
    use super::*;
    use crate::oci::Digest;

    fn files(dir: &Path) -> BlockPaths {
        BlockPaths::of(dir.join("content"))
    }

    #[test]
    fn content_is_removed_when_closed_and_kept_while_open() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        assert_eq!(remove(&files).unwrap(), RemoveOutcome::Absent);
        assert!(!files.map.exists(), "looking makes nothing");
        let digest = Digest::sha256(b"x");
        let pair = BlockFile::open(&files.data, &files.map, ContentKind::Blob, &digest).unwrap();
        let bytes = vec![7; 5000];
        assert!(pair.store(0, &bytes, blake3::hash(&bytes).as_bytes()).is_ok());
        assert_eq!(remove(&files).unwrap(), RemoveOutcome::InUse);
        assert!(files.data.exists() && files.map.exists());
        drop(pair);
        assert_eq!(remove_if(&files, |_| false).unwrap(), RemoveOutcome::InUse);
        let RemoveOutcome::Gone(freed) = remove(&files).unwrap() else { panic!("it is not in use") };
        assert!(freed >= 5000, "{freed}");
        assert!(!files.data.exists() && !files.map.exists());
        assert_eq!(remove(&files).unwrap(), RemoveOutcome::Absent);
    }

    #[test]
    fn data_without_a_sidecar_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        fs::write(&files.data, [1; 9000]).unwrap();
        assert!(matches!(remove(&files).unwrap(), RemoveOutcome::Gone(freed) if freed >= 9000));
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn opener_waiting_for_a_removed_sidecar_creates_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let digest = Digest::sha256(b"x");
        drop(BlockFile::open(&files.data, &files.map, ContentKind::Blob, &digest).unwrap());
        let held = File::open(&files.map).unwrap();
        held.try_lock().unwrap();
        std::thread::scope(|scope| {
            let opener =
                scope.spawn(|| BlockFile::open(&files.data, &files.map, ContentKind::Blob, &digest).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!opener.is_finished());
            fs::remove_file(&files.data).unwrap();
            fs::remove_file(&files.map).unwrap();
            drop(held);
            let pair = opener.join().unwrap();
            assert!(files.map.exists() && files.data.exists());
            assert_eq!(remove(&files).unwrap(), RemoveOutcome::InUse);
            drop(pair);
        });
    }
}
