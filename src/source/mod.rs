//! Sources of images: manifests and blobs, independent of their storage.
//!
//! A source knows no layers and stores nothing. The caller verifies blobs against their digests. A new source needs
//! a file in this folder, and an arm in the parser of [`ImageLocation`] and in [`open`]. Archives are a source too, but
//! need the archive reader, and are opened in `archive/`.

mod content_store;
mod directory;
mod error;
mod file;
mod foreign;
mod layout;
mod location;
mod offline;
mod registry;
mod wrapped;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use directory::LayoutDirectory;

pub use content_store::{holding, usual_stores};
pub use error::SourceError;
pub use file::LocalFile;
pub use foreign::{ForeignLayers, naming};
pub use layout::{LayoutFiles, LayoutImage, LayoutSource, listed_in};
pub use location::{ArchiveLocation, ExpectedForm, ImageLocation, LayoutChoice};

use crate::io::{BoxFuture, RangeFetch};
use crate::oci::{Descriptor, Digest};
use crate::registry::RegistryClient;

/// The document that a location names.
#[derive(Clone, Debug)]
pub struct RootDocument {
    /// Exactly the hashed bytes.
    pub bytes: Bytes,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The media type from the source, for documents that do not contain it; `None` if the source has none.
    pub content_type: Option<String>,
}

/// A place with one image or artifact, or a choice of them.
pub trait ImageSource: Send + Sync + 'static {
    /// The document that the location names now. Each call resolves a tag once.
    fn root(&self) -> BoxFuture<'_, Result<RootDocument, SourceError>>;

    /// A manifest or index by descriptor, verified against its size and digest.
    fn document<'a>(&'a self, descriptor: &'a Descriptor)
    -> BoxFuture<'a, Result<RootDocument, SourceError>>;

    /// A manifest or index by digest alone, for a caller without its size. The bytes are verified against `digest`.
    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<RootDocument, SourceError>>;

    /// The document under a tag of the same place, for content stored under a tag of its own; `None` when there is
    /// no such tag.
    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<RootDocument>, SourceError>>;

    /// The manifests of the place that name `subject` as their subject, of one artifact type or all, each once. The
    /// list may be empty.
    ///
    /// The list is a claim of the place: the subject of a listed manifest counts only once its own bytes are read.
    /// An error is no statement about the image, so the caller continues without referrers.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>>;

    /// The size of the blob `digest` in bytes, for a blob without a descriptor.
    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>>;

    /// A lazy blob; reads nothing.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch>;
}

/// A source without content: only cached content is readable.
pub fn offline(location: &ImageLocation) -> Arc<dyn ImageSource> {
    Arc::new(offline::OfflineSource::new(location.to_string()))
}

/// Opens the source that `location` names; `None` for an archive. Makes no request.
pub fn open(location: &ImageLocation, registry: &RegistryClient) -> Option<Arc<dyn ImageSource>> {
    let layout = |path: &PathBuf, choice: &LayoutChoice| -> Option<Arc<dyn ImageSource>> {
        Some(Arc::new(LayoutSource::new(LayoutDirectory::new(path.clone()), choice.clone())))
    };
    match location {
        ImageLocation::Registry(reference) => {
            Some(Arc::new(registry::RegistrySource::new(reference.clone(), registry.clone())))
        }
        ImageLocation::Layout { directory, choice } => layout(directory, choice),
        // A plain path: a directory is a layout, and a file an archive.
        ImageLocation::Archive { at: ArchiveLocation::File(path), form: ExpectedForm::Any, choice }
            if path.is_dir() =>
        {
            layout(path, choice)
        }
        ImageLocation::Archive { .. } => None,
    }
}
