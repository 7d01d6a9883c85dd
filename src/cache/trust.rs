//! Trust of a process in blocks that it saw hash to their records.

use std::collections::{HashMap, HashSet};

/// Knowledge of this process about blocks, beyond the records.
#[derive(Default)]
pub(super) struct VerifiedBlocks {
    /// Blocks that hashed to their records.
    pub(super) proven: SparseBitmap,
    /// Blocks that were read since the last search for blocks to evict.
    pub(super) recent: SparseBitmap,
    /// Blocks whose record is right but whose data is not.
    pub(super) damaged: HashSet<u64>,
    /// Counts evictions by this process. Bytes that were read while it changed may be the zeros of a hole.
    pub(super) evictions: u64,
}

/// One bit per block, in words of 64 that exist only where a bit is set. The size of the content is a claim of a
/// manifest, so memory must not depend on it.
#[derive(Default)]
pub(super) struct SparseBitmap(HashMap<u64, u64>);

impl SparseBitmap {
    pub(super) fn contains(&self, block: u64) -> bool {
        self.0.get(&(block / 64)).is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    pub(super) fn insert(&mut self, block: u64) {
        *self.0.entry(block / 64).or_default() |= 1 << (block % 64);
    }

    pub(super) fn remove(&mut self, block: u64) {
        if let Some(word) = self.0.get_mut(&(block / 64)) {
            *word &= !(1 << (block % 64));
        }
    }
}

impl VerifiedBlocks {
    /// Clears the mark that the block was read lately, and returns its old value.
    pub(super) fn remove_recent(&mut self, block: u64) -> bool {
        let was = self.recent.contains(block);
        self.recent.remove(block);
        was
    }

    /// Drops the trust in a block before its eviction. A concurrent reader notices that after its read.
    pub(super) fn forget(&mut self, block: u64) {
        self.evictions += 1;
        self.proven.remove(block);
        self.recent.remove(block);
    }
}
