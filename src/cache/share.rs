//! Use locks of content: shared by all processes that trust blocks of it, exclusive for one that evicts some.
//!
//! An open-file-description lock that cannot become a write lock stays a read lock, so a failed evictor loses no
//! safety. A flock would be lost (flock(2)), so it is not converted while its holder trusts blocks.

use std::time::Instant;

use super::CacheError;
use super::lock::{LockBackoff, try_alone, try_lock_byte, try_share_byte, try_shared, unlock_byte};
use super::sidecar::{OLD_USE_AT, STATUS_PATIENCE, SidecarAccess, SidecarFile, USE_LOCK, read_fully};

impl SidecarFile {
    /// Whether a program that holds only the flock ever had this content open. It may lose that lock and still trust
    /// the blocks that it read, so single blocks of such content are not evicted. It writes this mark before it
    /// trusts its first block.
    pub(super) fn is_of_older(&self) -> bool {
        let mut bytes = [0; 8];
        !read_fully(&self.file, &mut bytes, OLD_USE_AT) || bytes != [0; 8]
    }

    /// Tries to become the only process that has this content open. On failure the content stays shared, and the
    /// trust of this process stays valid. On success no other process can open it before [`share`](Self::share).
    pub(super) fn try_alone(&self) -> bool {
        if self.access == SidecarAccess::Read || self.is_of_older() {
            return false;
        }
        try_lock_byte(&self.file, USE_LOCK).unwrap_or_else(|error| {
            tracing::debug!(%error, path = %self.path.display(), "cannot lock a file of the cache");
            false
        })
    }

    /// Lets other processes open the content again.
    pub(super) fn share(&self) {
        // A write lock becomes a read lock without waiting. If the kernel lacks memory for that the write lock stays,
        // and other processes go on without this content.
        if let Err(error) = try_share_byte(&self.file, USE_LOCK) {
            tracing::warn!(%error, path = %self.path.display(), "cannot share a file of the cache again");
        }
    }

    /// Joins the users of a sidecar that was opened by [`existing`](Self::existing). `false` when it is being
    /// removed, or when another process evicts from it for too long.
    pub(super) fn join(&self) -> Result<bool, CacheError> {
        let fail = |error| CacheError::io("lock", &self.path, error);
        let deadline = Instant::now() + STATUS_PATIENCE;
        let mut backoff = LockBackoff::new();
        loop {
            if !try_shared(&self.file, &self.path)? {
                return Ok(false);
            }
            if try_share_byte(&self.file, USE_LOCK).map_err(fail)? {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(backoff.next());
        }
    }

    /// Stops being a user, and takes the content exclusively if it has no other user, of any program version. Blocks
    /// that were read before must not be trusted afterwards. [`join`](Self::join) ends it.
    pub(super) fn leave_for_alone(&self) -> Result<bool, CacheError> {
        let fail = |error| CacheError::io("lock", &self.path, error);
        unlock_byte(&self.file, USE_LOCK);
        self.file.unlock().map_err(fail)?;
        Ok(try_alone(&self.file, &self.path)? && try_lock_byte(&self.file, USE_LOCK).map_err(fail)?)
    }
}
