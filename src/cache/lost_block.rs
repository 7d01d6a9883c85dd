//! Lost blocks: a verified copy that lost the data and the checksum of a block takes no other bytes for it.
//!
//! Every origin reads a verified copy, and a block that arrives is proven by its checksum alone. Without
//! one, the copy loses its name, and the origin of the reader fills and verifies a copy of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::block_data::{PAGE, is_zero};
use super::block_file::{BlockFile, StoreError, StoreOutcome};
use super::content_state::ContentState;
use super::files::BlockPaths;
use super::sidecar::{BLOCK_BYTES, BlockChecksum};

impl ContentState {
    /// Begins the content anew, in files of its own origin: the verified copy lost the data and the checksum of
    /// `block`, so other origins must not read the bytes that arrived for it.
    pub(super) fn replace_copy(&self, block: u64, damaged: &Arc<BlockFile>) {
        if !self.seat.get().is_some_and(|slot| slot.replace(damaged)) {
            return;
        }
        tracing::warn!(
            digest = %self.digest,
            block,
            "a verified blob lost a block and its checksum; it is verified anew"
        );
        self.proof.restart();
        self.whole.store(false, Ordering::Relaxed);
        self.verdict.send_replace(None);
        self.notified.store(false, Ordering::Release);
    }
}

impl BlockFile {
    /// Stores a block of a verified copy that lost the record of it. Other origins trust the copy, so only bytes equal
    /// to the data on disk count. That data stays as it is: the kernel may be reading it (passthrough).
    pub(super) fn put_lost(
        &self,
        block: u64,
        bytes: &[u8],
        sum: &BlockChecksum,
    ) -> Result<StoreOutcome, StoreError> {
        if !self.is_on_disk(block, bytes) {
            return Err(StoreError::Unproven);
        }
        // A block is at most 256 KiB long.
        self.sidecar.put_record(block, bytes.len() as u32, sum).map_err(StoreError::Disk)?;
        self.set_trusted(block);
        Ok(StoreOutcome::There)
    }

    /// Whether the copy was verified and has lost the checksum of `block`, so that nothing proves `bytes` for it.
    pub(super) fn has_lost(&self, block: u64, bytes: &[u8]) -> bool {
        let was_verified = || self.was_verified.load(Ordering::Acquire) || self.sidecar.is_verified();
        !self.is_local()
            && self.sidecar.record(block).is_none()
            && was_verified()
            && !self.is_on_disk(block, bytes)
    }

    /// Whether the data of the block equals `bytes`, which are no zeros: lost data often reads as zeros.
    fn is_on_disk(&self, block: u64, bytes: &[u8]) -> bool {
        !bytes.chunks(PAGE).any(is_zero) && self.data.holds(block * BLOCK_BYTES, bytes)
    }

    /// Removes the names of a copy that cannot be repaired; `false` where one stays. Processes that have it open keep
    /// it.
    pub(super) fn retire(&self) -> bool {
        let Some(room) = self.room.as_ref() else { return false };
        let removal = room.begin_removal(self.on_disk());
        let own = BlockPaths::of(self.data_path.clone());
        let (mut freed, mut is_gone) = (0, true);
        for files in [Some(&own), self.promotion.as_ref().map(|(_, to)| to)].into_iter().flatten() {
            match self.discard(files) {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    tracing::warn!(%error, map = %files.map.display(), "cannot remove a damaged copy");
                    is_gone = false;
                }
            }
        }
        removal.finish(freed);
        is_gone
    }
}
