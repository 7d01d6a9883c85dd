//! Span map: from a range of the uncompressed stream to its stored bytes, and the resume point for decoding them.
//!
//! A read gets the pieces that cover its range. A piece is decoded on its own, from the first of its stored bytes
//! to the last of its stream bytes. Nothing is decoded in this module.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::io::{ByteRange, MEMORY, MemoryShare, proportion};

use super::packed_window::PackedWindow;
use super::sniff::StreamEncoding;

/// Minimum stream bytes of a span that starts with a unit, except the last. Smaller units (some tools write a gzip
/// member per file) are joined: a span below a cache block saves nothing, because whole blocks are decoded.
pub(super) const MIN_SPAN: u64 = 256 * 1024;

/// `guess` stored bytes of a part of a span, with a margin for data that compresses worse than the rest of the span.
pub(super) fn with_margin(guess: u64) -> u64 {
    /// An eighth of a cache block: rarely a request of its own.
    const MAX_MARGIN_BYTES: u64 = 32 * 1024;
    guess.saturating_add((guess / 8).min(MAX_MARGIN_BYTES))
}

/// A resume point: an offset where decoding can start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanStart {
    /// Offset of the first stored byte of which no bit was decoded before.
    pub stored: u64,
    /// Offset in the uncompressed stream.
    pub stream: u64,
    /// The decoder state needed.
    pub resume: ResumePoint,
}

impl SpanStart {
    fn heap_bytes(&self) -> usize {
        let window = match &self.resume {
            ResumePoint::Block { window, .. } => window.heap_bytes(),
            ResumePoint::Unit | ResumePoint::Inner { .. } => 0,
        };
        size_of::<Self>() + window
    }

    /// Offset of the stored byte in which the span starts.
    pub(super) fn first_stored(&self) -> u64 {
        match self.resume {
            ResumePoint::Block { bits: 1.., .. } => self.stored - 1,
            ResumePoint::Block { .. } | ResumePoint::Unit | ResumePoint::Inner { .. } => self.stored,
        }
    }
}

/// The decoder state needed to start in the middle of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResumePoint {
    /// None: a gzip member or a zstd frame starts at this point.
    Unit,
    /// A deflate block starts at this point, in the middle of a gzip member.
    Block {
        /// Number of bits of the stored byte before that belong to the block: 0 to 7.
        bits: u8,
        /// The stream bytes before, as far as the block and its successors refer to them.
        window: PackedWindow,
    },
    /// A block that refers to nothing before it starts at this point, in the middle of an xz stream or an LZ4
    /// frame.
    Inner {
        /// The block parameters of the stream or frame.
        shape: u8,
    },
}

/// A run of a layer that is decoded on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPiece {
    /// Its stored bytes, including the byte in which its first block starts.
    pub stored: ByteRange,
    /// Its stream bytes; in a made-up stream the first of the decoded bytes (see [`StoredChunk`]).
    pub stream: ByteRange,
    /// The decoder state at its start.
    pub resume: ResumePoint,
}

/// A run of stored bytes whose neighbours in the stream may be stored anywhere, from an index that names files.
///
/// A chunk may decode to more than its part of the stream, which ends with the last byte that an entry uses. After
/// the content of a file, a unit can hold padding and headers of the archive, whose size no index gives. A decoder
/// stops before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChunk {
    /// Offset of its first stored byte, where a unit starts.
    pub stored: u64,
    /// Offset after its last stored byte.
    pub stored_end: u64,
    /// Its offset in the stream. Invariant: the end of the chunk before.
    pub stream: u64,
}

/// Expected sha256 of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkDigest {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: u64,
    /// The digest.
    pub sha256: [u8; 32],
}

/// The digests that an index gives for parts of a layer, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerDigests {
    /// No digests.
    #[default]
    None,
    /// Of ranges of the stream. None crosses the end of a chunk.
    Stream(#[serde(deserialize_with = "charged")] Vec<ChunkDigest>),
    /// Of ranges of the stored bytes: one for each span.
    Stored(#[serde(deserialize_with = "charged")] Vec<ChunkDigest>),
}

/// Maps stream ranges to stored ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanMap {
    encoding: StreamEncoding,
    /// Stored bytes of the whole layer.
    stored_size: u64,
    /// Bytes of the whole stream.
    stream_size: u64,
    /// Shared, because every reader of a layer needs it, and its windows take megabytes.
    shape: Arc<SpanShape>,
    sums: Arc<LayerDigests>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SpanShape {
    /// Stored bytes are stream bytes.
    Identity,
    /// The stream is stored in order. Invariant: the first start is at (0, 0), and stream offsets increase.
    Ordered(#[serde(deserialize_with = "increasing")] Vec<SpanStart>),
    /// The stream is the chunks one after the other: made up by an index, not what decoding everything gives.
    Chunks(#[serde(deserialize_with = "charged")] Vec<StoredChunk>),
}

/// Deserializes starts, and fails at the first that does not increase. Equal starts compress to almost nothing, and
/// an untrusted index of a few kilobytes must not become gigabytes before it is checked.
fn increasing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SpanStart>, D::Error> {
    deserializer.deserialize_seq(IncreasingOffsets)
}

struct IncreasingOffsets;

impl<'de> Visitor<'de> for IncreasingOffsets {
    type Value = Vec<SpanStart>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("starts whose offsets increase")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut starts: Vec<SpanStart> = Vec::new();
        let mut memory = MEMORY.passing();
        while let Some(start) = seq.next_element::<SpanStart>()? {
            if let Some(last) = starts.last()
                && !(last.stored < start.stored && last.stream < start.stream)
            {
                let at = starts.len();
                return Err(A::Error::custom(format!("start {at} does not come after the one before")));
            }
            charge(&mut memory, &starts)?;
            starts.push(start);
        }
        Ok(starts)
    }
}

/// Items that are read before memory for more of them is asked for.
const CHARGED_ITEMS: usize = 4096;

/// Reserves memory for the next items once `items` used up the reserve. An item takes few bytes of an index, and the
/// image author chooses their number.
fn charge<T, E: serde::de::Error>(memory: &mut MemoryShare, items: &[T]) -> Result<(), E> {
    if items.is_empty() || !items.len().is_multiple_of(CHARGED_ITEMS) {
        return Ok(());
    }
    // A list that grows is there twice for a moment.
    let bytes = (2 * CHARGED_ITEMS * size_of::<T>()) as u64;
    memory
        .grow(bytes)
        .map_err(|error| E::custom(format!("a list of more than {} items: {error}", items.len())))
}

/// Reads a list as far as there is memory for it.
pub(super) fn charged<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(ChargedItems(PhantomData))
}

struct ChargedItems<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ChargedItems<T> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut memory) = (Vec::new(), MEMORY.passing());
        while let Some(item) = seq.next_element()? {
            charge(&mut memory, &items)?;
            items.push(item);
        }
        Ok(items)
    }
}

impl SpanMap {
    /// Stored bytes are stream bytes.
    pub fn identity(size: u64) -> Self {
        Self {
            encoding: StreamEncoding::Plain,
            stored_size: size,
            stream_size: size,
            shape: Arc::new(SpanShape::Identity),
            sums: Arc::default(),
        }
    }

    /// A stream that is stored in order, with its resume points.
    pub fn ordered(
        encoding: StreamEncoding,
        stored_size: u64,
        stream_size: u64,
        starts: Vec<SpanStart>,
    ) -> Self {
        Self {
            encoding,
            stored_size,
            stream_size,
            shape: Arc::new(SpanShape::Ordered(starts)),
            sums: Arc::default(),
        }
    }

    /// A stream of chunks that can be stored anywhere.
    pub fn chunks(
        encoding: StreamEncoding,
        stored_size: u64,
        stream_size: u64,
        chunks: Vec<StoredChunk>,
    ) -> Self {
        Self {
            encoding,
            stored_size,
            stream_size,
            shape: Arc::new(SpanShape::Chunks(chunks)),
            sums: Arc::default(),
        }
    }

    /// Adds the digests of parts.
    #[must_use]
    pub fn with_sums(self, sums: LayerDigests) -> Self {
        Self { sums: Arc::new(sums), ..self }
    }

    /// The encoding of the spans.
    pub fn encoding(&self) -> StreamEncoding {
        self.encoding
    }

    /// Stored bytes of the whole layer.
    pub fn stored_size(&self) -> u64 {
        self.stored_size
    }

    /// Bytes of the whole stream.
    pub fn stream_size(&self) -> u64 {
        self.stream_size
    }

    /// Bytes of memory used, without the allocator's overhead.
    pub fn heap_bytes(&self) -> u64 {
        let shape = match &*self.shape {
            SpanShape::Identity => 0,
            SpanShape::Ordered(starts) => starts.iter().map(SpanStart::heap_bytes).sum(),
            SpanShape::Chunks(chunks) => size_of_val(&chunks[..]),
        };
        let sums = match &*self.sums {
            LayerDigests::None => 0,
            LayerDigests::Stream(sums) | LayerDigests::Stored(sums) => size_of_val(&sums[..]),
        };
        (shape + sums) as u64
    }

    /// The expected digests of parts of the layer.
    pub fn sums(&self) -> &LayerDigests {
        &self.sums
    }

    /// Whether the stream is made up of chunks, so that its offsets have no meaning for another index of the layer.
    pub fn is_made_up(&self) -> bool {
        matches!(*self.shape, SpanShape::Chunks(_))
    }

    /// The number of resume points.
    pub fn spans(&self) -> usize {
        match &*self.shape {
            SpanShape::Identity => 1,
            SpanShape::Ordered(starts) => starts.len().max(1),
            SpanShape::Chunks(chunks) => chunks.len(),
        }
    }

    /// The resume points of a stream that is stored in order; empty for others.
    pub fn starts(&self) -> &[SpanStart] {
        match &*self.shape {
            SpanShape::Ordered(starts) => starts,
            SpanShape::Identity | SpanShape::Chunks(_) => &[],
        }
    }

    /// The pieces of whole spans that cover `range`, in stream order. Their stream ranges are adjacent, and contain
    /// `range` up to the end of the stream. A stream that is stored in order gives one piece.
    pub fn cover(&self, range: ByteRange) -> Vec<LayerPiece> {
        match &*self.shape {
            SpanShape::Identity => {
                vec![LayerPiece { stored: range, stream: range, resume: ResumePoint::Unit }]
            }
            SpanShape::Ordered(starts) => vec![self.cover_ordered(starts, range)],
            SpanShape::Chunks(chunks) => {
                let first = chunks.partition_point(|chunk| chunk.stream <= range.start).saturating_sub(1);
                let next = chunks.partition_point(|chunk| chunk.stream < range.end).max(first);
                let piece = |at: usize| LayerPiece {
                    stored: ByteRange::new(chunks[at].stored, chunks[at].stored_end),
                    stream: ByteRange::new(chunks[at].stream, self.chunk_end(chunks, at)),
                    resume: ResumePoint::Unit,
                };
                (first..next).map(piece).collect()
            }
        }
    }

    fn cover_ordered(&self, starts: &[SpanStart], range: ByteRange) -> LayerPiece {
        // The first start is at stream offset 0, so at least one start is <= any offset.
        let first = starts.partition_point(|start| start.stream <= range.start).saturating_sub(1);
        let next = starts.partition_point(|start| start.stream < range.end).max(first + 1);
        let (stored_end, stream_end) =
            starts.get(next).map_or((self.stored_size, self.stream_size), |end| (end.stored, end.stream));
        let start = &starts[first];
        LayerPiece {
            stored: ByteRange::new(start.first_stored(), stored_end),
            stream: ByteRange::new(start.stream, stream_end),
            resume: start.resume.clone(),
        }
    }

    /// Estimated stored bytes for reading `range`: those of the pieces that cover it, the last one in proportion to
    /// its part of the range. Chunks that are stored one after the other are one range.
    pub fn likely_stored(&self, range: ByteRange) -> Vec<ByteRange> {
        let SpanShape::Ordered(starts) = &*self.shape else {
            let mut runs: Vec<ByteRange> = Vec::new();
            for LayerPiece { stored, .. } in self.cover(range) {
                match runs.last_mut() {
                    Some(run) if run.end == stored.start => run.end = stored.end,
                    _ => runs.push(stored),
                }
            }
            return runs;
        };
        let stored = self.cover_ordered(starts, range).stored;
        let last = starts.partition_point(|start| start.stream < range.end).saturating_sub(1);
        let (from, end) = (&starts[last], self.end_of(starts, last));
        // Offsets of one span, which is far below 2^64 / 2^32 bytes long or is cut here.
        let (part, of) = (range.end.saturating_sub(from.stream), end.1 - from.stream);
        let share = proportion(part, of, end.0.saturating_sub(from.stored));
        let likely = from.stored.saturating_add(with_margin(share));
        vec![ByteRange::new(stored.start, likely.clamp(stored.start, stored.end))]
    }

    /// The end of the span with this number, as stored and stream offset.
    fn end_of(&self, starts: &[SpanStart], at: usize) -> (u64, u64) {
        starts.get(at + 1).map_or((self.stored_size, self.stream_size), |end| (end.stored, end.stream))
    }

    fn chunk_end(&self, chunks: &[StoredChunk], at: usize) -> u64 {
        chunks.get(at + 1).map_or(self.stream_size, |next| next.stream)
    }

    /// Whether the numbers are consistent. A reader of an untrusted map checks this first.
    pub fn is_sound(&self) -> bool {
        let shape = match &*self.shape {
            SpanShape::Identity => {
                self.encoding == StreamEncoding::Plain && self.stored_size == self.stream_size
            }
            SpanShape::Ordered(starts) => {
                self.encoding != StreamEncoding::Plain && self.starts_are_sound(starts)
            }
            SpanShape::Chunks(chunks) => self.chunks_are_sound(chunks),
        };
        shape && self.sums_are_sound()
    }

    fn starts_are_sound(&self, starts: &[SpanStart]) -> bool {
        let increasing =
            starts.windows(2).all(|pair| pair[0].stored < pair[1].stored && pair[0].stream < pair[1].stream);
        let possible = starts.iter().all(|start| match start.resume {
            ResumePoint::Unit => true,
            ResumePoint::Block { bits, .. } => {
                self.encoding == StreamEncoding::Gzip && bits < 8 && start.stored > u64::from(bits > 0)
            }
            ResumePoint::Inner { .. } => matches!(self.encoding, StreamEncoding::Xz | StreamEncoding::Lz4),
        });
        let origin = SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit };
        increasing
            && possible
            && starts.first() == Some(&origin)
            && starts
                .last()
                .is_some_and(|last| last.stored <= self.stored_size && last.stream <= self.stream_size)
    }

    fn chunks_are_sound(&self, chunks: &[StoredChunk]) -> bool {
        let inside =
            |chunk: &StoredChunk| chunk.stored < chunk.stored_end && chunk.stored_end <= self.stored_size;
        chunks.iter().all(inside)
            && chunks.windows(2).all(|pair| pair[0].stream < pair[1].stream)
            && chunks.first().map_or(self.stream_size == 0, |first| first.stream == 0)
            && chunks.last().is_none_or(|last| last.stream < self.stream_size)
    }

    fn sums_are_sound(&self) -> bool {
        let (sums, end) = match &*self.sums {
            LayerDigests::None => return true,
            LayerDigests::Stream(sums) => (sums, self.stream_size),
            LayerDigests::Stored(sums) => (sums, self.stored_size),
        };
        sums.iter().all(|sum| sum.start < sum.end && sum.end <= end)
            && sums.windows(2).all(|pair| pair[0].start <= pair[1].start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stored: (u64, u64), stream: (u64, u64), resume: ResumePoint) -> LayerPiece {
        let range = |(start, end)| ByteRange::new(start, end);
        LayerPiece { stored: range(stored), stream: range(stream), resume }
    }

    #[test]
    fn a_block_that_starts_within_a_byte_needs_that_byte() {
        let block = |bits| ResumePoint::Block { bits, window: PackedWindow::pack(b"before") };
        let starts = vec![
            SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit },
            SpanStart { stored: 100, stream: 1000, resume: block(3) },
            SpanStart { stored: 200, stream: 2000, resume: block(0) },
        ];
        let map = SpanMap::ordered(StreamEncoding::Gzip, 300, 3000, starts);
        assert!(map.is_sound());
        assert_eq!(map.cover(ByteRange::new(999, 1000)), [piece((0, 100), (0, 1000), ResumePoint::Unit)]);
        assert_eq!(map.cover(ByteRange::new(1000, 1001)), [piece((99, 200), (1000, 2000), block(3))]);
        assert_eq!(map.cover(ByteRange::new(2000, 3000)), [piece((200, 300), (2000, 3000), block(0))]);
    }

    #[test]
    fn chunks_may_lie_anywhere() {
        let chunk = |stored, stored_end, stream| StoredChunk { stored, stored_end, stream };
        let map = SpanMap::chunks(
            StreamEncoding::Gzip,
            100,
            60,
            vec![chunk(50, 70, 0), chunk(10, 20, 30), chunk(70, 100, 40)],
        );
        assert!(map.is_sound());
        assert_eq!(
            map.cover(ByteRange::new(29, 31)),
            [piece((50, 70), (0, 30), ResumePoint::Unit), piece((10, 20), (30, 40), ResumePoint::Unit),]
        );
        assert_eq!(map.cover(ByteRange::new(59, 60)), [piece((70, 100), (40, 60), ResumePoint::Unit)]);
        let overlapping =
            SpanMap::chunks(StreamEncoding::Gzip, 100, 60, vec![chunk(0, 5, 0), chunk(5, 101, 30)]);
        assert!(!overlapping.is_sound(), "past the end of the stored bytes");
    }

    #[test]
    fn likely_stored_bytes_of_chunks_in_order_are_one_range() {
        let chunk = |stored, stored_end, stream| StoredChunk { stored, stored_end, stream };
        let chunks = vec![chunk(50, 70, 0), chunk(70, 90, 30), chunk(10, 20, 40), chunk(90, 95, 50)];
        let map = SpanMap::chunks(StreamEncoding::Gzip, 100, 60, chunks);
        let ranges = [(50, 90), (10, 20), (90, 95)].map(|(start, end)| ByteRange::new(start, end));
        assert_eq!(map.likely_stored(ByteRange::new(0, 60)), ranges);
    }

    #[test]
    fn a_map_that_cannot_be_true_is_not_sound() {
        let unit = |stored, stream| SpanStart { stored, stream, resume: ResumePoint::Unit };
        let starts = |starts| SpanMap::ordered(StreamEncoding::Gzip, 10, 100, starts);
        assert!(starts(vec![unit(0, 0)]).is_sound());
        assert!(!starts(vec![unit(0, 0), unit(11, 50)]).is_sound());
        assert!(!starts(vec![unit(0, 0), unit(5, 50), unit(5, 60)]).is_sound());
        assert!(!starts(vec![]).is_sound());
        assert!(!SpanMap { stream_size: 3, ..SpanMap::identity(4) }.is_sound());
    }
}
