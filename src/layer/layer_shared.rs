//! State that a layer shares with its background tasks: its stored bytes, their format and warnings.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use crate::cache::{BlockCache, CachedFile, LayerMetadata};
use crate::io::{ByteRange, ReadAt, ReadError, lock, read_vec};
use crate::oci::{Digest, Hasher};

use super::index::LayerIndex;
use super::sniff::{SNIFF_LEN, SniffResult, StreamEncoding, sniff};
use super::span::SpanMap;
use super::toc::TableOfContents;

/// State that a layer shares with its background tasks.
pub(super) struct LayerShared {
    pub(super) blob: Arc<CachedFile>,
    pub(super) cache: BlockCache,
    /// The form of the index: that of an archive, or that of a bare stream.
    pub(super) form: LayerMetadata,
    /// The hasher for the pass that decodes the stream; `None` without an expected digest.
    pub(super) hasher: Option<Hasher>,
    /// The stream digest that the pass computed.
    pub(super) hashed: OnceLock<Digest>,
    /// Stream bytes that the running pass has decoded.
    pub(super) progress: Arc<AtomicU64>,
    /// Problems that did not prevent reading the layer.
    warnings: Mutex<Vec<String>>,
    /// The reason why the claim is refuted.
    pub(super) refuted: OnceLock<ReadError>,
    /// Set once the claim was compared with the layer and is true.
    pub(super) confirmed: OnceLock<()>,
}

impl LayerShared {
    /// The state of a layer whose bytes were not read yet.
    pub(super) fn new(
        form: LayerMetadata,
        blob: Arc<CachedFile>,
        cache: BlockCache,
        hasher: Option<Hasher>,
    ) -> Self {
        Self {
            blob,
            cache,
            form,
            hasher,
            hashed: OnceLock::new(),
            progress: Arc::default(),
            warnings: Mutex::default(),
            refuted: OnceLock::new(),
            confirmed: OnceLock::new(),
        }
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// The cache in which offers of `scope` are kept; `None` is that of the image's origin.
    pub(super) fn scope(&self, scope: Option<&str>) -> BlockCache {
        scope.map_or_else(|| self.cache.clone(), |scope| self.cache.for_origin(scope))
    }

    /// Problems that did not prevent reading the layer.
    pub(super) fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    pub(super) fn warn(&self, warning: String) {
        tracing::warn!(layer = %self.blob.digest(), warning);
        let mut warnings = lock(&self.warnings);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Whether all stored bytes are verified before any of them are served.
    pub(super) fn is_proven_first(&self) -> bool {
        self.blob.is_proven_first()
    }

    /// Stored bytes.
    pub(super) fn size(&self) -> u64 {
        self.blob.size()
    }

    pub(super) async fn sniff(&self, bytes: &dyn ReadAt) -> Result<SniffResult, ReadError> {
        let head = ByteRange::new(0, bytes.size().min(SNIFF_LEN as u64));
        Ok(sniff(&read_vec(bytes, head).await?))
    }

    /// The encoding of the stream; `None` where the bytes are no stream.
    pub(super) async fn encoding(&self) -> Result<Option<StreamEncoding>, ReadError> {
        self.look_at_encoding(&*self.blob).await
    }

    /// As [`encoding`](Self::encoding), from these bytes of the blob.
    pub(super) async fn look_at_encoding(
        &self,
        bytes: &dyn ReadAt,
    ) -> Result<Option<StreamEncoding>, ReadError> {
        Ok(match self.sniff(bytes).await? {
            SniffResult::Stream(encoding) => Some(encoding),
            SniffResult::Other(_) if self.form == LayerMetadata::Stream => Some(StreamEncoding::Plain),
            SniffResult::Other(_) => None,
        })
    }

    /// The index of an uncompressed stream.
    pub(super) fn identity(&self) -> LayerIndex {
        let spans = SpanMap::identity(self.size());
        LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 }
    }
}
