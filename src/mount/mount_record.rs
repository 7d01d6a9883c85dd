//! Records of kernel-served mounts: one socket for each, by which ocifs knows the mount as its own.
//!
//! The type of such a mount is `erofs`, as of mounts of other programs. The name of the socket is derived from the
//! device number and the source of the mount, which together stay its own while it exists. The process that serves
//! the mount listens at the socket and answers each connection with its status. A refused connection means that the
//! process is gone.

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The type of kernel-served mounts in the mount table.
pub(super) const EROFS_TYPE: &str = "erofs";
/// The directory of the sockets. Only root writes there.
pub(super) const RECORD_DIRECTORY: &str = "/run/ocifs/kernel";
/// Digits of the hash of the source in the name of a socket.
const HASH_DIGITS: usize = 16;
/// How long the serving process may take to send its status, which it has in memory.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest accepted status, in bytes: the limit of an extended attribute (xattr(7)), as in FUSE mounts.
const MAX_STATUS_BYTES: u64 = 64 * 1024;

/// Identity of a kernel-served mount while it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountRecord {
    path: PathBuf,
}

impl MountRecord {
    /// The record of a mount with this device number and source.
    pub(super) fn of(major: u32, minor: u32, source: &str) -> Self {
        let hash = blake3::hash(source.as_bytes()).to_hex();
        let name = format!("{major}:{minor}-{}", &hash[..HASH_DIGITS]);
        Self { path: Path::new(RECORD_DIRECTORY).join(name) }
    }

    /// Whether there is a record.
    pub(super) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.file_type().is_socket())
    }

    /// Listens at the socket. Replaces the socket of an earlier mount with the same number and source.
    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        create_directory()?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        fs::set_permissions(&self.path, PermissionsExt::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// The packed status, from the process that serves the mount.
    pub(super) fn ask_status(&self) -> io::Result<Vec<u8>> {
        let socket = UnixStream::connect(&self.path)?;
        socket.set_read_timeout(Some(STATUS_TIMEOUT))?;
        let mut status = Vec::new();
        socket.take(MAX_STATUS_BYTES).read_to_end(&mut status)?;
        match status.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(status),
        }
    }

    /// Whether the process that serves the mount is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        UnixStream::connect(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Number of the socket file, which distinguishes it from one that replaced it; `None` without a record.
    pub(super) fn file_number(&self) -> Option<u64> {
        fs::symlink_metadata(&self.path).ok().map(|found| found.ino())
    }

    /// Removes the record, if its socket still is the one with this number.
    pub(super) fn remove(&self, file_number: u64) {
        if self.file_number() == Some(file_number) {
            // Left behind, it names no mount, and the next kernel-served mount removes it.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Removes the records of mounts that `is_mounted` does not know, if their process is gone too.
pub(super) fn prune(is_mounted: impl Fn(&MountRecord) -> bool) {
    for entry in fs::read_dir(RECORD_DIRECTORY).into_iter().flatten().flatten() {
        let record = MountRecord { path: entry.path() };
        if record.exists() && !is_mounted(&record) && record.is_abandoned() {
            fs::remove_file(&record.path).ok();
        }
    }
}

/// Creates the directory of the records.
pub(super) fn create_directory() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(RECORD_DIRECTORY)?;
    // Whatever the umask: other users may see that a mount is one of ocifs.
    for dir in Path::new(RECORD_DIRECTORY).ancestors().take(2) {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_another_number_or_source_is_another_one() {
        let record = MountRecord::of(0, 57, "ghcr.io/a/b:v1");
        assert_eq!(record, MountRecord::of(0, 57, "ghcr.io/a/b:v1"));
        assert_ne!(record, MountRecord::of(0, 58, "ghcr.io/a/b:v1"));
        assert_ne!(record, MountRecord::of(0, 57, "ghcr.io/a/b:v2"));
        // The longest name of a socket is 107 bytes (unix(7)).
        let longest = MountRecord::of(u32::MAX, u32::MAX, &"x".repeat(5000));
        assert!(longest.path.as_os_str().len() < 108, "{longest:?}");
    }

    #[test]
    fn a_mount_without_a_record_is_neither_known_nor_dead() {
        let record = MountRecord::of(u32::MAX, u32::MAX, "no such mount");
        assert!(!record.exists() && !record.is_abandoned());
        assert!(record.ask_status().is_err());
    }
}
