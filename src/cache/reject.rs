//! Rejection of wrong bytes before any was handed out: they are dropped, and the next reader fetches them again.
//!
//! Applies only to content that this process alone has open, and that is compared as a whole before its first byte is
//! served. No reader saw a byte, so only the waiting reader gets the error.

use std::sync::atomic::Ordering;

use super::block_file::BlockFile;
use super::content_state::ContentState;
use super::lock;
use crate::oci::Digest;

impl ContentState {
    /// Drops content that hashed to `actual`. `false` where a byte of it may have been seen.
    pub(super) fn reject(&self, pair: &BlockFile, actual: &Digest) -> bool {
        if !self.is_whole_first() || self.is_looked_at.load(Ordering::Acquire) || !pair.forget_all() {
            return false;
        }
        self.proof.restart();
        self.whole.store(false, Ordering::Relaxed);
        lock(&self.noted).clear();
        lock(&self.rejections).note();
        self.rejected.store(true, Ordering::Release);
        self.derived.forget(&self.digest);
        tracing::error!(
            expected = %self.digest,
            %actual,
            "blob does not match its digest; no byte was served, the next read fetches it again"
        );
        true
    }
}

impl BlockFile {
    /// Drops all blocks and the copy number, and with it the files derived from this copy. `false` when another
    /// process has it open.
    fn forget_all(&self) -> bool {
        if !self.sidecar.try_alone() {
            return false;
        }
        let before = self.on_disk();
        let removal = self.room().map(|room| room.begin_removal(before));
        let forgotten = self.sidecar.begin_anew().and_then(|()| self.data.cut());
        self.distrust();
        self.sidecar.share();
        if let Some(removal) = removal {
            removal.finish(before.saturating_sub(self.on_disk()));
        }
        if let Err(error) = &forgotten {
            tracing::warn!(%error, map = %self.sidecar.path().display(), "cannot remove wrong bytes");
        }
        forgotten.is_ok()
    }
}
