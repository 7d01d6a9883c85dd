//! Block arrival: stores a fetched block, answers its waiters, and settles the consequences.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::block_file::StoreError;
use super::content_state::ContentState;
use super::lock;
use super::sidecar::{ContentKind, VerificationState};
use super::verification::{SOON, StoredBlock};

impl ContentState {
    /// Stores a block that arrived (if `right` allows), answers its waiters, and settles the consequences. Runs on a
    /// blocking thread, because a write can wait for the disk without a bound.
    pub(super) fn accept<R>(&self, block: u64, bytes: &Bytes, right: Option<R>) {
        let storing = StoredBlock::begin(&self.storing);
        let mut outcome = self.refuse_poisoned();
        let mut kept = None;
        let pair = self.pair();
        let is_stored = pair.is_some() && right.is_some();
        let sum = (is_stored || self.kind == ContentKind::Blob).then(|| blake3::hash(bytes).into());
        if let (Some(sum), ContentKind::Blob) = (&sum, self.kind) {
            outcome = outcome.and_then(|()| self.compare_earlier(block, sum));
        }
        if let (Some(pair), ContentKind::Blob, Ok(())) = (&pair, self.kind, &outcome)
            && pair.has_lost(block, bytes)
        {
            self.replace_copy(block, pair);
        }
        if let (Some(pair), Some(sum)) = (pair, sum)
            && right.is_some()
            && outcome.is_ok()
        {
            match pair.store(block, bytes, &sum) {
                Ok(()) => kept = Some((pair, sum)),
                Err(StoreError::Poisoned) => outcome = self.refuse_poisoned(),
                Err(StoreError::Contradicts) => outcome = Err(self.contradicted(block)),
                // Its copy was replaced above, or is by another thread.
                Err(StoreError::Unproven) => {}
                Err(StoreError::NoRoom) => {
                    tracing::debug!(block, digest = %self.digest, "the cache has no room for a block")
                }
                Err(StoreError::Disk(error)) => self.warn_once(&error),
            }
        }
        if let (Some(sum), ContentKind::Blob, None, Ok(())) = (sum, self.kind, &kept, &outcome) {
            self.note(block, sum);
        }
        // Before the answer: the next read in this process may claim the block again.
        drop(right);
        let mut concluded = false;
        // The last block does not wait until a large rest is hashed.
        let late = self.kind == ContentKind::Blob && self.proof.lag() > SOON;
        if late {
            lock(&self.flights).land(block, outcome.clone().map(|()| bytes.clone()));
        }
        let complete = kept.as_ref().map(|(pair, _)| pair).filter(|pair| self.proof.all_recorded(pair));
        if let Some(pair) = complete {
            self.whole.store(true, Ordering::Relaxed);
            match self.kind {
                ContentKind::Stream | ContentKind::Claim => self.advance(pair, VerificationState::Complete),
                ContentKind::Blob if self.state() == VerificationState::Verified => {}
                ContentKind::Blob => {
                    self.advance(pair, VerificationState::Complete);
                    concluded = self.conclude(pair);
                    outcome = outcome.and_then(|()| self.refuse_poisoned());
                }
            }
        }
        if !late {
            lock(&self.flights).land(block, outcome.map(|()| bytes.clone()));
        }
        drop(storing);
        match (&kept, complete) {
            (Some((pair, _)), Some(_)) if concluded => self.proof.persist(pair),
            (Some((pair, sum)), None) if self.kind == ContentKind::Blob => {
                self.proof.follow(pair, block, bytes, sum)
            }
            _ => {}
        }
    }
}
