//! Reads of present blocks, from the block file or its verified local source.

use crate::io::ByteRange;

use super::content_state::ContentState;
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT};
use super::wait::waiting;

impl ContentState {
    /// Fills the parts of `buf` that are on disk and names the blocks that are not; `None` when more than `checks` blocks
    /// would have to be hashed first.
    pub(super) fn read_from_disk(&self, range: ByteRange, buf: &mut [u8], checks: usize) -> Option<Vec<u64>> {
        let blocks = range.blocks(BLOCK_SHIFT);
        let Some(pair) = self.pair() else { return Some(blocks.collect()) };
        let doubtful = pair.doubtful(blocks.clone());
        if doubtful == 0 && pair.read_trusted(range.start, buf) {
            return Some(Vec::new());
        }
        if doubtful > checks {
            return None;
        }
        let mut missing = Vec::new();
        for block in blocks {
            let len = self.proof.len(block);
            let here = ByteRange::at(block * BLOCK_BYTES, u64::from(len));
            let part = here.intersect(range);
            // Differences inside a buffer and a block, which are in memory.
            let target = &mut buf[(part.start - range.start) as usize..(part.end - range.start) as usize];
            if pair.read_trusted(part.start, target) {
                continue;
            }
            match pair.load(block, len) {
                Some((bytes, _)) => target.copy_from_slice(
                    &bytes[(part.start - here.start) as usize..(part.end - here.start) as usize],
                ),
                None => missing.push(block),
            }
        }
        Some(missing)
    }

    /// The same, however many blocks have to be hashed: then the other tasks of this thread are served by another one.
    pub(super) fn read_or_hash(&self, range: ByteRange, buf: &mut [u8]) -> Vec<u64> {
        match self.read_from_disk(range, buf, 0) {
            Some(missing) => missing,
            None => waiting(|| self.read_from_disk(range, buf, usize::MAX)).unwrap_or_default(),
        }
    }
}
