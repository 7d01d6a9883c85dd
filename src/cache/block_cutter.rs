//! Block cutter: cuts a delivery of any range into whole blocks.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT};
use crate::io::ByteRange;

/// The blocks that `range` covers from their first to their last byte.
pub(super) fn whole_blocks(range: ByteRange, size: u64) -> Range<u64> {
    let start = range.start.div_ceil(BLOCK_BYTES);
    let end = if range.end == size { size.div_ceil(BLOCK_BYTES) } else { range.end >> BLOCK_SHIFT };
    start..end.max(start)
}

/// Cuts a delivery into whole blocks.
pub(super) struct BlockCutter {
    at: u64,
    range: ByteRange,
    /// Blocks to come out. Invariant: `block_start(whole.start) <= at` once the first of them has begun.
    whole: Range<u64>,
    size: u64,
    partial: BytesMut,
}

impl BlockCutter {
    pub(super) fn new(range: ByteRange, size: u64) -> Self {
        Self { at: range.start, range, whole: whole_blocks(range, size), size, partial: BytesMut::new() }
    }

    /// Bytes of the delivery that are still to come.
    pub(super) fn missing(&self) -> u64 {
        self.range.end - self.at
    }

    /// Takes bytes off the front of `chunk` (not empty), up to the end of a block. Returns the block if that
    /// completes it and it does not end the delivery.
    pub(super) fn cut(&mut self, chunk: &mut Bytes) -> Option<(u64, Bytes)> {
        let block = self.at >> BLOCK_SHIFT;
        let end = ((block + 1) * BLOCK_BYTES).min(self.size);
        // Not longer than the chunk, which is in memory.
        let take = (end - self.at).min(chunk.len() as u64) as usize;
        let head = chunk.split_to(take);
        self.at += take as u64;
        if !self.whole.contains(&block) {
            return None;
        }
        if self.partial.capacity() == 0 {
            self.partial.reserve(BLOCK_BYTES as usize);
        }
        self.partial.extend_from_slice(&head);
        (self.at == end && self.at < self.range.end).then(|| (block, self.partial.split().freeze()))
    }

    /// The last block, when the delivery ends with a whole one; `Err` is the offset of an early end.
    pub(super) fn finish(self) -> Result<Option<(u64, Bytes)>, u64> {
        if self.at < self.range.end {
            return Err(self.at);
        }
        let last = (self.at.saturating_sub(1)) >> BLOCK_SHIFT;
        Ok((self.whole.contains(&last) && !self.partial.is_empty()).then(|| (last, self.partial.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_all(range: ByteRange, size: u64, chunk: usize) -> Vec<(u64, Vec<u8>)> {
        let content: Vec<u8> = (0..size).map(|i| (i / 1000) as u8).collect();
        let mut cutter = BlockCutter::new(range, size);
        let mut out = Vec::new();
        for piece in content[range.start as usize..range.end as usize].chunks(chunk) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                out.extend(cutter.cut(&mut piece));
            }
        }
        out.extend(cutter.finish().unwrap());
        for (block, bytes) in &out {
            let start = (block * BLOCK_BYTES) as usize;
            assert_eq!(bytes[..], content[start..(start + BLOCK_BYTES as usize).min(content.len())]);
        }
        out.into_iter().map(|(block, bytes)| (block, bytes.to_vec())).collect()
    }

    #[test]
    fn only_whole_blocks_are_cut_out_of_a_delivery() {
        let size = 3 * BLOCK_BYTES + 100;
        let blocks = |range, chunk| cut_all(range, size, chunk).iter().map(|one| one.0).collect::<Vec<_>>();
        for chunk in [1 << 20, 1 << 16, 100_003, 262_144] {
            assert_eq!(blocks(ByteRange::new(0, size), chunk), [0, 1, 2, 3]);
            assert_eq!(blocks(ByteRange::new(1, size), chunk), [1, 2, 3]);
            assert_eq!(blocks(ByteRange::new(0, size - 1), chunk), [0, 1, 2]);
            assert_eq!(blocks(ByteRange::new(BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1), chunk), [1]);
            assert_eq!(blocks(ByteRange::new(5, BLOCK_BYTES - 5), chunk), [0u64; 0]);
        }
    }
}
