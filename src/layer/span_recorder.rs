//! Span recorder: the resume points that a pass finds, and the choice of those that an index keeps.

use crate::cache::BlockCache;

use super::packed_window::WindowSpool;
use super::sniff::StreamEncoding;
use super::span::{MIN_SPAN, ResumePoint, SpanMap, SpanStart};

/// The share of the stored bytes that windows may take for a start to be added where a file begins, as a fraction.
/// With checksums and names an index stays under 1 %.
const WINDOW_SHARE: (u128, u128) = (9, 1000);

/// Stored bytes ahead of a start whose share its window may take: those of the large file behind it.
const WINDOW_CREDIT_BYTES: u64 = 1024 * 1024;

/// Collects the span map during a forward pass.
pub struct SpanRecorder {
    encoding: StreamEncoding,
    starts: Vec<SpanStart>,
    windows: WindowSpool,
    /// Packed bytes of all windows so far.
    window_bytes: u64,
}

impl SpanRecorder {
    /// An empty recorder.
    pub fn new(encoding: StreamEncoding) -> Self {
        let starts = vec![SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit }];
        Self { encoding, starts, windows: WindowSpool::default(), window_bytes: 0 }
    }

    /// Adds the disk of `cache`, if any, for windows over the memory limit.
    pub(super) fn with_windows_in(self, cache: Option<BlockCache>) -> Self {
        Self { windows: WindowSpool::new(cache), ..self }
    }

    /// A unit ended, and the next starts at these offsets.
    pub fn unit(&mut self, stored: u64, stream: u64) {
        self.start(SpanStart { stored, stream, resume: ResumePoint::Unit });
    }

    /// Records a resume point without a window.
    pub fn start(&mut self, start: SpanStart) {
        if let Some(last) = self.starts.last()
            && start.stream - last.stream >= MIN_SPAN
        {
            self.starts.push(start);
        }
    }

    /// Records a checkpoint inside a unit; its offsets are above those of the last start.
    pub fn checkpoint(&mut self, start: SpanStart) -> std::io::Result<()> {
        let start = self.kept(start)?;
        self.starts.push(start);
        Ok(())
    }

    /// `start` with its window in memory or on disk.
    fn kept(&mut self, mut start: SpanStart) -> std::io::Result<SpanStart> {
        if let ResumePoint::Block { window, .. } = &mut start.resume {
            self.window_bytes += window.packed_len();
            *window = self.windows.keep(std::mem::take(window))?;
        }
        Ok(start)
    }

    /// Records a start between earlier ones of a layer of `stored_size` bytes. Leaves it out where the windows would
    /// take more than [`WINDOW_SHARE`] of the stored bytes, or where its offsets do not increase.
    pub(super) fn insert(&mut self, start: SpanStart, stored_size: u64) -> std::io::Result<()> {
        let window = match &start.resume {
            ResumePoint::Block { window, .. } => window.packed_len(),
            ResumePoint::Unit | ResumePoint::Inner { .. } => 0,
        };
        let (share, of) = WINDOW_SHARE;
        let stored = stored_size.min(start.stored.saturating_add(WINDOW_CREDIT_BYTES));
        let at = self.starts.partition_point(|other| other.stream < start.stream);
        let (before, after) = (at.checked_sub(1).and_then(|at| self.starts.get(at)), self.starts.get(at));
        if u128::from(self.window_bytes + window) * of <= u128::from(stored) * share
            && before.is_none_or(|last| last.stored < start.stored)
            && after.is_none_or(|next| start.stream < next.stream && start.stored < next.stored)
        {
            let start = self.kept(start)?;
            self.starts.insert(at, start);
        }
        Ok(())
    }

    /// The last start at or before stream offset `at`.
    pub(super) fn start_before(&self, at: u64) -> Option<&SpanStart> {
        self.starts.get(self.starts.partition_point(|start| start.stream <= at).checked_sub(1)?)
    }

    /// Stream offset of the start of the last span so far.
    pub fn last(&self) -> u64 {
        self.starts.last().map_or(0, |start| start.stream)
    }

    /// The span map of the completed pass.
    pub fn finish(mut self, stored_size: u64, stream_size: u64) -> SpanMap {
        // The end of the last unit is no start.
        if self.starts.len() > 1 && self.starts.last().is_some_and(|last| last.stream == stream_size) {
            self.starts.pop();
        }
        SpanMap::ordered(self.encoding, stored_size, stream_size, self.starts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed_window::PackedWindow;
    use super::super::span::LayerPiece;
    use super::*;
    use crate::io::ByteRange;

    #[test]
    fn a_range_is_covered_by_the_fewest_whole_spans() {
        let mut recorder = SpanRecorder::new(StreamEncoding::Zstd);
        recorder.unit(10, MIN_SPAN - 1); // too small: joined with the next
        recorder.unit(20, MIN_SPAN + 5);
        recorder.unit(30, 3 * MIN_SPAN);
        recorder.unit(40, 4 * MIN_SPAN);
        let map = recorder.finish(40, 4 * MIN_SPAN);
        assert!(map.is_sound());
        assert_eq!(map.spans(), 3);
        let cover = |start, end| map.cover(ByteRange::new(start, end));
        let unit = |stored: (u64, u64), stream: (u64, u64)| {
            let range = |(start, end)| ByteRange::new(start, end);
            vec![LayerPiece { stored: range(stored), stream: range(stream), resume: ResumePoint::Unit }]
        };
        assert_eq!(cover(0, 1), unit((0, 20), (0, MIN_SPAN + 5)));
        assert_eq!(cover(MIN_SPAN + 4, MIN_SPAN + 6), unit((0, 30), (0, 3 * MIN_SPAN)));
        assert_eq!(cover(MIN_SPAN + 5, 3 * MIN_SPAN), unit((20, 30), (MIN_SPAN + 5, 3 * MIN_SPAN)));
        assert_eq!(cover(3 * MIN_SPAN, 4 * MIN_SPAN), unit((30, 40), (3 * MIN_SPAN, 4 * MIN_SPAN)));
    }

    #[test]
    fn starts_before_files_are_left_out_where_windows_take_their_share() {
        const MIB: u64 = 1 << 20;
        let mut window = vec![0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut window);
        let block = |stored, stream| {
            let window = PackedWindow::pack(&window);
            SpanStart { stored, stream, resume: ResumePoint::Block { bits: 0, window } }
        };
        let mut recorder = SpanRecorder::new(StreamEncoding::Gzip);
        recorder.checkpoint(block(MIB, 2 * MIB)).unwrap();
        recorder.checkpoint(block(2 * MIB, 4 * MIB)).unwrap();
        let mut count = |stored, stream, size| {
            recorder.insert(block(stored, stream), size).unwrap();
            recorder.starts.len()
        };
        let size = 100 * MIB;
        // Windows of 4 KiB: nine thousandths of 2.5 MiB are less than six of them.
        assert_eq!(count(3 * MIB / 2, 3 * MIB, size), 4);
        assert_eq!(count(3 * MIB / 2 + 1, 3 * MIB, size), 4, "the same stream offset");
        assert_eq!(count(3 * MIB / 2, 3 * MIB + 1, size), 4, "the same stored offset");
        assert_eq!(
            count(3 * MIB / 2 + 1, 3 * MIB + 1, 3 * MIB / 2 + 2),
            4,
            "a layer without a mebibyte more"
        );
        assert_eq!(count(3 * MIB / 2 + 1, 3 * MIB + 1, size), 5);
        assert_eq!(count(3 * MIB / 2 + 2, 3 * MIB + 2, size), 6);
        assert_eq!(count(3 * MIB / 2 + 3, 3 * MIB + 3, size), 6, "a sixth window is over the share");
        let map = recorder.finish(size, 2 * size);
        assert!(map.is_sound());
        let first = map.starts().iter().map(|start| start.stream);
        assert_eq!(first.collect::<Vec<_>>(), [0, 2 * MIB, 3 * MIB, 3 * MIB + 1, 3 * MIB + 2, 4 * MIB]);
    }
}
