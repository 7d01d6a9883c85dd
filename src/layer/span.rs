//! The span map: which stored bytes hold a range of the uncompressed stream.

use serde::{Deserialize, Serialize};

use crate::io::ByteRange;

use super::sniff::Encoding;

/// The least stream bytes of a span, except the last. Smaller units (some tools write a gzip member per file) are joined:
/// a span below a cache block saves nothing, because whole blocks are decoded.
const MIN_SPAN: u64 = 256 * 1024;

/// Where decoding can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanStart {
    /// Offset in the stored bytes.
    pub stored: u64,
    /// Offset in the uncompressed stream.
    pub stream: u64,
}

/// An independently decodable run of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its stored bytes.
    pub stored: ByteRange,
    /// What they decode to.
    pub stream: ByteRange,
}

/// Maps stream ranges to stored ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanMap {
    encoding: Encoding,
    /// Stored bytes of the whole layer.
    stored_size: u64,
    /// Bytes of the whole stream.
    stream_size: u64,
    /// Invariant: empty for `Encoding::Plain`; else starts with (0, 0) and both offsets increase.
    starts: Vec<SpanStart>,
}

impl SpanMap {
    /// Stored bytes are stream bytes.
    pub fn identity(size: u64) -> Self {
        Self { encoding: Encoding::Plain, stored_size: size, stream_size: size, starts: Vec::new() }
    }

    /// How the spans are stored.
    pub fn encoding(&self) -> Encoding {
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

    /// How many places there are where decoding can start.
    pub fn spans(&self) -> usize {
        self.starts.len().max(1)
    }

    /// The run of whole spans that covers `range` of the stream; the stream range of the answer contains `range` as far as
    /// the stream goes.
    pub fn cover(&self, range: ByteRange) -> Span {
        if self.starts.is_empty() {
            return Span { stored: range, stream: range };
        }
        // The first start is at stream offset 0, so at least one start is <= any offset.
        let first = self.starts.partition_point(|start| start.stream <= range.start).saturating_sub(1);
        let next = self.starts.partition_point(|start| start.stream < range.end).max(first + 1);
        let end = self
            .starts
            .get(next)
            .copied()
            .unwrap_or(SpanStart { stored: self.stored_size, stream: self.stream_size });
        Span {
            stored: ByteRange::new(self.starts[first].stored, end.stored),
            stream: ByteRange::new(self.starts[first].stream, end.stream),
        }
    }

    /// Whether the numbers can be true: what a reader of a stored map must know before it trusts it.
    pub fn is_sound(&self) -> bool {
        let increasing = self
            .starts
            .windows(2)
            .all(|pair| pair[0].stored < pair[1].stored && pair[0].stream < pair[1].stream);
        match self.encoding {
            Encoding::Plain => self.starts.is_empty() && self.stored_size == self.stream_size,
            Encoding::Gzip | Encoding::Zstd => {
                increasing
                    && self.starts.first() == Some(&SpanStart { stored: 0, stream: 0 })
                    && self.starts.last().is_some_and(|last| {
                        last.stored <= self.stored_size && last.stream <= self.stream_size
                    })
            }
        }
    }
}

/// Collects the span map during a forward pass.
pub struct SpanRecorder {
    encoding: Encoding,
    starts: Vec<SpanStart>,
}

impl SpanRecorder {
    /// Nothing passed yet.
    pub fn new(encoding: Encoding) -> Self {
        Self { encoding, starts: vec![SpanStart { stored: 0, stream: 0 }] }
    }

    /// A unit ended, and the next starts at these offsets.
    pub fn unit(&mut self, stored: u64, stream: u64) {
        if let Some(last) = self.starts.last()
            && stream - last.stream >= MIN_SPAN
        {
            self.starts.push(SpanStart { stored, stream });
        }
    }

    /// The pass is over.
    pub fn finish(mut self, stored_size: u64, stream_size: u64) -> SpanMap {
        // The end of the last unit is no start.
        if self.starts.len() > 1 && self.starts.last().is_some_and(|last| last.stream == stream_size) {
            self.starts.pop();
        }
        SpanMap { encoding: self.encoding, stored_size, stream_size, starts: self.starts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_by_the_fewest_whole_spans() {
        let mut recorder = SpanRecorder::new(Encoding::Zstd);
        recorder.unit(10, MIN_SPAN - 1); // too small: joined with the next
        recorder.unit(20, MIN_SPAN + 5);
        recorder.unit(30, 3 * MIN_SPAN);
        recorder.unit(40, 4 * MIN_SPAN);
        let map = recorder.finish(40, 4 * MIN_SPAN);
        assert!(map.is_sound());
        assert_eq!(map.spans(), 3);
        let span = |stored: (u64, u64), stream: (u64, u64)| Span {
            stored: ByteRange::new(stored.0, stored.1),
            stream: ByteRange::new(stream.0, stream.1),
        };
        assert_eq!(map.cover(ByteRange::new(0, 1)), span((0, 20), (0, MIN_SPAN + 5)));
        assert_eq!(map.cover(ByteRange::new(MIN_SPAN + 4, MIN_SPAN + 6)), span((0, 30), (0, 3 * MIN_SPAN)));
        assert_eq!(
            map.cover(ByteRange::new(MIN_SPAN + 5, 3 * MIN_SPAN)),
            span((20, 30), (MIN_SPAN + 5, 3 * MIN_SPAN))
        );
        assert_eq!(
            map.cover(ByteRange::new(3 * MIN_SPAN, 4 * MIN_SPAN)),
            span((30, 40), (3 * MIN_SPAN, 4 * MIN_SPAN))
        );
    }

    #[test]
    fn a_map_that_cannot_be_true_is_not_sound() {
        let mut map = SpanRecorder::new(Encoding::Gzip).finish(10, 100);
        assert!(map.is_sound());
        map.starts.push(SpanStart { stored: 11, stream: 50 });
        assert!(!map.is_sound());
        assert!(!SpanMap { stream_size: 3, ..SpanMap::identity(4) }.is_sound());
    }
}
