//! Read bitmap: the parts of content that readers got.
//!
//! Content of any size has at most some hundred parts. Each is a multiple of a power of two times a block.

use std::sync::atomic::{AtomicU64, Ordering};

use super::sidecar::BLOCK_BYTES;
use crate::io::ByteRange;

/// Upper bound of the number of units of one content.
const MOST_UNITS: u64 = 256;

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
    pub(super) fn units(&self) -> impl Iterator<Item = u64> {
        self.0.iter().zip(0u64..).flat_map(|(word, at)| {
            let bits = word.load(Ordering::Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
}

/// The smallest unit that divides content of `size` bytes into at most [`MOST_UNITS`] parts.
pub(super) fn unit(size: u64) -> u64 {
    let mut unit = BLOCK_BYTES;
    while size.div_ceil(unit) > MOST_UNITS {
        unit <<= 1;
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_bitmap_covers_content_of_any_size_in_few_units() {
        assert_eq!(unit(0), BLOCK_BYTES);
        assert_eq!(unit(MOST_UNITS * BLOCK_BYTES), BLOCK_BYTES);
        assert_eq!(unit(MOST_UNITS * BLOCK_BYTES + 1), 2 * BLOCK_BYTES);
        for size in [1 << 40, u64::MAX / 2] {
            assert!(size.div_ceil(unit(size)) <= MOST_UNITS && unit(size).is_multiple_of(BLOCK_BYTES));
        }
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
}
