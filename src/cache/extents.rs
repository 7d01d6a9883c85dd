//! Extents: the cached and the read parts of content, for display.

use super::cached::CachedFile;
use super::read_bitmap::unit;
use super::sidecar::{BLOCK_BYTES, VisitNext};
use crate::io::ByteRange;

/// Parts of content, as half-open ranges of bytes in order. A part that is cached or was read partly counts as a
/// whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteExtents {
    /// Bytes of one unit: every range begins at a multiple of it, and ends at one or with the content.
    pub unit: u64,
    /// Ranges on disk.
    pub cached: Vec<ByteRange>,
    /// Ranges that readers of this process got.
    pub read: Vec<ByteRange>,
}

impl CachedFile {
    /// Parts that are on disk, and parts that this process read. Reads all records.
    pub fn extents(&self) -> ByteExtents {
        let inner = &self.inner;
        let unit = unit(inner.size);
        let mut cached = MergedBlocks::new(unit, inner.size);
        if let Some(pair) = inner.pair() {
            let read = pair.sidecar.each_present(0..u64::MAX, |block, _| {
                cached.add(block.saturating_mul(BLOCK_BYTES));
                VisitNext::More
            });
            if let Err(error) = read {
                tracing::debug!(%error, digest = %inner.digest, "cannot read the sidecar");
            }
        }
        let mut read = MergedBlocks::new(unit, inner.size);
        for part in inner.read.units() {
            read.add(part.saturating_mul(unit));
        }
        ByteExtents { unit, cached: cached.ranges, read: read.ranges }
    }
}

/// Units in ascending order, joined into ranges.
struct MergedBlocks {
    unit: u64,
    size: u64,
    ranges: Vec<ByteRange>,
}

impl MergedBlocks {
    fn new(unit: u64, size: u64) -> Self {
        Self { unit, size, ranges: Vec::new() }
    }

    /// Adds the unit that holds the byte at `offset`.
    fn add(&mut self, offset: u64) {
        let start = offset / self.unit * self.unit;
        // A record past the end does not count: files of the cache may be damaged.
        if start >= self.size {
            return;
        }
        let end = start.saturating_add(self.unit).min(self.size);
        match self.ranges.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => self.ranges.push(ByteRange::new(start, end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_bitmap::ReadBitmap;
    use super::*;

    #[test]
    fn units_that_follow_each_other_are_one_range_and_the_last_ends_with_the_content() {
        let size = 10 * BLOCK_BYTES + 5;
        let touched = ReadBitmap::default();
        for (start, end) in [
            (0, 1),
            (BLOCK_BYTES - 1, BLOCK_BYTES + 1),
            (5 * BLOCK_BYTES, 5 * BLOCK_BYTES),
            (10 * BLOCK_BYTES, size),
        ] {
            touched.note(ByteRange::new(start, end), size);
        }
        let joined = |unit| {
            let mut joined = MergedBlocks::new(unit, size);
            touched.units().for_each(|at| joined.add(at * BLOCK_BYTES));
            joined.ranges
        };
        let range = |start, end| ByteRange::new(start, end);
        assert_eq!(joined(BLOCK_BYTES), [range(0, 2 * BLOCK_BYTES), range(10 * BLOCK_BYTES, size)]);
        assert_eq!(joined(4 * BLOCK_BYTES), [range(0, 4 * BLOCK_BYTES), range(8 * BLOCK_BYTES, size)]);
    }

    #[test]
    fn a_record_past_the_end_is_no_part() {
        let mut joined = MergedBlocks::new(BLOCK_BYTES, BLOCK_BYTES);
        joined.add(BLOCK_BYTES);
        joined.add(u64::MAX);
        assert!(joined.ranges.is_empty());
    }
}
