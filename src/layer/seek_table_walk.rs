//! Skimming a layer with a seek table (zstd) or an index of blocks (xz): headers are read, and large files are skipped.
//!
//! Such a table gives the starts of frames and no names, so names cost the frames that hold headers. With large
//! files, these frames are a small part of the layer. With small files they are all of it, and one pass is cheaper.
//! So the walk gives up once it reads more than a quarter of the distance covered.

use crate::io::{ByteRange, FaultClass, FetchAll, ReadAt as _, ReadError};

use super::foreign::{self, FindError, ForeignIndex, ForeignLimits, IndexKind};
use super::header_walk;
use super::index::LayerIndex;
use super::layer_shared::LayerShared;
use super::seekable::decoded;
use super::sniff::StreamEncoding;
use super::span::SpanMap;
use super::span_recorder::SpanRecorder;
use super::stream_limit::most_stream;
use super::toc::TableOfContents;
use super::xz_index;

/// Stored bytes below which a layer is read by a pass: that takes one fetch.
const SMALLEST: u64 = 4 * 1024 * 1024;

/// Stream bytes read before the walk may give up.
const TRIAL: u64 = 4 * 1024 * 1024;

/// Maximum stream bytes of a block of xz, on average, that cost less than a pass where a header lies in it.
const MAX_BLOCK_BYTES: u64 = 4 * 1024 * 1024;

/// The index of a layer from its seek table, or from the index of xz; `None` without one, or when a pass costs less.
pub(super) async fn find(
    core: &LayerShared,
    encoding: StreamEncoding,
) -> Result<Option<ForeignIndex>, ReadError> {
    if core.blob.size() < SMALLEST {
        return Ok(None);
    }
    let (kind, spans) = match encoding {
        StreamEncoding::Zstd => (IndexKind::ZstdSeekable, seek_table(core).await?),
        StreamEncoding::Xz => {
            let spans = xz_index::spans(&*core.blob).await?;
            // A block is decoded from its start up to every header in it.
            let is_short = |spans: &SpanMap| spans.stream_size() / spans.spans() as u64 <= MAX_BLOCK_BYTES;
            (IndexKind::XzBlocks, spans.filter(is_short))
        }
        _ => return Ok(None),
    };
    let Some(spans) = spans else { return Ok(None) };
    let mut index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    let stream = FetchAll(decoded(core.blob.clone(), &index));
    let toc =
        header_walk::headers(&stream, Some(core.cache()), |read, at| read < TRIAL || read * 4 < at).await;
    index.toc = match toc {
        Ok(Some(toc)) => toc,
        Ok(None) => return Ok(None),
        // The pass reports defects of the layer, and a defect of the table must not stop it.
        Err(error) if matches!(error.fault(), FaultClass::Malformed | FaultClass::Unsupported) => {
            core.warn(format!("{kind} index: {}; the layer is read without it", error.chain()));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(Some(ForeignIndex { kind, ..claimed(index)? }))
}

/// The index of the bare stream of a layer from its seek table; `None` without one.
pub(super) async fn spans(core: &LayerShared) -> Result<Option<ForeignIndex>, ReadError> {
    let Some(spans) = seek_table(core).await? else { return Ok(None) };
    claimed(LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 }).map(Some)
}

/// The index of a bare stream from the index of an xz stream; `None` without a usable one.
pub(super) async fn xz_spans(core: &LayerShared) -> Result<Option<ForeignIndex>, ReadError> {
    let Some(spans) = xz_index::spans(&*core.blob).await? else { return Ok(None) };
    let index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    Ok(Some(ForeignIndex { kind: IndexKind::XzBlocks, ..claimed(index)? }))
}

/// The index of a bare stream of `size` bytes that is decoded from its first byte; `None` where a pass costs no more,
/// or reports what is wrong with the size.
pub(super) fn claimed_size(
    core: &LayerShared,
    encoding: StreamEncoding,
    size: u64,
) -> Result<Option<ForeignIndex>, ReadError> {
    let stored = core.blob.size();
    let is_here = core.blob.present(ByteRange::new(0, stored));
    if encoding == StreamEncoding::Plain
        || stored < SMALLEST
        || is_here
        || size == 0
        || size > most_stream(stored)
    {
        return Ok(None);
    }
    let spans = SpanRecorder::new(encoding).finish(stored, size);
    let index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    Ok(Some(ForeignIndex { kind: IndexKind::ClaimedSize, ..claimed(index)? }))
}

async fn seek_table(core: &LayerShared) -> Result<Option<SpanMap>, ReadError> {
    match foreign::find_seek_table(&*core.blob, StreamEncoding::Zstd, ForeignLimits::default()).await {
        Ok(spans) => Ok(spans),
        Err(FindError::Index(error)) => {
            core.warn(format!("{error}; the layer is read without it"));
            Ok(None)
        }
        Err(FindError::Read(error)) => Err(error),
    }
}

fn claimed(index: LayerIndex) -> Result<ForeignIndex, ReadError> {
    let bytes = index.to_bytes().map_err(|error| ReadError::new(FaultClass::Io, error))?;
    let id = *blake3::hash(&bytes).as_bytes();
    Ok(ForeignIndex {
        kind: IndexKind::ZstdSeekable,
        index,
        id,
        is_bound: false,
        scope: None,
        warnings: Vec::new(),
    })
}
