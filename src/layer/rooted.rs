//! Which layers can be read part by part with nothing believed: every part has a digest, and the manifest vouches for the digests.
//!
//! Reads nothing. The idea: an annotation of the manifest names the digest of an index, the index names the digest of each part of
//! each file, and so a chain of digests leads from the manifest to every byte that is shown.

use std::collections::BTreeMap;

use crate::io::{ByteRange, Fault, ReadError};

use super::foreign::{self, Foreign, IndexKind};
use super::index::LayerIndex;
use super::span::Sums;
use super::toc::EntryKind;

/// The index of parts that a layer has to have, when the annotations of its descriptor name the digest of one.
pub fn parts_named(annotations: &BTreeMap<String, String>) -> Option<IndexKind> {
    foreign::announced(annotations).filter(|_| foreign::names_digest(annotations))
}

/// Whether a chain of digests leads from the manifest to every byte of every file that `claim` shows.
pub(super) fn is_rooted(claim: &Foreign) -> bool {
    claim.is_bound
        && matches!(claim.kind, IndexKind::Estargz | IndexKind::ZstdChunked)
        && covers_files(&claim.index)
}

/// Whether every byte of every file lies in a range of the stream that has a digest.
fn covers_files(index: &LayerIndex) -> bool {
    // In ascending order and apart: whoever reads through them relies on it too.
    let sums = match index.spans.sums() {
        Sums::Stream(sums) => &sums[..],
        Sums::None | Sums::Stored(_) => &[],
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
        EntryKind::File(content) => {
            let stored = content.runs.map_or(content.size, |runs| runs.map(|run| run.len).sum());
            is_covered(ByteRange::at(content.offset, stored))
        }
        _ => true,
    })
}

/// Why a layer is not read where every part has to have a digest.
pub(super) fn no_parts(why: &str) -> ReadError {
    let message = format!("--verify=toc asks for digests of its parts that the manifest vouches for: {why}");
    ReadError::new(Fault::Unsupported, message)
}
