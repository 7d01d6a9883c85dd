//! Eviction traits: the open content of this process, as the cache size limit sees it.

use std::sync::Arc;

/// The open files of one content, blocks of which can be evicted.
pub(super) trait EvictableFile: Send + Sync {
    /// Time of the last use: the greater, the later.
    fn last_use(&self) -> u64;

    /// Evicts blocks until `want` bytes are free, and returns the bytes freed. With `spare_recent`, blocks that were
    /// read since the last look stay, but count as not read from now on.
    fn evict(&self, want: u64, spare_recent: bool) -> u64;
}

/// One content of this process, whether its files are open or not.
pub(super) trait EvictableSlot: Send + Sync {
    /// The files, if they are open.
    fn open_file(&self) -> Option<Arc<dyn EvictableFile>>;

    /// Closes the files unless they are in use, by a thread or by a reader that has a descriptor of its own.
    fn close_idle(&self) -> bool;
}
