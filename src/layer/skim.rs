//! Skimming a zstd layer that has a seek table: its headers are read and its large files are not.
//!
//! A seek table says where frames start and gives no names, so names cost the frames that hold headers. The idea: where files
//! are large that is a small part of the layer; where they are small it is all of it, and one pass is cheaper, so the walk
//! gives up as soon as it reads more than it skips.

use crate::io::{Fault, FetchAll, ReadError};

use super::foreign::{self, FindError, Foreign, ForeignLimits, IndexKind};
use super::index::LayerIndex;
use super::pass;
use super::pieces::decoded;
use super::sniff::Encoding;
use super::span::SpanMap;
use super::stored::Core;
use super::toc::Toc;
use super::xz_index;

/// Stored bytes below which a layer is passed over: that takes one fetch.
const SMALLEST: u64 = 4 * 1024 * 1024;

/// Bytes of the stream that are read before the walk is judged.
const TRIAL: u64 = 4 * 1024 * 1024;

/// The index of a layer by its seek table; `None` when it has none, or when a pass costs less.
pub(super) async fn find(core: &Core, size: u64) -> Result<Option<Foreign>, ReadError> {
    if size < SMALLEST {
        return Ok(None);
    }
    let Some(spans) = seek_table(core).await? else { return Ok(None) };
    let mut index = LayerIndex { spans, toc: Toc::default(), blocks: Vec::new(), prefetch: 0 };
    let stream = FetchAll(decoded(core.blob.clone(), &index));
    let toc = pass::headers(&stream, |read, at| read < TRIAL || read * 4 < at).await;
    index.toc = match toc {
        Ok(Some(toc)) => toc,
        Ok(None) => return Ok(None),
        // What is wrong with the layer the pass finds out; what is wrong with its table is no reason to stop.
        Err(error) if matches!(error.fault(), Fault::Malformed | Fault::Unsupported) => {
            core.warn(format!("zstd seekable index: {}; the layer is read without it", error.chain()));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    claimed(index).map(Some)
}

/// The index of the bare stream of a layer by its seek table; `None` when it has none.
pub(super) async fn spans(core: &Core) -> Result<Option<Foreign>, ReadError> {
    let Some(spans) = seek_table(core).await? else { return Ok(None) };
    claimed(LayerIndex { spans, toc: Toc::default(), blocks: Vec::new(), prefetch: 0 }).map(Some)
}

/// The same by the index of an xz stream of several blocks.
pub(super) async fn xz_spans(core: &Core) -> Result<Option<Foreign>, ReadError> {
    let Some(spans) = xz_index::spans(&*core.blob).await? else { return Ok(None) };
    let index = LayerIndex { spans, toc: Toc::default(), blocks: Vec::new(), prefetch: 0 };
    Ok(Some(Foreign { kind: IndexKind::XzBlocks, ..claimed(index)? }))
}

async fn seek_table(core: &Core) -> Result<Option<SpanMap>, ReadError> {
    match foreign::find_seek_table(&*core.blob, Encoding::Zstd, ForeignLimits::default()).await {
        Ok(spans) => Ok(spans),
        Err(FindError::Index(error)) => {
            core.warn(format!("{error}; the layer is read without it"));
            Ok(None)
        }
        Err(FindError::Read(error)) => Err(error),
    }
}

fn claimed(index: LayerIndex) -> Result<Foreign, ReadError> {
    let bytes = index.to_bytes().map_err(|error| ReadError::new(Fault::Io, error))?;
    let id = *blake3::hash(&bytes).as_bytes();
    Ok(Foreign { kind: IndexKind::ZstdSeekable, index, id, is_bound: false, warnings: Vec::new() })
}
