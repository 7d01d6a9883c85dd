//! Local file as an immutable blob: a change after opening is an error.
//!
//! The file stays open, so that a file replaced under its name remains readable. A write is detected by size and
//! modification time, which are checked after every read. So bytes from before the write are never mixed with bytes
//! from after it. Pipes and devices are not waited for, and nothing is written.

use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use rustix::fs::OFlags;

use crate::io::{
    BoxFuture, ByteRange, FaultClass, FileBytes, LocalBytes, RangeDelivery, RangeFetch, ReadError,
};
use crate::owner::is_trusted_user;

/// Bytes per read of a file.
const FILE_READ_BYTES: u64 = 1024 * 1024;

/// Mode bits of a file that its group or all users may write.
const WRITTEN_BY_OTHERS: u32 = 0o022;

/// Opens a regular file. A pipe or a device in an untrusted layout must not block the process.
pub(super) fn open_file(path: &Path) -> std::io::Result<File> {
    regular(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?)
}

/// Returns the file if it is a regular one.
pub(super) fn regular(file: File) -> std::io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// An open file, with its version at opening. Clones share it.
#[derive(Clone)]
pub struct LocalFile(Arc<OpenedFile>);

struct OpenedFile {
    file: File,
    path: PathBuf,
    version: FileVersion,
    /// Time of the last change of content or attributes, which no process can set.
    changed: (i64, i64),
}

/// A file for as long as a reader holds it.
#[derive(Clone, Default)]
pub(super) struct HeldFile(Weak<OpenedFile>);

impl HeldFile {
    pub(super) fn of(file: &LocalFile) -> Self {
        Self(Arc::downgrade(&file.0))
    }

    pub(super) fn file(&self) -> Option<LocalFile> {
        self.0.upgrade().map(LocalFile)
    }
}

/// The attributes that change when a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    size: u64,
    modified: (i64, i64),
}

impl FileVersion {
    fn of(found: &Metadata) -> Self {
        Self { size: found.len(), modified: (found.mtime(), found.mtime_nsec()) }
    }
}

impl LocalFile {
    /// Opens the regular file at `path`.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Self::opened(open_file(path), path)
    }

    /// The result of opening a file, which messages name by `path`.
    pub(super) fn opened(file: std::io::Result<File>, path: &Path) -> Result<Self, ReadError> {
        let opened = file.and_then(|file| {
            let found = file.metadata()?;
            Ok(OpenedFile::new(file, path, &found))
        });
        opened.map(|opened| Self(Arc::new(opened))).map_err(|error| unreadable(path, error))
    }

    /// A file that is already open, which messages name by `path`.
    pub fn of(file: File, path: &Path) -> Result<Self, ReadError> {
        let found = file.metadata().map_err(|error| unreadable(path, error))?;
        Ok(Self(Arc::new(OpenedFile::new(file, path, &found))))
    }

    /// Numbers that no other file and no other content of this file has.
    pub(super) fn version(&self) -> [u64; 7] {
        FileBytes::version(&*self.0)
    }

    /// Whether the file has not changed since opening.
    pub fn is_unchanged(&self) -> bool {
        self.0.check().is_ok()
    }
}

impl OpenedFile {
    fn new(file: File, path: &Path, found: &Metadata) -> Self {
        let changed = (found.ctime(), found.ctime_nsec());
        Self { file, path: path.to_owned(), version: FileVersion::of(found), changed }
    }

    fn check(&self) -> Result<(), ReadError> {
        let found = self.file.metadata().map_err(|error| unreadable(&self.path, error))?;
        if FileVersion::of(&found) == self.version {
            return Ok(());
        }
        let message = format!("{} was changed after it was opened", self.path.display());
        Err(ReadError::new(FaultClass::Mismatch, message))
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut buf = vec![0; len];
        let read = self.file.read_exact_at(&mut buf, at);
        // Checked afterwards: bytes read before a change are valid. A truncated file fails this check first.
        self.check()?;
        read.map(|()| buf).map_err(|error| {
            ReadError::caused(FaultClass::Io, format!("reading {} at {at}", self.path.display()), error)
        })
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> ReadError {
    let fault = match error.kind() {
        std::io::ErrorKind::NotFound => FaultClass::NotFound,
        std::io::ErrorKind::PermissionDenied => FaultClass::Denied,
        _ => FaultClass::Io,
    };
    ReadError::caused(fault, format!("reading {}", path.display()), error)
}

impl FileBytes for OpenedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn is_unchanged(&self) -> bool {
        // A new link changes the time, too: then blocks are compared, which costs time and no reader.
        let is_same = |found: Metadata| {
            FileVersion::of(&found) == self.version && (found.ctime(), found.ctime_nsec()) == self.changed
        };
        self.file.metadata().is_ok_and(is_same)
    }

    fn size(&self) -> u64 {
        self.version.size
    }

    fn version(&self) -> [u64; 7] {
        let (device, inode) = self.file.metadata().map_or((0, 0), |found| (found.dev(), found.ino()));
        let FileVersion { size, modified } = self.version;
        let times = [modified.0, modified.1, self.changed.0, self.changed.1].map(i64::cast_unsigned);
        [device, inode, size, times[0], times[1], times[2], times[3]]
    }

    fn descriptor(&self) -> Option<OwnedFd> {
        let found = self.file.metadata().ok()?;
        let is_ours = is_trusted_user(found.uid()) && found.mode() & WRITTEN_BY_OTHERS == 0;
        let flags = rustix::fs::fcntl_getfl(&self.file).ok()?;
        let cannot_write = !flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        (is_ours && cannot_write).then(|| self.file.try_clone().ok()).flatten().map(OwnedFd::from)
    }
}

impl RangeFetch for LocalFile {
    fn size(&self) -> u64 {
        self.0.version.size
    }

    fn may_be_local(&self) -> bool {
        true
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(std::future::ready(Some(LocalBytes::of(self.0.clone()))))
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let opened = self.0.clone();
        Box::pin(async move {
            opened.check()?;
            let body = futures_util::stream::try_unfold(range.start, move |at| {
                let opened = opened.clone();
                async move {
                    if at >= range.end {
                        return Ok(None);
                    }
                    let len = (range.end - at).min(FILE_READ_BYTES);
                    let read = tokio::task::spawn_blocking(move || opened.read(at, len as usize));
                    let joined = read.await.map_err(|error| {
                        ReadError::caused(FaultClass::Io, "reading a file", std::io::Error::from(error))
                    })?;
                    Ok(Some((Bytes::from(joined?), at + len)))
                }
            });
            Ok(RangeDelivery { range, body: Box::pin(body) })
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::io::{FetchAll, read_vec};

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_written_into_is_an_error_and_one_that_is_replaced_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"first").unwrap();
        let file = LocalFile::open(&path).unwrap();
        let bytes = FetchAll(Arc::new(file.clone()));
        assert_eq!(read_vec(&bytes, ByteRange::new(1, 5)).await.unwrap(), b"irst");

        std::fs::write(dir.path().join("new"), b"other").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(read_vec(&bytes, ByteRange::new(0, 5)).await.unwrap(), b"first");

        let file = LocalFile::open(&path).unwrap();
        let bytes = FetchAll(Arc::new(file.clone()));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        let opened = File::options().write(true).open(&path).unwrap();
        opened.write_all_at(b"wrong", 0).unwrap();
        opened.set_modified(later).unwrap();
        assert!(!file.is_unchanged());
        let error = read_vec(&bytes, ByteRange::new(0, 5)).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Mismatch);
        assert!(error.chain().contains("changed"), "{}", error.chain());
        opened.set_len(2).unwrap();
        assert_eq!(read_vec(&bytes, ByteRange::new(0, 5)).await.unwrap_err().fault(), FaultClass::Mismatch);
    }

    #[test]
    fn open_of_a_pipe_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LocalFile::open(&pipe).is_err());
        assert_eq!(
            LocalFile::open(&dir.path().join("none")).map(drop).unwrap_err().fault(),
            FaultClass::NotFound
        );
    }
}
