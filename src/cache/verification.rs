//! Verification state of content, and the consequences of its comparison with the digest.
//!
//! Results of this process count at once. Results on disk count for every process, and each look at the disk finds
//! those of other processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::blob_hasher::DigestVerdict;
use super::block_file::BlockFile;
use super::content_state::ContentState;
use super::lock;
use super::sidecar::{BlockChecksum, ContentKind, VerificationState};
use super::wait::blocking;
use crate::io::{FaultClass, ReadError};
use crate::oci::Digest;

/// Bytes that are hashed while a reader waits: less than a tenth of a second of one core.
pub(super) const SOON: u64 = 64 << 20;

impl ContentState {
    /// Whether all blocks of a blob are stored, it was not compared with its digest, and little is left to hash.
    pub(super) fn is_undecided(&self) -> Result<bool, ReadError> {
        // Before the state: a store that ended has changed it.
        let is_storing = self.storing.load(Ordering::Acquire) > 0;
        let state = self.sound_state()?;
        Ok(self.kind == ContentKind::Blob
            && (state == VerificationState::Complete || is_storing && state == VerificationState::Partial)
            && self.proof.lag() <= SOON
            && self.pair().is_some_and(|pair| self.proof.all_recorded(&pair)))
    }

    /// Finds out what other processes left: only content that is complete and was not compared yet stays unsettled.
    pub(super) fn settle_at_open(&self) {
        let settled = match (&self.pair(), self.kind) {
            (_, ContentKind::Blob) if self.size == 0 => {
                self.settle_empty();
                true
            }
            (Some(pair), ContentKind::Blob) => {
                let state = self.state();
                self.whole.store(state == VerificationState::Verified, Ordering::Relaxed);
                state == VerificationState::Verified
                    || state == VerificationState::Poisoned
                    || !self.proof.all_recorded(pair)
            }
            (Some(pair), ContentKind::Stream | ContentKind::Claim) => {
                if self.proof.all_recorded(pair) {
                    self.whole.store(true, Ordering::Relaxed);
                    self.advance(pair, VerificationState::Complete);
                }
                true
            }
            // What lies elsewhere on this machine is found when it is first read.
            (None, _) => self.seat.is_chosen(),
        };
        if settled && self.settled.set(()).is_err() {
            // A new cell is empty.
            tracing::debug!("settled twice");
        }
        if let Some(pair) = self.pair() {
            pair.record_last_use();
        }
    }

    /// Empty content matches its digest or does not: no byte has to be waited for.
    fn settle_empty(&self) {
        match self.digest.same_algorithm(b"") {
            Some(actual) if actual != self.digest => self.poison(&actual),
            _ => {
                self.notify(VerificationState::Verified);
                if let Some(pair) = self.pair() {
                    pair.set_proven(VerificationState::Verified);
                    self.proof.persist(&pair);
                }
            }
        }
    }

    /// Compares content that another process completed but did not compare.
    pub(super) async fn settle(self: &Arc<Self>) -> Result<(), ReadError> {
        self.choose_seat().await;
        let settled = self.settled.get_or_try_init(|| {
            let inner = Arc::clone(self);
            blocking(&self.digest, move || {
                if let Some(pair) = inner.pair()
                    && inner.conclude(&pair)
                {
                    inner.proof.persist(&pair);
                }
            })
        });
        settled.await?;
        self.refuse_poisoned()
    }

    pub(super) fn state(&self) -> VerificationState {
        if self.poisoned.load(Ordering::Acquire) || self.rejected.load(Ordering::Acquire) {
            return VerificationState::Poisoned;
        }
        let pair = self.pair();
        let status = pair.as_ref().and_then(|pair| pair.sidecar.status());
        let state = match status.map(|status| status.state) {
            Some(VerificationState::Poisoned) => VerificationState::Poisoned,
            // An empty blob that is not poisoned has nothing to prove.
            _ if self.size == 0 && self.kind == ContentKind::Blob => VerificationState::Verified,
            _ if pair.is_some_and(|pair| pair.is_proven()) => VerificationState::Verified,
            Some(state) => state,
            None => VerificationState::Partial,
        };
        if matches!(state, VerificationState::Verified | VerificationState::Poisoned) {
            self.notify(state);
        }
        state
    }

    /// Wakes the waiters for the comparison with the digest.
    fn notify(&self, state: VerificationState) {
        if !self.notified.load(Ordering::Acquire) {
            self.verdict.send_replace(Some(state));
            self.notified.store(true, Ordering::Release);
            if state == VerificationState::Poisoned {
                // Fails only without a receiver.
                self.distrusted.send(self.digest.clone()).ok();
            }
        }
    }

    pub(super) fn refuse_poisoned(&self) -> Result<(), ReadError> {
        self.sound_state().map(drop)
    }

    /// The state, which is an error where nothing may be read.
    fn sound_state(&self) -> Result<VerificationState, ReadError> {
        let state = self.state();
        if state != VerificationState::Poisoned {
            return Ok(state);
        }
        if !self.rejected.load(Ordering::Acquire) {
            self.poisoned.store(true, Ordering::Release);
        }
        Err(ReadError::new(
            FaultClass::Mismatch,
            format!("{} is poisoned: its bytes were not those of its digest", self.digest),
        ))
    }

    /// Makes every later read of this content fail: all of it hashed to `actual`.
    pub(super) fn poison(&self, actual: &Digest) {
        self.give_up(|| {
            tracing::error!(
                expected = %self.digest,
                %actual,
                "blob does not match its digest; further reads of it fail"
            );
        });
    }

    /// Compares a block of a blob that arrived with its earlier checksum, whether or not the block was stored.
    /// Otherwise facts derived from an evicted block would be trusted for its replacement.
    pub(super) fn compare_earlier(&self, block: u64, sum: &BlockChecksum) -> Result<(), ReadError> {
        let noted = lock(&self.noted).get(&block).copied();
        let recorded = || self.pair()?.known_sum(block, self.proof.len(block));
        match noted.or_else(recorded) {
            Some(earlier) if earlier != *sum => Err(self.contradicted(block)),
            Some(_) | None => Ok(()),
        }
    }

    /// Records the checksum of a block that is handed out and is not on disk.
    pub(super) fn note(&self, block: u64, sum: BlockChecksum) {
        let noted = |pair: &Arc<BlockFile>| pair.note_known(block, self.proof.len(block), &sum);
        if !self.pair().as_ref().is_some_and(noted) {
            lock(&self.noted).insert(block, sum);
        }
    }

    /// A block arrived twice with different bytes. In a verified blob the second ones are wrong; otherwise either may
    /// be.
    pub(super) fn contradicted(&self, block: u64) -> ReadError {
        let digest = &self.digest;
        let message = match (self.kind, self.state()) {
            (ContentKind::Blob, VerificationState::Verified) => {
                format!("block {block} of {digest} differs from the block that was verified before")
            }
            (ContentKind::Blob, _) => {
                self.give_up(|| {
                    tracing::error!(
                        %digest,
                        block,
                        "block was received twice with different bytes; further reads of its blob fail"
                    );
                });
                format!("block {block} of {digest} was received twice with different bytes")
            }
            (ContentKind::Stream | ContentKind::Claim, _) => {
                format!("block {block} of the decoded stream of {digest} differs from its first decoding")
            }
        };
        ReadError::new(FaultClass::Mismatch, message)
    }

    /// A delivery that cannot all belong to the blob: none of it stays.
    pub(super) fn give_up_misdelivered(&self, error: &ReadError) {
        if self.kind != ContentKind::Blob || self.state() == VerificationState::Verified {
            return;
        }
        self.give_up(|| {
            let error = error.chain();
            tracing::error!(digest = %self.digest, error, "blob was delivered wrongly; further reads of it fail");
        });
    }

    fn give_up(&self, log: impl FnOnce()) {
        if self.poisoned.swap(true, Ordering::AcqRel) {
            return;
        }
        self.notify(VerificationState::Poisoned);
        log();
        self.derived.forget(&self.digest);
        if let Some(pair) = self.pair()
            && let Err(error) = pair.poison()
        {
            let error = ReadError::from(error).chain();
            tracing::warn!(digest = %self.digest, error, "cannot record that a blob is poisoned");
        }
    }

    /// Compares the whole content, all of which is recorded, with its digest. `true` when equal.
    pub(super) fn conclude(&self, pair: &BlockFile) -> bool {
        match self.proof.conclude(pair) {
            DigestVerdict::Digest(actual) if actual == self.digest => {
                pair.set_proven(VerificationState::Verified);
                self.notify(VerificationState::Verified);
                true
            }
            DigestVerdict::Digest(actual) => {
                if !self.reject(pair, &actual) {
                    self.poison(&actual);
                }
                false
            }
            DigestVerdict::Missing => {
                self.advance(pair, VerificationState::Partial);
                false
            }
        }
    }

    pub(super) fn advance(&self, pair: &BlockFile, next: VerificationState) {
        if let Err(error) = pair.sidecar.advance(next) {
            let error = ReadError::from(error).chain();
            tracing::debug!(digest = %self.digest, error, "cannot change the state");
        }
    }
}

/// A block between its store and what follows from it.
pub(super) struct StoredBlock<'a>(&'a AtomicUsize);

impl<'a> StoredBlock<'a> {
    /// Counts in `storing`, before the block can be read: a reader that sees the block sees the count too, or what came out.
    pub(super) fn begin(storing: &'a AtomicUsize) -> Self {
        storing.fetch_add(1, Ordering::AcqRel);
        Self(storing)
    }
}

impl Drop for StoredBlock<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
