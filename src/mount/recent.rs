//! The files that are read in a mount whose kernel never asks to open one.
//!
//! The idea: where no file needs anything at its opening, the kernel is told so once and then spares two requests for every
//! file; a read names only the inode, and the last ones that were read are kept at hand.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::io::Shared;

/// How many files are kept at hand. One is a few words; who opens it again pays some hundred nanoseconds.
const KEPT: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Files by inode number.
pub(super) struct Recent(Mutex<LruCache<u64, Shared>>);

impl Default for Recent {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }
}

impl Recent {
    /// The file, if it was read lately.
    pub(super) fn get(&self, inode: u64) -> Option<Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&inode).cloned()
    }

    /// Keeps the file at hand.
    pub(super) fn put(&self, inode: u64, bytes: Shared) {
        // What falls out is dropped outside of the lock: it may be the last user of a cached blob, whose end closes files.
        let dropped = self.0.lock().unwrap_or_else(PoisonError::into_inner).push(inode, bytes);
        drop(dropped);
    }
}
