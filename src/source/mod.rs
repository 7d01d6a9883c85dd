//! Where an image lives: "give me this manifest" and "open this blob", whatever holds them.
//!
//! A source knows no layers and keeps nothing; what it hands out is checked against digests by whoever asked. To add one:
//! a file here and an arm in the parser of [`Location`] and [`open`]. Archives are a source too; they take what reads archives,
//! and are opened in `archive/`.

mod directory;
mod error;
mod file;
mod foreign;
mod held;
mod layout;
mod location;
mod offline;
mod registry;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use directory::Directory;

pub use error::SourceError;
pub use file::LocalFile;
pub use foreign::{ForeignLayers, naming};
pub use held::{holding, usual_stores};
pub use layout::{Files, Layout, Listed, listed_in};
pub use location::{Form, LayoutChoice, Location, Place};

use crate::io::{BoxFuture, Fetch};
use crate::oci::{Descriptor, Digest};
use crate::registry::Registry;

/// The document a location names.
#[derive(Clone, Debug)]
pub struct Root {
    /// Exactly the bytes that were hashed.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: Digest,
    /// What the source calls them, for documents that do not say it themselves.
    pub content_type: Option<String>,
}

/// A place that has one image or artifact, or a choice of them.
pub trait Source: Send + Sync + 'static {
    /// What the location names now. A tag is asked once per call.
    fn root(&self) -> BoxFuture<'_, Result<Root, SourceError>>;

    /// A manifest or index by descriptor, checked against its size and digest.
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Root, SourceError>>;

    /// A manifest or index by digest alone, for what names a document without its size. The bytes hash to `digest`.
    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Root, SourceError>>;

    /// What a tag of this place names now, for what is kept under a tag of its own; `None` when there is no such tag.
    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Root>, SourceError>>;

    /// The manifests here that say they are about `subject`, those of one artifact type or all, each once; none is no error.
    ///
    /// This is a claim of the place: the subject of a listed manifest counts only when its own bytes were read. An error says
    /// nothing about the image, so whoever asks goes on without what might have been listed.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>>;

    /// How many bytes the blob `digest` has: for a blob that no document describes.
    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>>;

    /// A blob, lazily: nothing is read here.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Fetch>;
}

/// A source that has nothing: what can be read is what the cache has.
pub fn offline(location: &Location) -> Arc<dyn Source> {
    Arc::new(offline::OfflineSource::new(location.to_string()))
}

/// Opens the source that `location` names, if it is no archive. No request is made.
pub fn open(location: &Location, registry: &Registry) -> Option<Arc<dyn Source>> {
    let layout = |path: &PathBuf, choice: &LayoutChoice| -> Option<Arc<dyn Source>> {
        Some(Arc::new(Layout::new(Directory::new(path.clone()), choice.clone())))
    };
    match location {
        Location::Registry(reference) => {
            Some(Arc::new(registry::RegistrySource::new(reference.clone(), registry.clone())))
        }
        Location::Layout { directory, choice } => layout(directory, choice),
        // A plain path: what is there decides.
        Location::Archive { at: Place::File(path), form: Form::Any, choice } if path.is_dir() => {
            layout(path, choice)
        }
        Location::Archive { .. } => None,
    }
}
