//! Reads of stored bytes: a run of them in steps that end at blocks of the cache and at ranges with a digest.

use std::collections::VecDeque;

use crate::io::ByteRange;

use super::span::{ChunkDigest, LayerDigests, LayerPiece, SpanMap};

/// Maximum gap between two pieces that is read with them rather than skipped: the headers of an archive, which lie
/// in the same blocks of the cache.
const JOIN_GAP_BYTES: u64 = 16 * 1024;

/// A read of stored bytes.
pub(super) struct StoredSegment {
    /// The bytes for the decoder.
    pub(super) take: ByteRange,
    /// The range around them to compare first; `None` without a digest.
    pub(super) sum: Option<ChunkDigest>,
}

/// The reads for one run of stored bytes, in order.
pub(super) struct StoredSegments {
    map: SpanMap,
    at: u64,
    end: u64,
    step: u64,
}

impl StoredSegments {
    /// The reads for `run`, at most `step` bytes each where no digest covers more.
    pub(super) fn new(map: SpanMap, run: ByteRange, step: u64) -> Self {
        Self { map, at: run.start, end: run.end, step }
    }
}

impl Iterator for StoredSegments {
    type Item = StoredSegment;

    fn next(&mut self) -> Option<StoredSegment> {
        if self.at >= self.end {
            return None;
        }
        // At multiples of the step, which are multiples of the cache's blocks.
        let mut until = (self.at - self.at % self.step).saturating_add(self.step).min(self.end);
        let mut within = None;
        if let LayerDigests::Stored(sums) = self.map.sums() {
            let next = sums.partition_point(|sum| sum.start <= self.at);
            match next.checked_sub(1).and_then(|last| sums.get(last)) {
                Some(sum) if self.at < sum.end => {
                    within = Some(*sum);
                    until = sum.end.min(self.end);
                }
                _ => until = sums.get(next).map_or(until, |sum| sum.start.min(until)),
            }
        }
        let take = ByteRange::new(self.at, until);
        self.at = until;
        Some(StoredSegment { take, sum: within })
    }
}

/// The stored ranges of `pieces`; neighbours are merged.
pub(super) fn touching(pieces: &VecDeque<LayerPiece>) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if (run.end..run.end + JOIN_GAP_BYTES).contains(&piece.stored.start) => {
                run.end = piece.stored.end
            }
            _ => runs.push(piece.stored),
        }
    }
    runs
}
