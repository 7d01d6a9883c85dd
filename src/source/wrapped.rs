//! Wrapped source: the documents of another source, and its blobs through a [`BlobWrapper`].

use std::sync::Arc;

use crate::io::{BoxFuture, RangeFetch};
use crate::oci::{Descriptor, Digest};

use super::{ImageSource, RootDocument, SourceError};

/// A change to the blobs of a source.
pub(super) trait BlobWrapper: Send + Sync + 'static {
    /// The blob of `descriptor` to read instead of `blob`; reads nothing.
    fn wrap(&self, descriptor: &Descriptor, blob: Arc<dyn RangeFetch>) -> Arc<dyn RangeFetch>;
}

/// A source whose blobs pass a wrapper. Documents decide on further reads and on access, so no wrapper changes them.
pub(super) struct WrappedSource<W> {
    pub(super) source: Arc<dyn ImageSource>,
    pub(super) wrapper: W,
}

impl<W: BlobWrapper> ImageSource for WrappedSource<W> {
    fn root(&self) -> BoxFuture<'_, Result<RootDocument, SourceError>> {
        self.source.root()
    }

    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        self.source.document(descriptor)
    }

    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        self.source.named(digest)
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<RootDocument>, SourceError>> {
        self.source.tagged(tag)
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        self.source.referrers(subject, artifact_type)
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        self.source.blob_size(digest)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        self.wrapper.wrap(descriptor, self.source.blob(descriptor))
    }
}
