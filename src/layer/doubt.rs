//! Doubt about stored bytes that an index contradicts: they are fetched once more before the error counts.

use crate::io::{ByteRange, FaultClass, ReadAt, ReadError};

/// Stream bytes that no decoder holds back: the stored bytes of the last ones before an error are doubted.
const DOUBTED_BYTES: u64 = 4 * 1024 * 1024;

/// The stored bytes that a decoding depends on, and the refetches of them that it knows of.
#[derive(Clone, Copy)]
pub(super) struct StoredDoubt {
    /// Number of refetches of the stored bytes when it began.
    seen: usize,
    /// Whether it began again after one, and has not passed `until` since.
    is_again: bool,
    /// The stream offset behind the error.
    pub(super) until: u64,
    /// Stream and stored offset at two comparisons that passed: [`DOUBTED_BYTES`] back, and since.
    passed: [(u64, u64); 2],
}

impl StoredDoubt {
    /// For a decoding that begins now.
    pub(super) fn new<R: ReadAt + ?Sized>(blob: &R) -> Self {
        let seen = blob.refetching().map_or(0, |source| source.refetches());
        Self { seen, is_again: false, until: u64::MAX, passed: [(0, 0); 2] }
    }

    /// Decoding begins at the stream offset `at` and the stored offset `stored`.
    pub(super) fn begin(&mut self, at: u64, stored: u64) {
        self.passed = [(at, stored); 2];
    }

    /// Records that the decoder is at the stored offset `stored`, and that all stream bytes before `at` are right.
    pub(super) fn compared(&mut self, at: u64, stored: u64) {
        self.is_again &= at < self.until;
        if at >= self.passed[1].0 + DOUBTED_BYTES {
            self.passed = [self.passed[1], (at, stored)];
        }
    }

    /// The first stored byte in doubt.
    pub(super) fn from(&self) -> u64 {
        self.passed[0].1
    }

    /// Whether stored bytes were replaced between the begin of this decoding and that of `later`.
    pub(super) fn is_before(&self, later: &Self) -> bool {
        self.seen < later.seen
    }

    /// Whether decoding is to begin again after `error`, because other bytes came for `stored`.
    pub(super) async fn is_resolved<R: ReadAt + ?Sized>(
        &mut self,
        blob: &R,
        error: &ReadError,
        stored: Vec<ByteRange>,
    ) -> bool {
        let Some(source) = blob.refetching() else { return false };
        if !matches!(error.fault(), FaultClass::Malformed | FaultClass::Mismatch) {
            return false;
        }
        if self.is_again {
            source.note_vain();
            return false;
        }
        if !source.refetch(stored, self.seen).await {
            return false;
        }
        (self.seen, self.is_again) = (source.refetches(), true);
        true
    }
}
