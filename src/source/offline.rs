//! Offline source: every request fails with an error that names the missing document or blob.

use std::sync::Arc;

use crate::io::{BoxFuture, ByteRange, FaultClass, RangeDelivery, RangeFetch, ReadError};
use crate::oci::{Descriptor, Digest};

use super::{ImageSource, RootDocument, SourceError};

/// A source that refuses every request.
pub(super) struct OfflineSource {
    location: String,
}

impl OfflineSource {
    pub(super) fn new(location: String) -> Self {
        Self { location }
    }
}

impl ImageSource for OfflineSource {
    fn root(&self) -> BoxFuture<'_, Result<RootDocument, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: self.location.clone() }) })
    }

    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: descriptor.digest.to_string() }) })
    }

    fn named<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<RootDocument, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: digest.to_string() }) })
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<RootDocument>, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: format!("tag {tag} of {}", self.location) }) })
    }

    /// An error instead of an empty list: the absence of referrers is unknown.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        _artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: format!("list of referrers of {subject}") }) })
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, SourceError>> {
        Box::pin(async move { Err(SourceError::Offline { what: format!("size of {digest}") }) })
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn RangeFetch> {
        Arc::new(OfflineBlob { digest: descriptor.digest.clone(), size: descriptor.size })
    }
}

/// A blob that can only be read from the cache.
struct OfflineBlob {
    digest: Digest,
    size: u64,
}

impl RangeFetch for OfflineBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        let error = SourceError::Offline { what: format!("range {range} of {}", self.digest) };
        Box::pin(async move { Err(ReadError::new(FaultClass::Unavailable, error.to_string())) })
    }
}
