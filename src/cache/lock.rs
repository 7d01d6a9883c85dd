//! Locks between processes: open-file-description byte locks on sidecars, and the build lock of a layer.
//!
//! Every lock belongs to an open file, so the kernel releases it when its holder dies. A lock is tried without
//! blocking in the kernel, and the caller decides how to wait.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::CacheError;

/// First and longest pause between two tries: unnoticed beside a fetch, and long enough to cost no CPU.
pub(super) const LOCK_RETRY_DELAYS: (Duration, Duration) =
    (Duration::from_millis(2), Duration::from_millis(50));

/// Growing pauses, from the first to the longest.
pub(super) struct LockBackoff(Duration);

impl LockBackoff {
    pub(super) fn new() -> Self {
        Self(LOCK_RETRY_DELAYS.0)
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LOCK_RETRY_DELAYS.1);
        pause
    }
}

/// The right to decode a layer, exclusive over threads and processes until it is dropped.
#[derive(Debug)]
pub struct BuildLock {
    /// Holds the flock; closing it releases the lock.
    file: File,
}

impl BuildLock {
    /// Whether the file still has its name.
    pub(super) fn has_a_name(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        self.file.metadata().is_ok_and(|found| found.nlink() > 0)
    }

    /// Waits until no other open file holds the lock on `file`. The caller sets the deadline: decoding a large layer
    /// takes minutes, and only the caller knows whether it can do without.
    pub(super) async fn acquire(file: File, path: PathBuf) -> Result<Self, CacheError> {
        let mut backoff = LockBackoff::new();
        while !try_alone(&file, &path)? {
            tokio::time::sleep(backoff.next()).await;
        }
        Ok(Self { file })
    }
}

/// Takes the flock of `file` alone, without waiting; `false` when another open file holds it.
pub(super) fn try_alone(file: &File, path: &Path) -> Result<bool, CacheError> {
    taken(file.try_lock(), path)
}

/// Takes the flock of `file` beside other readers, without waiting; `false` when another open file holds it alone.
pub(super) fn try_shared(file: &File, path: &Path) -> Result<bool, CacheError> {
    taken(file.try_lock_shared(), path)
}

fn taken(tried: Result<(), TryLockError>, path: &Path) -> Result<bool, CacheError> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(CacheError::io("lock", path, error)),
    }
}

/// Takes the write lock on one byte of `file`, or upgrades the read lock; `false` when another open file has a lock
/// on it. A failed upgrade keeps the read lock (fcntl(2)); a flock would be lost (flock(2)).
pub(super) fn try_lock_byte(file: &File, at: u64) -> io::Result<bool> {
    match byte_lock(file, libc::F_WRLCK, at) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes the read lock on one byte of `file`, or downgrades the write lock, which always works; `false` when another
/// open file has the write lock.
pub(super) fn try_share_byte(file: &File, at: u64) -> io::Result<bool> {
    match byte_lock(file, libc::F_RDLCK, at) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Releases the lock on one byte.
pub(super) fn unlock_byte(file: &File, at: u64) {
    if let Err(error) = byte_lock(file, libc::F_UNLCK, at) {
        // The only cause is missing memory for splitting a lock; closing the file releases it anyway.
        tracing::warn!(%error, "cannot release a lock of the cache");
    }
}

fn byte_lock(file: &File, kind: libc::c_int, at: u64) -> Result<(), Errno> {
    let start = libc::off_t::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    // Lock kinds and SEEK_SET are single digits; fcntl(2) demands pid 0 for open-file-description locks.
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}
