//! Detector of sequential readers: a run of reads, each near the end of the one before.
//!
//! Content of the cache and files of a layer follow their readers with it. Each has windows of its own.

use super::ByteRange;

/// Distance from the end of a run within which a read continues it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunTolerance {
    /// Before the end, in bytes: the kernel's own readahead sends several requests in any order.
    pub(crate) back: u64,
    /// Behind the end, in bytes.
    pub(crate) gap: u64,
}

/// Reads in order.
#[derive(Debug, Default)]
pub(crate) struct SequentialRun {
    /// Start of the first read, in bytes.
    pub(crate) start: u64,
    /// End of the reads, in bytes.
    pub(crate) next: u64,
    /// End of the range requested for the reader, in bytes.
    pub(crate) asked: u64,
}

impl SequentialRun {
    /// The run that begins with `read`.
    pub(crate) fn of(read: ByteRange) -> Self {
        Self { start: read.start, next: read.end, asked: read.end }
    }

    /// Whether `read` continues the run.
    pub(crate) fn is_continued_by(&self, read: ByteRange, tolerance: RunTolerance) -> bool {
        let RunTolerance { back, gap } = tolerance;
        read.start >= self.next.saturating_sub(back) && read.start <= self.next.saturating_add(gap)
    }

    /// Records a read that continues the run, and returns whether the run is longer.
    pub(crate) fn advance(&mut self, read: ByteRange) -> bool {
        let is_longer = read.end > self.next;
        self.next = self.next.max(read.end);
        is_longer
    }

    /// Length of the run, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.next - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_within_the_tolerance_continues_its_run_and_one_beyond_does_not() {
        let tolerance = RunTolerance { back: 10, gap: 5 };
        let mut run = SequentialRun::of(ByteRange::new(100, 200));
        for (start, continues) in [(189, false), (190, true), (200, true), (205, true), (206, false)] {
            assert_eq!(run.is_continued_by(ByteRange::at(start, 1), tolerance), continues, "{start}");
        }
        assert!(!run.advance(ByteRange::new(190, 200)));
        assert!(run.advance(ByteRange::new(195, 230)));
        assert_eq!((run.start, run.next, run.len(), run.asked), (100, 230, 130, 200));
    }
}
