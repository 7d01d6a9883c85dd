//! Half-open byte ranges and the arithmetic of fixed-size blocks over them.

use std::fmt;

/// The bytes `start..end`. Invariant: `start <= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`; an end before the start gives the empty range at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end: if end < start { start } else { end } }
    }

    /// `len` bytes from `start`, saturating at `u64::MAX`.
    pub const fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the range has no bytes.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(self, other: ByteRange) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// The bytes in both ranges.
    pub fn intersect(self, other: ByteRange) -> ByteRange {
        ByteRange::new(self.start.max(other.start), self.end.min(other.end).max(self.start.max(other.start)))
    }

    /// The smallest range of whole blocks (of `1 << shift` bytes) that covers this one, clipped to `size`.
    pub fn align(self, shift: u32, size: u64) -> ByteRange {
        let block = 1u64 << shift;
        let end = self.end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        ByteRange::new(self.start & !(block - 1), end.min(size))
    }

    /// The numbers of the blocks (of `1 << shift` bytes) that this range touches.
    pub fn blocks(self, shift: u32) -> std::ops::Range<u64> {
        if self.is_empty() {
            return self.start >> shift..self.start >> shift;
        }
        self.start >> shift..((self.end - 1) >> shift) + 1
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    /// The form of HTTP: both ends included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            write!(f, "{}-(empty)", self.start)
        } else {
            write!(f, "{}-{}", self.start, self.end - 1)
        }
    }
}

/// The part of `whole` that corresponds to `part` of `of`, as two lengths of the same bytes in two forms.
pub fn proportion(part: u64, of: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(whole) / u128::from(of.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn align_covers_whole_blocks_and_clips_to_size() {
        assert_eq!(ByteRange::new(5, 9).align(2, 100), ByteRange::new(4, 12));
        assert_eq!(ByteRange::new(5, 9).align(2, 10), ByteRange::new(4, 10));
        assert_eq!(ByteRange::new(u64::MAX - 1, u64::MAX).align(4, u64::MAX).end, u64::MAX);
    }

    #[test]
    fn blocks_of_an_empty_range_are_none() {
        assert_eq!(ByteRange::new(8, 8).blocks(2), 2..2);
        assert_eq!(ByteRange::new(7, 9).blocks(2), 1..3);
        assert_eq!(ByteRange::new(4, 8).blocks(2), 1..2);
    }

    #[test]
    fn intersect_of_disjoint_ranges_is_empty() {
        assert!(ByteRange::new(0, 4).intersect(ByteRange::new(6, 9)).is_empty());
        assert_eq!(ByteRange::new(0, 7).intersect(ByteRange::new(6, 9)), ByteRange::new(6, 7));
    }
}
