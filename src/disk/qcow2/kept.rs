//! Pieces of bytes that are kept while they are used: tables, and clusters that were decompressed.
//!
//! Never holds more than it was made for, and never makes a piece twice at once: who comes second waits for the first. The
//! idea: the lock is held only to find a piece's cell, the cell is filled outside of it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::OnceCell;

/// The place of one piece; empty until somebody made it.
pub(super) type Cell = Arc<OnceCell<Bytes>>;

/// The pieces that were used last, by a number that names them.
pub(super) struct Kept(Mutex<LruCache<u64, Cell>>);

impl Kept {
    /// Keeps as many pieces of `each` bytes as fit into `bytes`, and at least `least`.
    pub(super) fn new(bytes: usize, each: usize, least: NonZeroUsize) -> Self {
        let count = NonZeroUsize::new(bytes / each.max(1)).map_or(least, |count| count.max(least));
        Self(Mutex::new(LruCache::new(count)))
    }

    /// The cell of the piece `key`.
    pub(super) fn cell(&self, key: u64) -> Cell {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(key, Cell::default).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    #[test]
    fn the_least_recently_used_piece_is_forgotten_first() {
        let kept = Kept::new(3, 1, TWO);
        for key in [1, 2, 3, 1, 4] {
            kept.cell(key).set(Bytes::new()).ok();
        }
        let full: Vec<bool> = [1, 3, 4, 2].iter().map(|key| kept.cell(*key).get().is_some()).collect();
        assert_eq!(full, [true, true, true, false]);
    }

    #[test]
    fn pieces_larger_than_the_limit_are_kept_by_the_least_number() {
        let kept = Kept::new(1, 2 << 20, TWO);
        for key in [1, 2] {
            kept.cell(key).set(Bytes::new()).ok();
        }
        assert!(kept.cell(1).get().is_some() && kept.cell(2).get().is_some());
    }
}
