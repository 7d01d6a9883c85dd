//! Memory cache: verified small blobs where the disk stores none.

use std::num::NonZeroUsize;

use bytes::Bytes;
use lru::LruCache;

use super::lock;
use crate::oci::Digest;

/// Number of small blobs held in memory where the disk stores none: 64 MiB at most.
const SHELF: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Verified small blobs that could not be stored on disk.
pub(super) struct MemoryCache(std::sync::Mutex<LruCache<Digest, Bytes>>);

impl Default for MemoryCache {
    fn default() -> Self {
        Self(std::sync::Mutex::new(LruCache::new(SHELF)))
    }
}

impl MemoryCache {
    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        lock(&self.0).get(digest).cloned()
    }

    pub(super) fn put(&self, digest: &Digest, bytes: Bytes) {
        lock(&self.0).put(digest.clone(), bytes);
    }
}
