//! LRU cache of qcow2 tables and decompressed clusters.
//!
//! Bounded in size. A piece is produced once at a time: a second reader waits for the first. The lock is held only to
//! find the cell of a piece; the cell is filled outside the lock.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::OnceCell;

use crate::io::lock;

/// The slot of one piece; empty until it is produced.
pub(super) type CacheCell = Arc<OnceCell<Bytes>>;

/// The most recently used pieces, by key.
pub(super) struct TableCache(Mutex<LruCache<u64, CacheCell>>);

impl TableCache {
    /// A cache for as many pieces of `each` bytes as fit into `bytes`, and at least `least`.
    pub(super) fn new(bytes: usize, each: usize, least: NonZeroUsize) -> Self {
        let count = NonZeroUsize::new(bytes / each.max(1)).map_or(least, |count| count.max(least));
        Self(Mutex::new(LruCache::new(count)))
    }

    /// The cell of the piece `key`.
    pub(super) fn cell(&self, key: u64) -> CacheCell {
        lock(&self.0).get_or_insert(key, CacheCell::default).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    #[test]
    fn the_least_recently_used_piece_is_forgotten_first() {
        let kept = TableCache::new(3, 1, TWO);
        for key in [1, 2, 3, 1, 4] {
            kept.cell(key).set(Bytes::new()).ok();
        }
        let full: Vec<bool> = [1, 3, 4, 2].iter().map(|key| kept.cell(*key).get().is_some()).collect();
        assert_eq!(full, [true, true, true, false]);
    }

    #[test]
    fn pieces_larger_than_the_limit_are_kept_by_the_least_number() {
        let kept = TableCache::new(1, 2 << 20, TWO);
        for key in [1, 2] {
            kept.cell(key).set(Bytes::new()).ok();
        }
        assert!(kept.cell(1).get().is_some() && kept.cell(2).get().is_some());
    }
}
