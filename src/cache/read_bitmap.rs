//! Extents: the cached and the read parts of content, for display.
//!
//! Content of any size becomes at most some hundred parts, each a multiple of a unit that is a power of two times a
//! block.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cached::CachedFile;
use super::sidecar::{BLOCK_BYTES, VisitNext};
use crate::io::ByteRange;

/// Upper bound of the number of units of one content.
const MOST_UNITS: u64 = 256;

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

/// Ranges that readers got, one bit for each unit; the size does not depend on the claimed length of the content.
#[derive(Debug, Default)]
pub(super) struct ReadBitmap([AtomicU64; (MOST_UNITS / 64) as usize]);

impl ReadBitmap {
    /// Records a read of `range` of content of `size` bytes.
    pub(super) fn note(&self, range: ByteRange, size: u64) {
        for unit in range.blocks(unit(size).trailing_zeros()) {
            let bit = 1 << (unit % 64);
            // Mostly the bit is set, and a load disturbs no other thread.
            if let Some(word) = self.0.get((unit / 64) as usize)
                && word.load(Ordering::Relaxed) & bit == 0
            {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// The units that were read, in order.
    fn units(&self) -> impl Iterator<Item = u64> {
        self.0.iter().zip(0u64..).flat_map(|(word, at)| {
            let bits = word.load(Ordering::Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
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

/// The smallest unit that divides content of `size` bytes into at most [`MOST_UNITS`] parts.
fn unit(size: u64) -> u64 {
    let mut unit = BLOCK_BYTES;
    while size.div_ceil(unit) > MOST_UNITS {
        unit <<= 1;
    }
    unit
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
    use super::*;

    #[test]
    fn content_of_any_size_is_told_in_few_units() {
        assert_eq!(unit(0), BLOCK_BYTES);
        assert_eq!(unit(MOST_UNITS * BLOCK_BYTES), BLOCK_BYTES);
        assert_eq!(unit(MOST_UNITS * BLOCK_BYTES + 1), 2 * BLOCK_BYTES);
        for size in [1 << 40, u64::MAX / 2] {
            assert!(size.div_ceil(unit(size)) <= MOST_UNITS && unit(size).is_multiple_of(BLOCK_BYTES));
        }
    }

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
    fn reads_of_content_of_any_claimed_size_are_noted_in_as_little_memory() {
        for size in [1, BLOCK_BYTES, 1 << 40, 1 << 60, u64::MAX] {
            let touched = ReadBitmap::default();
            touched.note(ByteRange::new(0, 1), size);
            touched.note(ByteRange::new(size - 1, size), size);
            let last = (size - 1) / unit(size);
            let expected: std::collections::BTreeSet<u64> = [0, last].into();
            assert!(touched.units().eq(expected), "{size}");
        }
        assert_eq!(size_of::<ReadBitmap>() as u64, MOST_UNITS / 8);
    }

    #[test]
    fn a_record_past_the_end_is_no_part() {
        let mut joined = MergedBlocks::new(BLOCK_BYTES, BLOCK_BYTES);
        joined.add(BLOCK_BYTES);
        joined.add(u64::MAX);
        assert!(joined.ranges.is_empty());
    }
}
