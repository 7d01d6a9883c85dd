//! Rejection of wrong bytes before any was handed out: they are dropped, and the next reader fetches them again.
//!
//! Applies only to content that this process alone has open, and that is compared as a whole before its first byte is
//! served. No reader saw a byte, so only the waiting reader gets the error.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::block_file::BlockFile;
use super::cached::{CachedFile, ContentState};
use super::lock;
use crate::oci::Digest;

/// Pause before the third fetch of bytes that were wrong twice; it doubles with each fetch. The second fetch has no
/// pause.
const FIRST_REFETCH_PAUSE: Duration = Duration::from_secs(1);
/// Upper bound of these pauses.
const MAX_REFETCH_PAUSE: Duration = Duration::from_secs(64);

/// Number of rejections, and the time of the last one.
#[derive(Debug, Default)]
pub(super) struct RejectHistory {
    times: u32,
    last: Option<Instant>,
}

impl RejectHistory {
    fn note(&mut self) {
        self.times = self.times.saturating_add(1);
        self.last = Some(Instant::now());
    }

    /// Whether a reader may cause another fetch.
    fn allows_fetch(&self) -> bool {
        let Some(doublings) = self.times.checked_sub(2) else { return true };
        let pause = FIRST_REFETCH_PAUSE.saturating_mul(1 << doublings.min(6)).min(MAX_REFETCH_PAUSE);
        self.last.is_none_or(|last| last.elapsed() >= pause)
    }
}

impl CachedFile {
    /// Whether the latest bytes were wrong and were dropped. Reads begin anew.
    pub fn is_rejected(&self) -> bool {
        self.inner.rejected.load(Ordering::Acquire)
    }

    /// Lets the next reader fetch rejected content again. A registry that keeps sending wrong bytes gets requests
    /// less and less often: in between, readers get the error.
    pub fn try_again(&self) {
        if self.is_rejected() && lock(&self.inner.rejections).allows_fetch() {
            self.inner.rejected.store(false, Ordering::Release);
        }
    }
}

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
            "the bytes of a blob do not match its digest: none was given out, and the next read fetches them again"
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
        let (mark, before) = (self.room().map(|room| room.mark()), self.on_disk());
        let forgotten = self.sidecar.begin_anew().and_then(|()| self.data.cut());
        self.distrust();
        self.sidecar.share();
        if let (Some(room), Some(mark)) = (self.room(), mark) {
            room.give_back(before.saturating_sub(self.on_disk()), mark);
        }
        if let Err(error) = &forgotten {
            tracing::warn!(%error, map = %self.sidecar.path().display(), "wrong bytes cannot be taken away");
        }
        forgotten.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_are_fetched_again_at_once_and_then_ever_less_often() {
        let mut history = RejectHistory::default();
        history.note();
        assert!(history.allows_fetch(), "the second fetch is at once");
        history.note();
        assert!(!history.allows_fetch());
        let ago = |secs| Instant::now().checked_sub(Duration::from_secs(secs));
        history.last = ago(1);
        assert!(history.allows_fetch());
        history.times = 40;
        history.last = ago(60);
        assert!(!history.allows_fetch());
        history.last = ago(64);
        assert!(history.allows_fetch());
    }
}
