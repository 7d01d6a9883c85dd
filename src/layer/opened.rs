//! The stream of a layer with a known index: its cached part, and the source of the rest.
//!
//! The cache stores the stream of a layer under the block checksums of the layer's own index. A claimed stream is
//! stored under the id of the claim and the copy of the blob that it is decoded from. Nothing is read in this
//! module.

use std::sync::Arc;

use crate::cache::{BlockCache, BlockSums, CachedFile};
use crate::io::{FetchAll, MEMORY, MemoryShare, RangeFetch, ReadError, SharedReader};

use super::chunk_verification;
use super::foreign::ForeignIndex;
use super::guarded_stream::{UntrustedStream, VerifiedStream, holes};
use super::index::LayerIndex;
use super::layer_shared::LayerShared;
use super::seekable::{decoded, decoded_by};
use super::sequential::SequentialReader;
use super::sniff::StreamEncoding;
use super::span::SpanMap;

/// A foreign index in use.
pub(super) struct UntrustedClaim {
    /// The index, with a large table of contents on disk.
    pub(super) foreign: ForeignIndex,
    /// Whether the index has a digest for every part of the layer.
    pub(super) is_rooted: bool,
    /// Share of its spans in the memory budget of all layers.
    _memory: MemoryShare,
}

impl UntrustedClaim {
    /// Spools a large table of contents to the disk of `cache`.
    pub(super) fn new(mut foreign: ForeignIndex, cache: &BlockCache) -> Result<Self, ReadError> {
        let is_rooted = chunk_verification::is_rooted(&foreign);
        foreign.index.toc = foreign.index.toc.spooled(cache)?;
        let mut memory = MEMORY.lasting();
        let grown = memory.grow(foreign.index.spans.heap_bytes());
        grown.map_err(|error| error.into_read(&format!("the {} index", foreign.kind)))?;
        Ok(Self { foreign, is_rooted, _memory: memory })
    }
}

/// The stream of a layer with a known index.
pub(super) struct OpenStream {
    pub(super) spans: SpanMap,
    /// Whether every block is compared with the checksums of a pass, which counts if the pass read verified bytes.
    pub(super) has_checksums: bool,
    pub(super) stream: SharedReader,
    /// The cached part of the stream; `None` where it is not cached, or where stored bytes are stream bytes.
    pub(super) cached: Option<Arc<CachedFile>>,
    /// The same for a reader that compares it and caches nothing.
    pub(super) served: SharedReader,
    /// Share of its spans and checksums in the memory budget of all layers; `None` where another value has it.
    _memory: Option<MemoryShare>,
}

impl LayerShared {
    /// The stream by the layer's own index.
    pub(super) fn open(self: &Arc<Self>, index: &LayerIndex) -> Result<OpenStream, ReadError> {
        let mut memory = MEMORY.lasting();
        let grown = memory.grow(index.spans.heap_bytes() + size_of_val(&index.blocks[..]) as u64);
        grown.map_err(|error| error.into_read("its index"))?;
        Ok(OpenStream { _memory: Some(memory), ..self.open_own(index) })
    }

    fn open_own(self: &Arc<Self>, index: &LayerIndex) -> OpenStream {
        let spans = index.spans.clone();
        if spans.encoding() == StreamEncoding::Plain {
            let (stream, served) = (self.blob.clone(), self.blob.clone());
            return OpenStream { spans, has_checksums: false, stream, cached: None, served, _memory: None };
        }
        let sums: BlockSums = index.blocks.as_slice().into();
        if sums.is_empty() {
            let stream: SharedReader = Arc::new(FetchAll(decoded(self.blob.clone(), index)));
            return OpenStream {
                spans,
                has_checksums: false,
                stream,
                cached: None,
                served: self.uncached(index),
                _memory: None,
            };
        }
        let fetch = decoded_by(self.blob.clone(), spans.clone(), sums.clone());
        let rest: SharedReader = Arc::new(SequentialReader::new(fetch.clone()));
        match self.cache().stream(self.blob.digest(), sums, fetch.clone()) {
            Ok(stream) => {
                stream.decoded_from(&self.blob);
                let served = stream.as_served(rest);
                let (cached, blob) = (Some(stream.clone()), self.blob.clone());
                let stream = Arc::new(VerifiedStream { stream, blob, holes: holes(index) });
                OpenStream { spans, has_checksums: true, stream, cached, served, _memory: None }
            }
            Err(error) => {
                tracing::warn!(layer = %self.blob.digest(), %error, "decoded stream is not cached");
                OpenStream {
                    spans,
                    has_checksums: true,
                    stream: Arc::new(FetchAll(fetch)),
                    cached: None,
                    served: rest,
                    _memory: None,
                }
            }
        }
    }

    /// The cached part of the stream as a claim describes it; `None` where it cannot be cached.
    pub(super) fn claimed(
        &self,
        claim: &ForeignIndex,
        fetch: Arc<dyn RangeFetch>,
    ) -> Option<Arc<CachedFile>> {
        let (digest, copy) = (self.blob.digest(), self.blob.copy_number()?);
        match self.cache().claimed_stream(digest, &claim.id, &copy, fetch) {
            Ok(stream) => {
                stream.decoded_from(&self.blob);
                Some(stream)
            }
            Err(error) => {
                tracing::warn!(layer = %digest, %error, "decoded stream is not cached");
                None
            }
        }
    }

    /// The stream by a foreign index.
    pub(super) fn open_claim(
        self: &Arc<Self>,
        UntrustedClaim { foreign: claim, is_rooted, .. }: &UntrustedClaim,
    ) -> OpenStream {
        let spans = claim.index.spans.clone();
        let fetch = decoded(self.blob.clone(), &claim.index);
        let cached = self.claimed(claim, fetch.clone());
        let stream: SharedReader = match &cached {
            Some(stream) => stream.clone(),
            None => Arc::new(FetchAll(fetch)),
        };
        let plain = spans.encoding() == StreamEncoding::Plain && !spans.is_made_up();
        let stream = if plain { self.blob.clone() } else { stream };
        let is_rooted = *is_rooted && spans.is_made_up();
        let served = self.claim_as_served(claim);
        OpenStream {
            spans,
            has_checksums: false,
            stream: Arc::new(UntrustedStream { stream, core: self.clone(), is_rooted }),
            cached,
            served,
            _memory: None,
        }
    }
}
