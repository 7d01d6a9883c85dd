//! Skimming a zstd layer with a seek table: headers are read, and large files are skipped.
//!
//! A seek table gives the starts of frames and no names, so names cost the frames that hold headers. With large
//! files, these frames are a small part of the layer. With small files they are all of it, and one pass is cheaper.
//! So the walk gives up once it reads more than a quarter of the distance covered.

use crate::io::{FaultClass, FetchAll, ReadError};

use super::foreign::{self, FindError, ForeignIndex, ForeignLimits, IndexKind};
use super::index::LayerIndex;
use super::indexer;
use super::layer_shared::LayerShared;
use super::seekable::decoded;
use super::sniff::StreamEncoding;
use super::span::SpanMap;
use super::toc::TableOfContents;
use super::xz_index;

/// Stored bytes below which a layer is read by a pass: that takes one fetch.
const SMALLEST: u64 = 4 * 1024 * 1024;

/// Stream bytes read before the walk may give up.
const TRIAL: u64 = 4 * 1024 * 1024;

/// The index of a layer from its seek table; `None` without one, or when a pass costs less.
pub(super) async fn find(core: &LayerShared, size: u64) -> Result<Option<ForeignIndex>, ReadError> {
    if size < SMALLEST {
        return Ok(None);
    }
    let Some(spans) = seek_table(core).await? else { return Ok(None) };
    let mut index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    let stream = FetchAll(decoded(core.blob.clone(), &index));
    let toc = indexer::headers(&stream, |read, at| read < TRIAL || read * 4 < at).await;
    index.toc = match toc {
        Ok(Some(toc)) => toc,
        Ok(None) => return Ok(None),
        // The pass reports defects of the layer, and a defect of the table must not stop it.
        Err(error) if matches!(error.fault(), FaultClass::Malformed | FaultClass::Unsupported) => {
            core.warn(format!("zstd seekable index: {}; the layer is read without it", error.chain()));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    claimed(index).map(Some)
}

/// The index of the bare stream of a layer from its seek table; `None` without one.
pub(super) async fn spans(core: &LayerShared) -> Result<Option<ForeignIndex>, ReadError> {
    let Some(spans) = seek_table(core).await? else { return Ok(None) };
    claimed(LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 }).map(Some)
}

/// The index of a bare stream from the index of an xz stream of several blocks; `None` without one.
pub(super) async fn xz_spans(core: &LayerShared) -> Result<Option<ForeignIndex>, ReadError> {
    let Some(spans) = xz_index::spans(&*core.blob).await? else { return Ok(None) };
    let index = LayerIndex { spans, toc: TableOfContents::default(), blocks: Vec::new(), prefetch: 0 };
    Ok(Some(ForeignIndex { kind: IndexKind::XzBlocks, ..claimed(index)? }))
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
    Ok(ForeignIndex { kind: IndexKind::ZstdSeekable, index, id, is_bound: false, warnings: Vec::new() })
}
