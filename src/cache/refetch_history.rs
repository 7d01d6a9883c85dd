//! The refetches of one content, and their results.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::lock;
use crate::io::ByteRange;

#[derive(Default)]
pub(super) struct RefetchHistory {
    /// Guard: one refetch at a time, whose result the others use.
    pub(super) running: tokio::sync::Mutex<()>,
    /// The ranges that came differently.
    pub(super) replaced: Mutex<Vec<ByteRange>>,
    /// Refetches that brought no right bytes.
    pub(super) vain: AtomicU32,
}

impl RefetchHistory {
    /// Number of refetches that replaced bytes.
    pub(super) fn len(&self) -> usize {
        lock(&self.replaced).len()
    }

    pub(super) fn note_vain(&self) {
        self.vain.fetch_add(1, Ordering::Relaxed);
    }
}
