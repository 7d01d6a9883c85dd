//! Wrong bytes of which nothing was handed out: they go, and the next reader fetches them again.
//!
//! Only of content that this process alone has open, and only where it is compared as a whole before its first byte. The idea: no
//! reader saw a byte, so no reader has to hear of it but the one that waited.

use std::sync::atomic::Ordering;

use super::blob::{Cached, Inner};
use super::lock;
use super::pair::Pair;
use crate::oci::Digest;

impl Cached {
    /// Whether the bytes that came last were wrong and are gone. Reads begin anew.
    pub fn is_rejected(&self) -> bool {
        self.inner.rejected.load(Ordering::Acquire)
    }

    /// Lets the next reader fetch what was rejected.
    pub fn try_again(&self) {
        self.inner.rejected.store(false, Ordering::Release);
    }
}

impl Inner {
    /// Forgets content that hashed to `actual`. `false` where a byte of it may have been seen.
    pub(super) fn reject(&self, pair: &Pair, actual: &Digest) -> bool {
        if !self.is_whole_first() || self.is_looked_at.load(Ordering::Acquire) || !pair.forget_all() {
            return false;
        }
        self.proof.restart();
        self.whole.store(false, Ordering::Relaxed);
        lock(&self.noted).clear();
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

impl Pair {
    /// Forgets every block and what was made of this copy. `false` when another process has it open.
    fn forget_all(&self) -> bool {
        if !self.sidecar.try_alone() {
            return false;
        }
        let (mark, before) = (self.room().map(|room| room.mark()), self.on_disk());
        let forgotten = self.sidecar.begin_anew().and_then(|()| self.data.set_len(0));
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
