//! Cache of open files for mounts without FUSE_OPEN.
//!
//! Where no file needs work at open, the kernel is informed once and saves two requests for every file. A read then
//! names only the inode, so the last files that were read stay in this cache.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use lru::LruCache;

use crate::io::{SharedReader, lock};

/// Files in the cache. An entry is a few words; reopening a file takes some hundred nanoseconds.
const OPEN_FILE_CAPACITY: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Files by inode number.
pub(super) struct OpenFileCache(Mutex<LruCache<u64, SharedReader>>);

impl Default for OpenFileCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(OPEN_FILE_CAPACITY)))
    }
}

impl OpenFileCache {
    /// The file, if it was read recently.
    pub(super) fn get(&self, inode: u64) -> Option<SharedReader> {
        lock(&self.0).get(&inode).cloned()
    }

    /// Inserts the file.
    pub(super) fn put(&self, inode: u64, bytes: SharedReader) {
        // The evicted file is dropped outside the lock: it may be the last user of a cached blob, which closes files.
        let dropped = lock(&self.0).push(inode, bytes);
        drop(dropped);
    }
}
