//! Cache errors, and the fault behind each.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::io::{FaultClass, ReadError};
use crate::oci::Digest;

/// An error of the cache. Disk faults while blocks are read or stored are not errors: those cost only time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The directory belongs to another user, which could choose the content of a mount.
    #[error("cache directory {} belongs to user {owner}, not to user {user}", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// Our effective uid.
        user: u32,
    },
    /// Another user owns a directory or link on the way, and could replace the cache directory at any moment.
    #[error("cache directory {} is below {}, which {changed_by} can change", path.display(), above.display())]
    Above {
        /// The directory.
        path: PathBuf,
        /// The directory or link on the way.
        above: PathBuf,
        /// `user 1000`, or `others`.
        changed_by: String,
    },
    /// Group or others may write the directory.
    #[error("cache directory {} has mode {mode:04o}: group or others may write it", path.display())]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something other than a directory has its name.
    #[error("cache directory {} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Permissions forbid writing.
    #[error("{} cannot be written", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// The file system is mounted read-only.
    #[error("{} is on a read-only file system", path.display())]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// No space, no inodes, or no quota is left.
    #[error("the file system of {} is full", path.display())]
    Full {
        /// The file or directory.
        path: PathBuf,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// The cache must not grow, and nothing in it can be removed.
    #[error("no room for {}: the cache is at its limit and nothing in it can be evicted", path.display())]
    NoRoom {
        /// The file to be written.
        path: PathBuf,
    },
    /// The process has as many files open as it may, or the machine has.
    #[error("no descriptor is left to open {}: the process may have {limit} at once", path.display())]
    Descriptors {
        /// The file or directory.
        path: PathBuf,
        /// The soft limit, RLIMIT_NOFILE.
        limit: u64,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// Any other failure of this machine.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// A verb: `open`, `write`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The answer of the kernel.
        source: io::Error,
    },
    /// The digest uses a hash algorithm that is registered but not supported.
    #[error("content of {digest} is not served: algorithm {} is not supported", digest.algorithm_name())]
    Algorithm {
        /// The name.
        digest: Digest,
    },
    /// Content too large for a file of this machine.
    #[error("{digest} has {size} bytes, the limit is {limit}")]
    Oversized {
        /// The content.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The most that can be cached.
        limit: u64,
    },
    /// A sidecar of another program version.
    #[error("{} has version {version} and block shift {shift}, this program writes 1 and 18", path.display())]
    Version {
        /// The sidecar.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// Its block shift.
        shift: u8,
    },
    /// Two descriptors disagree about the size of the same content.
    #[error("{digest} is given {given} bytes, and has {cached}")]
    SizeConflict {
        /// The content.
        digest: Digest,
        /// The size in the cache.
        cached: u64,
        /// The size that was given.
        given: u64,
    },
    /// Content does not hash to its name.
    #[error("content of {expected} hashes to {actual}")]
    Mismatch {
        /// Its name.
        expected: Digest,
        /// The digest of its bytes.
        actual: Digest,
    },
    /// Another process holds a lock that is only ever held for an instant.
    #[error("{} is locked by a process that does not release it", path.display())]
    Busy {
        /// The locked file.
        path: PathBuf,
    },
}

/// Result of work on files of the cache.
pub(super) type CacheResult<T> = Result<T, CacheError>;

impl CacheError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            CacheError::NotOurs { .. }
            | CacheError::Above { .. }
            | CacheError::Mode { .. }
            | CacheError::NotADirectory { .. } => FaultClass::Usage,
            CacheError::Unwritable { .. } => FaultClass::Denied,
            CacheError::ReadOnly { .. }
            | CacheError::Full { .. }
            | CacheError::NoRoom { .. }
            | CacheError::Descriptors { .. }
            | CacheError::Io { .. }
            | CacheError::Busy { .. } => FaultClass::Io,
            CacheError::Algorithm { .. } | CacheError::Oversized { .. } | CacheError::Version { .. } => {
                FaultClass::Unsupported
            }
            CacheError::SizeConflict { .. } => FaultClass::Malformed,
            CacheError::Mismatch { .. } => FaultClass::Mismatch,
        }
    }

    /// Sorts an error of the kernel into the variants that users can act on.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM) => CacheError::Unwritable { path, source },
            Some(Errno::EROFS) => CacheError::ReadOnly { path, source },
            Some(Errno::ENOSPC | Errno::EDQUOT) => CacheError::Full { path, source },
            Some(Errno::EMFILE | Errno::ENFILE) => {
                use nix::sys::resource::{Resource, getrlimit};
                let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
                CacheError::Descriptors { path, limit, source }
            }
            _ => CacheError::Io { action, path, source },
        }
    }

    /// Whether the disk, and not the content or the user, prevents storing: then reads go on without it.
    pub fn is_disk(&self) -> bool {
        matches!(
            self,
            CacheError::ReadOnly { .. }
                | CacheError::Full { .. }
                | CacheError::NoRoom { .. }
                | CacheError::Descriptors { .. }
                | CacheError::Io { .. }
                | CacheError::Busy { .. }
        )
    }
}

impl From<CacheError> for ReadError {
    fn from(error: CacheError) -> Self {
        ReadError::caused(error.fault(), "cache", error)
    }
}
