//! A directory in the OCI image layout.
//!
//! The only file names built here come from validated digests. The idea: files are opened when they are read, so that a layout
//! with many blobs takes no descriptors, and one that is replaced by its tool is found as it is then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::io::{BoxFuture, ByteRange, Delivery, Fault, Fetch, ReadError};
use crate::oci::{Descriptor, Digest, MAX_DOCUMENT};

use super::SourceError;
use super::file::{LocalFile, open_file};
use super::layout::{Files, Listed, listed_in};

/// One layout directory.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What the layout says it holds.
    fn read_index(path: &Path) -> Result<Vec<Listed>, SourceError> {
        let place = path.display().to_string();
        let not_a_layout = |reason: String| SourceError::NotALayout { place: place.clone(), reason };
        let required = |name: &str| {
            let path = path.join(name);
            match std::fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(not_a_layout(format!("there is no file {name}")))
                }
                _ => read_document(&path),
            }
        };
        match std::fs::metadata(path) {
            Err(source) => return Err(SourceError::Io { path: path.to_owned(), source }),
            Ok(meta) if !meta.is_dir() => return Err(not_a_layout("it is not a directory".into())),
            Ok(_) => {}
        }
        listed_in(&place, &required("oci-layout")?, &required("index.json")?)
    }

    /// Does what waits for a disk where nobody else waits.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| SourceError::Io { path: self.path.clone(), source: error.into() })?
    }
}

/// Where the layout in `directory` keeps a blob.
pub(super) fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs").join(digest.algorithm_name()).join(digest.encoded())
}

impl Files for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Listed>, SourceError>> {
        let path = self.path.clone();
        Box::pin(self.aside(move || Self::read_index(&path)))
    }

    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        let path = blob_path(&self.path, digest);
        Box::pin(self.aside(move || match std::fs::metadata(&path) {
            Ok(found) => Ok(found.len()),
            Err(source) => Err(SourceError::Io { path, source }),
        }))
    }

    fn document<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        let path = blob_path(&self.path, digest);
        Box::pin(self.aside(move || read_document(&path).map(Bytes::from)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Fetch> {
        Arc::new(LayoutBlob { path: blob_path(&self.path, &descriptor.digest), size: descriptor.size })
    }
}

/// Reads a small file whole, but never more than a document may have.
fn read_document(path: &Path) -> Result<Vec<u8>, SourceError> {
    use std::io::Read as _;
    let io = |source| SourceError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = open_file(path).map_err(io)?;
    // One byte more than allowed, so that the parser sees that it is too much.
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// A blob file.
struct LayoutBlob {
    path: PathBuf,
    size: u64,
}

impl Fetch for LayoutBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>> {
        Box::pin(async move {
            let file = LocalFile::open(&self.path)?;
            if file.size() != self.size {
                let (path, size) = (self.path.display(), file.size());
                let message = format!("{path} has {size} bytes, its descriptor says {}", self.size);
                return Err(ReadError::new(Fault::Mismatch, message));
            }
            file.fetch(range).await
        })
    }
}
