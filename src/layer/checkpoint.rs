//! Gzip checkpoints: the last deflate block at or before each multiple of 1 MiB, found while a layer is decoded.
//!
//! Stopping at every deflate block would cost a tenth of the decoder's speed. So the decoder stops at blocks only
//! shortly before a multiple, or after one as long as no block has started. A start just before a multiple serves
//! reads of cache blocks without waste, because they start at multiples too. At most one checkpoint at a time is
//! incomplete.

use super::codec::{CodecError, StopPolicy, UnitDecoder};
use super::packed_window::WINDOW;
use super::span::{MIN_SPAN, ResumePoint, SpanStart};
use super::window_pruning::{DecodeState, FOLLOWING, pack};

/// Stream bytes between checkpoints. An index of this density takes 0.6 % of the stored bytes, and a random read
/// costs a millisecond (measured on /usr of a distribution).
const SPACING: u64 = 1024 * 1024;

/// Start of the search, in stream bytes before a multiple: three times the block that common encoders write.
const ZONE: u64 = 128 * 1024;

/// Minimum stream bytes between two candidates: a hostile encoder could start a block with every byte.
const APART: u64 = 8 * 1024;

/// A checkpoint with the bytes needed to pack its window.
pub(super) struct FoundCheckpoint {
    stored: u64,
    stream: u64,
    bits: u8,
    window: Vec<u8>,
    /// Stored bytes from the checkpoint on, including the byte before if it is shared.
    following: Vec<u8>,
}

impl FoundCheckpoint {
    /// Packs the window. This takes as long as decoding 100 KiB.
    pub(super) fn settle(self) -> SpanStart {
        let following = DecodeState { data: &self.following, bits: self.bits };
        let window = pack(self.window, following);
        SpanStart {
            stored: self.stored,
            stream: self.stream,
            resume: ResumePoint::Block { bits: self.bits, window },
        }
    }
}

/// Plans the steps of a decoder, and selects checkpoints from its stops.
pub(super) struct CheckpointFinder {
    /// The multiple that the next checkpoint belongs to.
    next: u64,
    /// Stream offsets of the start of the last span, and of the current unit.
    last: u64,
    unit: u64,
    /// The last block so far at or before `next`.
    candidate: Option<FoundCheckpoint>,
    /// The selected checkpoint, which still lacks some of the bytes that follow it.
    chosen: Option<FoundCheckpoint>,
}

impl CheckpointFinder {
    /// At the start of the stream.
    pub(super) fn new() -> Self {
        Self { next: SPACING, last: 0, unit: 0, candidate: None, chosen: None }
    }

    /// The maximum stream bytes of the next step from `at`, and the stops of that step.
    pub(super) fn plan(&self, at: u64) -> (u64, StopPolicy) {
        let zone = self.next - ZONE;
        if at < zone {
            (zone - at, StopPolicy::Units)
        } else if at <= self.next {
            // One byte more than to the multiple: a block that starts at the multiple is found before that byte.
            (self.next - at + 1, StopPolicy::Blocks)
        } else {
            (u64::MAX, StopPolicy::Blocks)
        }
    }

    /// Records a step that consumed the stored bytes `taken` and ended at stream offset `at`. Returns a checkpoint
    /// once it has all its bytes. Offsets of checkpoints and of units that start a span increase.
    pub(super) fn note(
        &mut self,
        decoder: &mut UnitDecoder,
        taken: &[u8],
        at: u64,
    ) -> Result<Option<FoundCheckpoint>, CodecError> {
        for found in self.candidate.iter_mut().chain(&mut self.chosen) {
            let more = FOLLOWING.saturating_sub(found.following.len()).min(taken.len());
            found.following.extend_from_slice(&taken[..more]);
        }
        if decoder.at_unit() && !taken.is_empty() {
            return Ok(self.end_unit(at));
        }
        if let Some((bits, byte)) = decoder.at_block()
            && self.wants(at)
        {
            let shared = (bits > 0).then_some(byte);
            let (stored, window) = (decoder.offset(), decoder.window()?);
            let following = shared.into_iter().collect();
            self.candidate = Some(FoundCheckpoint { stored, stream: at, bits, window, following });
        }
        if at > self.next
            && let Some(found) = self.candidate.take()
        {
            self.start(found.stream);
            self.chosen = Some(found);
        }
        let whole = |found: &mut FoundCheckpoint| {
            found.following.len() >= FOLLOWING || at >= found.stream + WINDOW as u64
        };
        Ok(self.chosen.take_if(whole))
    }

    /// Whether a block that starts at `at` is a better candidate than the current one.
    fn wants(&self, at: u64) -> bool {
        match &self.candidate {
            // The first block of a unit is no better than the unit, which needs no window.
            None => at + ZONE >= self.next && at > self.unit && at >= self.last + MIN_SPAN,
            Some(found) => at <= self.next && at >= found.stream + APART,
        }
    }

    /// A unit ended at `at`. Nothing after `at` refers to bytes before it.
    fn end_unit(&mut self, at: u64) -> Option<FoundCheckpoint> {
        self.candidate = None;
        self.unit = at;
        if at >= self.last + MIN_SPAN {
            self.start(at);
        }
        self.chosen.take()
    }

    fn start(&mut self, stream: u64) {
        self.last = stream;
        // At least half the spacing.
        self.next = (stream + SPACING / 2).next_multiple_of(SPACING);
    }
}
