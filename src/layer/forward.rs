//! Forward decoding of one stream: the closest point before a read where decoding can begin or continue.
//!
//! A stream without an index is decoded from its first byte, and only as far as the last read. The ends of its units
//! are recorded on the way: decoding can begin again at each of them. Between them, the paused decoder continues.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;

use crate::io::{ByteRange, lock};

use super::decode_step::WindowLimits;
use super::decoded_tail::DecodedTail;
use super::far_queue::{FarQueue, FarTurn};
use super::paused::{PausedDecoder, PausedDecoders};
use super::span::{LayerPiece, MIN_SPAN, SpanMap, SpanStart};

/// Stream bytes that are decoded again without a second thought: no pass leaves more between two starts.
pub(super) const FAR_BYTES: u64 = 4 * 1024 * 1024;

/// Maximum starts found in one stream: each takes some 64 bytes.
const MAX_FOUND_STARTS: u64 = 16 * 1024;

/// Spans whose progress is known. Only long spans have one, and few of them are read at the same time.
const FOLLOWED_SPANS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Stream bytes of a span that may be decoded again, beside half of the span.
const MIN_REPEATED_BYTES: u64 = 64 * 1024 * 1024;

/// The progress of forward decoding in one stream.
pub(super) struct ForwardState {
    pub(super) paused: PausedDecoders,
    /// The last bytes decoded far from every start.
    pub(super) tail: DecodedTail,
    /// Starts found while decoding, ascending, besides those of the map.
    found: Mutex<Vec<SpanStart>>,
    /// Long spans by the stream offset of their start.
    followed: Mutex<LruCache<u64, SpanProgress>>,
    /// One far read at a time: the next one continues its decoder.
    far: Arc<FarQueue>,
    /// Set once a window was found to be larger than a common one.
    is_wide: AtomicBool,
}

/// How much of a span was decoded, and how much of it more than once.
#[derive(Clone, Copy, Default)]
struct SpanProgress {
    /// End of the decoded stream bytes.
    reached: u64,
    /// Stream bytes that were decoded again.
    repeated: u64,
}

/// The begin of the decoding for one read.
pub(super) struct ForwardStart {
    /// The run of the layer from the last start before the read.
    pub(super) origin: LayerPiece,
    /// A decoder inside of `origin`, and its stream offset; `None` to begin at the start.
    pub(super) paused: Option<(u64, PausedDecoder)>,
    /// The rest of the span is decoded too: reads that go back have decoded much of it again and again.
    pub(super) is_to_end: bool,
}

impl ForwardState {
    pub(super) fn new() -> Self {
        Self {
            paused: PausedDecoders::new(),
            tail: DecodedTail::default(),
            found: Mutex::default(),
            followed: Mutex::new(LruCache::new(FOLLOWED_SPANS)),
            far: Arc::default(),
            is_wide: AtomicBool::new(false),
        }
    }

    /// The windows to begin with.
    pub(super) fn windows(&self) -> WindowLimits {
        match self.is_wide.load(Ordering::Relaxed) {
            true => WindowLimits::Large,
            false => WindowLimits::Common,
        }
    }

    /// Records that a window is larger than a common one.
    pub(super) fn set_wide(&self) {
        self.is_wide.store(true, Ordering::Relaxed);
    }

    /// `piece`, or its part from the last start found before `at`.
    fn origin(&self, piece: LayerPiece, at: u64) -> LayerPiece {
        let found = lock(&self.found);
        let last = found.partition_point(|start| start.stream <= at).checked_sub(1);
        match last.and_then(|last| found.get(last)).filter(|start| start.stream > piece.stream.start) {
            Some(start) => LayerPiece {
                stored: ByteRange::new(start.stored, piece.stored.end),
                stream: ByteRange::new(start.stream, piece.stream.end),
                resume: start.resume.clone(),
            },
            None => piece,
        }
    }

    /// The begin of the decoding for a read at `at`, which `piece` covers.
    pub(super) fn begin(&self, piece: LayerPiece, at: u64) -> ForwardStart {
        let origin = self.origin(piece, at);
        let start = origin.stream.start;
        if let Some(paused) = self.paused.take(ByteRange::new(start, at)) {
            return ForwardStart { origin, paused: Some(paused), is_to_end: false };
        }
        let mut followed = lock(&self.followed);
        let mut is_to_end = false;
        if let Some(progress) = followed.get_mut(&start) {
            progress.repeated += progress.reached.min(at).saturating_sub(start);
            is_to_end = progress.repeated > MIN_REPEATED_BYTES.max(origin.stream.len() / 2);
            if is_to_end {
                progress.repeated = 0;
            }
        }
        ForwardStart { origin, paused: None, is_to_end }
    }

    /// Keeps `blocks`, which end at `end`, if decoding begins far before them, at `start`.
    pub(super) fn decoded(&self, start: u64, end: u64, blocks: &[Bytes]) {
        if !blocks.is_empty() && end.saturating_sub(start) >= FAR_BYTES {
            self.tail.push(blocks, end);
        }
    }

    /// Records that the span that starts at `start` was decoded up to `at`.
    pub(super) fn reached(&self, start: u64, at: u64) {
        if at - start < FAR_BYTES {
            return;
        }
        let mut followed = lock(&self.followed);
        let progress = followed.get_or_insert_mut(start, SpanProgress::default);
        progress.reached = progress.reached.max(at);
    }

    /// Records a start found at the end of a unit, unless `map` or an earlier one is close.
    pub(super) fn note(&self, map: &SpanMap, start: SpanStart) {
        let apart = MIN_SPAN.max(map.stream_size() / MAX_FOUND_STARTS);
        let starts = map.starts();
        let of_map = starts.partition_point(|known| known.stream <= start.stream).checked_sub(1);
        let is_near = |known: Option<&SpanStart>| {
            known.is_some_and(|known| known.stream.abs_diff(start.stream) < apart)
        };
        if is_near(of_map.and_then(|at| starts.get(at))) || start.stream >= map.stream_size() {
            return;
        }
        let mut found = lock(&self.found);
        let next = found.partition_point(|known| known.stream <= start.stream);
        if !is_near(next.checked_sub(1).and_then(|at| found.get(at))) && !is_near(found.get(next)) {
            found.insert(next, start);
        }
    }

    /// Waits for the far reads before this one, if a read at `at` in `piece` is far from every start. They leave
    /// their decoder behind, which this one continues. `None` for a read that need not wait.
    pub(super) async fn far_turn(&self, piece: LayerPiece, at: u64) -> Option<FarTurn> {
        if at.saturating_sub(self.origin(piece, at).stream.start) < FAR_BYTES {
            return None;
        }
        Some(self.far.turn(at).await)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sniff::StreamEncoding;
    use super::super::span::ResumePoint;
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn map(size: u64) -> SpanMap {
        let origin = SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit };
        SpanMap::ordered(StreamEncoding::Xz, size / 2, size, vec![origin])
    }

    fn piece(map: &SpanMap, at: u64) -> LayerPiece {
        map.cover(ByteRange::at(at, 1)).remove(0)
    }

    #[test]
    fn a_span_that_was_decoded_again_for_half_of_it_is_decoded_to_its_end_once() {
        let (state, map) = (ForwardState::new(), map(200 * MIB));
        let begin = |at: u64| {
            let is_to_end = state.begin(piece(&map, at), at).is_to_end;
            state.reached(0, at);
            is_to_end
        };
        // The first read decodes 60 MiB, and the next ones 30, 60 and 60 of them again.
        assert_eq!([60, 30, 60, 90, 90].map(|at| begin(at * MIB)), [false, false, false, true, false]);
    }

    #[test]
    fn starts_found_are_apart_and_the_last_one_before_a_read_is_taken() {
        let (state, map) = (ForwardState::new(), map(100 * MIB));
        let inner =
            |stream| SpanStart { stored: stream / 2, stream, resume: ResumePoint::Inner { shape: 1 } };
        for at in [5, 1000, MIN_SPAN, MIN_SPAN + 9, 10 * MIB, 4 * MIB, 4 * MIB + 1, 100 * MIB] {
            state.note(&map, inner(at));
        }
        let found: Vec<u64> = lock(&state.found).iter().map(|start| start.stream).collect();
        assert_eq!(found, [MIN_SPAN, 4 * MIB, 10 * MIB]);
        let origin = |at| state.begin(piece(&map, at), at).origin;
        assert_eq!(origin(MIN_SPAN - 1).stream.start, 0);
        assert_eq!(origin(4 * MIB).stored, ByteRange::new(2 * MIB, 50 * MIB));
        assert_eq!(origin(99 * MIB).resume, ResumePoint::Inner { shape: 1 });
    }
}
