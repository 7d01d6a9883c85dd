//! OCI image layout in a directory.
//!
//! File names are built from validated digests only. Files are opened when they are read: a layout of many blobs takes
//! no descriptors, and a replaced file is found. A file that a reader holds is read as it was opened.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};
use rustix::io::Errno;

use crate::io::{BoxFuture, ByteRange, FaultClass, LocalBytes, RangeDelivery, RangeFetch, ReadError, lock};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT};
use crate::owner::is_trusted_user;

use super::SourceError;
use super::file::{HeldFile, LocalFile, open_file, regular};
use super::layout::{LayoutFiles, LayoutImage, listed_in};

/// One layout directory.
pub(super) struct LayoutDirectory {
    path: PathBuf,
}

impl LayoutDirectory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The images listed in the layout's index.
    fn read_index(path: &Path) -> Result<Vec<LayoutImage>, SourceError> {
        let place = path.display().to_string();
        let not_a_layout = |reason: String| SourceError::NotALayout { place: place.clone(), reason };
        let required = |name: &str| match read_document(path, Path::new(name)) {
            Err(SourceError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(not_a_layout(format!("the file {name} is missing")))
            }
            read => read,
        };
        match std::fs::metadata(path) {
            Err(source) => return Err(SourceError::Io { path: path.to_owned(), source }),
            Ok(meta) if !meta.is_dir() => return Err(not_a_layout("it is not a directory".into())),
            Ok(_) => {}
        }
        listed_in(&place, &required("oci-layout")?, &required("index.json")?)
    }

    /// Runs disk work on a blocking thread.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| SourceError::Io { path: self.path.clone(), source: error.into() })?
    }
}

/// Path of a blob below the directory of a layout.
pub(super) fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm_name()).join(digest.encoded())
}

/// Opens the regular file `below` of the layout in `directory`. A link may leave the layout only if the layout
/// belongs to this user or root. Otherwise its owner could make this process read files that the owner cannot read.
pub(super) fn open_inside(directory: &Path, below: &Path) -> std::io::Result<File> {
    let look = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(directory, look, Mode::empty())?;
    let owner = fstat(&top)?.st_uid;
    if is_trusted_user(owner) {
        return open_file(&directory.join(below));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let leaves = || {
        let message = format!("it is a link that leaves the layout, which belongs to user {owner}");
        std::io::Error::new(std::io::ErrorKind::PermissionDenied, message)
    };
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = match openat2(&top, below, flags, Mode::empty(), inside) {
        // A kernel before 5.6, or a filter that does not know the call: no link is followed.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut here = top;
            let mut names = below.iter().peekable();
            while let Some(name) = names.next() {
                let flags = if names.peek().is_some() { look } else { flags };
                let next = openat(&here, name, flags | OFlags::NOFOLLOW, Mode::empty());
                here = next.map_err(|errno| match errno {
                    Errno::LOOP | Errno::NOTDIR => leaves(),
                    errno => errno.into(),
                })?;
            }
            here
        }
        Err(Errno::XDEV) => return Err(leaves()),
        opened => opened?,
    };
    regular(File::from(opened))
}

impl LayoutFiles for LayoutDirectory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<LayoutImage>, SourceError>> {
        let path = self.path.clone();
        Box::pin(self.aside(move || Self::read_index(&path)))
    }

    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        let (path, below) = (self.path.clone(), blob_path(digest));
        Box::pin(self.aside(move || {
            let found = open_inside(&path, &below).and_then(|file| file.metadata());
            found
                .map(|found| found.len())
                .map_err(|source| SourceError::Io { path: path.join(below), source })
        }))
    }

    fn document<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        let (path, below) = (self.path.clone(), blob_path(digest));
        Box::pin(self.aside(move || read_document(&path, &below).map(Bytes::from)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        let (directory, below) = (self.path.clone(), blob_path(&descriptor.digest));
        Arc::new(LayoutBlob { directory, below, size: descriptor.size, held: Mutex::default() })
    }
}

/// Reads a small file as a whole, up to one byte over the limit of a document.
fn read_document(directory: &Path, below: &Path) -> Result<Vec<u8>, SourceError> {
    use std::io::Read as _;
    let io = |source| SourceError::Io { path: directory.join(below), source };
    let mut bytes = Vec::new();
    let file = open_inside(directory, below).map_err(io)?;
    // One byte over the limit, so that the parser detects the excess.
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// A blob file.
struct LayoutBlob {
    directory: PathBuf,
    /// Path of the file below the directory.
    below: PathBuf,
    size: u64,
    /// The open file while a reader holds it. Guards: all readers of that time have the same file.
    held: Mutex<HeldFile>,
}

impl LayoutBlob {
    fn open(&self) -> Result<LocalFile, ReadError> {
        let mut held = lock(&self.held);
        if let Some(file) = held.file() {
            return Ok(file);
        }
        let path = self.directory.join(&self.below);
        let file = LocalFile::opened(open_inside(&self.directory, &self.below), &path)?;
        if file.size() != self.size {
            let (path, size) = (path.display(), file.size());
            let message = format!("{path} has {size} bytes, its descriptor states {}", self.size);
            return Err(ReadError::new(FaultClass::Mismatch, message));
        }
        *held = HeldFile::of(&file);
        Ok(file)
    }
}

impl RangeFetch for LayoutBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn may_be_local(&self) -> bool {
        true
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        // A read gets the error.
        Box::pin(async move { self.open().ok()?.local().await })
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move { self.open()?.fetch(range).await })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn a_link_leaves_a_layout_only_if_that_belongs_to_this_user_or_root() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        std::fs::create_dir(&layout).unwrap();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        std::fs::write(layout.join("plain"), b"plain").unwrap();
        symlink("../secret", layout.join("relative")).unwrap();
        symlink(dir.path().join("secret"), layout.join("absolute")).unwrap();
        symlink("plain", layout.join("inner")).unwrap();
        symlink("..", layout.join("up")).unwrap();
        let outside = ["relative", "absolute", "up/secret"];
        let open = |name: &str| open_inside(&layout, Path::new(name));
        for name in ["plain", "inner"].iter().chain(&outside) {
            assert!(open(name).is_ok(), "{name} of our own layout");
        }
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        chown(&layout, Some(12_345), Some(12_345)).unwrap();
        for name in ["plain", "inner"] {
            assert!(open(name).is_ok(), "{name}");
        }
        for name in outside {
            let error = open(name).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{name}");
            assert!(error.to_string().contains("belongs to user 12345"), "{error}");
        }
        assert_eq!(open("none").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
