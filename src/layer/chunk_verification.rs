//! Layers whose chunks can all be verified from the manifest.
//!
//! An annotation of the manifest names the digest of an index, and the index names the digest of each part of each
//! file. This digest chain leads from the manifest to every byte served. Nothing is read in this module.

use std::collections::BTreeMap;

use crate::io::{ByteRange, FaultClass, ReadError};

use super::foreign::{self, ForeignIndex, IndexKind};
use super::index::LayerIndex;
use super::span::LayerDigests;
use super::toc::TocEntryKind;

/// The kind of parts index that a layer must carry; `None` unless the annotations of its descriptor name the
/// index's digest.
pub fn parts_named(annotations: &BTreeMap<String, String>) -> Option<IndexKind> {
    foreign::announced(annotations).filter(|_| foreign::names_digest(annotations))
}

/// Whether a digest chain leads from the manifest to every byte of every file in `claim`.
pub(super) fn is_rooted(claim: &ForeignIndex) -> bool {
    claim.is_bound
        && matches!(claim.kind, IndexKind::Estargz | IndexKind::ZstdChunked)
        && covers_files(&claim.index)
}

/// Whether every byte of every file lies in a range of the stream with a digest.
fn covers_files(index: &LayerIndex) -> bool {
    // Ascending and disjoint; readers rely on it too.
    let sums = match index.spans.sums() {
        LayerDigests::Stream(sums) => &sums[..],
        LayerDigests::None | LayerDigests::Stored(_) => &[],
    };
    let is_covered = |range: ByteRange| {
        let mut at = range.start;
        while at < range.end {
            let next = sums.partition_point(|sum| sum.end <= at);
            match sums.get(next) {
                Some(sum) if sum.start <= at => at = sum.end,
                _ => return false,
            }
        }
        true
    };
    index.toc.iter().all(|entry| match entry.kind {
        TocEntryKind::File(content) => {
            let stored = content.runs.map_or(content.size, |runs| runs.map(|run| run.len).sum());
            is_covered(ByteRange::at(content.offset, stored))
        }
        _ => true,
    })
}

/// The error for a layer without a digest for every part.
pub(super) fn no_parts(why: &str) -> ReadError {
    let message = format!("--verify=toc requires digests of its parts that the manifest covers: {why}");
    ReadError::new(FaultClass::Unsupported, message)
}
