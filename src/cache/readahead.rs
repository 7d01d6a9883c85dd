//! Readahead: follows sequential readers and selects the blocks to fetch ahead of them.
//!
//! A read that begins where an earlier one ended makes its reader sequential, and the window grows with the length of
//! the run. Only another read extends the window, so a reader that stops costs at most one window. Random access gets
//! no readahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT, ContentKind};
use crate::io::concurrency;
use crate::io::{ByteRange, RunTolerance, SequentialRun};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Readers of one content that are followed at a time: one for each FUSE thread.
const READERS: usize = 8;
/// Fetches ahead of the readers of one content: with [`MAX_READAHEAD_BYTES`] they are the widest window.
const RANGES: usize = 4;
/// Longest readahead fetch. At 8 MiB a round trip of 100 ms costs less than the bytes do on a gigabit link.
const MAX_READAHEAD_BYTES: u64 = 8 * MIB;
/// Two files of an archive are separated by a header and padding, and often by a few small files that are not read.
const SEQUENTIAL_GAP_BYTES: u64 = 64 * KIB;
/// The kernel's own readahead sends several requests in any order; one this far back still belongs to its reader.
const BACK: u64 = MIB;
/// A reader of one file may end this far past it: content is read in whole blocks, and the end of the stored bytes of a
/// file is an estimate.
const FILE_MARGIN_BYTES: u64 = 2 * BLOCK_BYTES;

/// Window of a reader by the bytes that it has read in order, as (least bytes read, window).
const STEPS: [(u64, u64); 4] = [
    (8 * MIB, RANGES as u64 * MAX_READAHEAD_BYTES),
    (2 * MIB, MAX_READAHEAD_BYTES),
    (512 * KIB, MIB),
    (0, BLOCK_BYTES),
];

/// Readahead state of one content.
pub(super) struct Readahead {
    /// Upper bound of every window, in bytes.
    reach: u64,
    readers: Vec<FollowedReader>,
    /// Files of this content that are being read, in bytes, the latest last. At most `READERS`.
    files: VecDeque<ByteRange>,
    /// Counts reads, to find the reader that has been idle for longest.
    clock: u64,
    /// Readahead fetches that have not ended. Invariant: at most `RANGES`.
    going: usize,
}

struct FollowedReader {
    run: SequentialRun,
    pace: ReadaheadPace,
    last_read: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReadaheadPace {
    /// One read, which proves no order yet.
    Single,
    Sequential,
}

impl Default for Readahead {
    fn default() -> Self {
        Self::within(u64::MAX)
    }
}

impl Readahead {
    /// Limits every window to `reach` bytes: a cache smaller than the windows of its readers would evict fetched
    /// blocks before they are read.
    pub(super) fn within(reach: u64) -> Self {
        Self {
            reach: reach & !(BLOCK_BYTES - 1),
            readers: Vec::new(),
            files: VecDeque::new(),
            clock: 0,
            going: 0,
        }
    }

    /// From now on, the same.
    pub(super) fn limit(&mut self, reach: u64) {
        self.reach = reach & !(BLOCK_BYTES - 1);
    }

    /// Ends the windows of readers that begin in `file` where it ends. Readers that began before it and those that go on
    /// behind it read several files, and are unaffected.
    pub(super) fn stop_after(&mut self, file: ByteRange) {
        if self.files.back() == Some(&file) {
            return;
        }
        self.files.retain(|other| *other != file);
        if self.files.len() == READERS {
            self.files.pop_front();
        }
        self.files.push_back(file);
    }

    /// End of the file that this reader reads alone, in bytes.
    fn file_end(&self, reader: &SequentialRun) -> Option<u64> {
        let is_within = |file: &&ByteRange| {
            reader.start >= file.start & !(BLOCK_BYTES - 1)
                && reader.start < file.end
                && reader.next <= file.end.saturating_add(FILE_MARGIN_BYTES)
        };
        self.files.iter().rev().find(is_within).map(|file| file.end)
    }

    /// Records a read of content of `size` bytes, and returns the runs of blocks to fetch ahead of it. Each counts as
    /// running until its end is recorded.
    pub(super) fn note(&mut self, read: ByteRange, size: u64) -> Vec<Range<u64>> {
        if read.is_empty() {
            return Vec::new();
        }
        self.clock += 1;
        let Some(index) = self.readers.iter().position(|reader| reader.is_continued_by(read)) else {
            self.meet(read);
            return Vec::new();
        };
        self.readers[index].advance(read, self.clock);
        let index = self.join_neighbours(index);
        let end = self.file_end(&self.readers[index].run).map_or(size, |end| end.min(size));
        let mut runs = Vec::new();
        while self.going < RANGES
            && let Some(run) = self.readers[index].widen(end, self.reach)
        {
            self.going += 1;
            runs.push(run);
        }
        runs
    }

    /// Records that one of the runs was fetched, or given up.
    pub(super) fn ended(&mut self) {
        self.going -= 1;
    }

    fn meet(&mut self, read: ByteRange) {
        let reader = FollowedReader {
            run: SequentialRun::of(read),
            pace: ReadaheadPace::Single,
            last_read: self.clock,
        };
        if self.readers.len() == READERS
            && let Some((silent, _)) =
                self.readers.iter().enumerate().min_by_key(|(_, reader)| reader.last_read)
        {
            self.readers.swap_remove(silent);
        }
        self.readers.push(reader);
        self.join_neighbours(self.readers.len() - 1);
    }

    /// Joins readers that were one: requests in the wrong order look like two until the gap between them is read.
    fn join_neighbours(&mut self, mut index: usize) -> usize {
        while let Some(other) = (0..self.readers.len()).find(|&other| {
            other != index && {
                let (behind, before) = (&self.readers[index].run, &self.readers[other].run);
                before.start >= behind.start && before.start <= behind.next && before.next >= behind.next
            }
        }) {
            let joined = self.readers.swap_remove(other);
            if index == self.readers.len() {
                index = other;
            }
            let reader = &mut self.readers[index];
            reader.run.next = joined.run.next;
            reader.pace = reader.pace.max(joined.pace);
            reader.run.asked = reader.run.asked.max(joined.run.asked);
        }
        index
    }
}

impl FollowedReader {
    fn is_continued_by(&self, read: ByteRange) -> bool {
        let tolerance = match self.pace {
            // This may be one random access: only the same bytes, or those that follow, continue it.
            ReadaheadPace::Single if read.end <= self.run.next => {
                RunTolerance { back: self.run.len(), gap: SEQUENTIAL_GAP_BYTES }
            }
            ReadaheadPace::Single => RunTolerance { back: 0, gap: SEQUENTIAL_GAP_BYTES },
            // A block that the reader skips was fetched ahead of it all the same.
            ReadaheadPace::Sequential => RunTolerance { back: BACK, gap: BLOCK_BYTES },
        };
        self.run.is_continued_by(read, tolerance)
    }

    fn advance(&mut self, read: ByteRange, clock: u64) {
        self.last_read = clock;
        if self.run.advance(read) {
            self.pace = ReadaheadPace::Sequential;
        }
    }

    /// Distance ahead of the reader in which blocks are wanted, in bytes.
    fn window(&self) -> u64 {
        let run = self.run.len();
        let window = STEPS.iter().find(|(least, _)| run >= *least).map_or(BLOCK_BYTES, |step| step.1);
        if self.run.start == 0 {
            return window;
        }
        // A reader that begins in the middle reads one file of many, whose end is unknown at this level. The bytes
        // fetched past that end stay a small part of the bytes read, and none for a small file.
        window.min((run / 4) & !(BLOCK_BYTES - 1))
    }

    /// The next run of blocks to fetch ahead, at most to `size`; `None` while the window has no room for a whole run.
    fn widen(&mut self, size: u64, reach: u64) -> Option<Range<u64>> {
        if self.pace == ReadaheadPace::Single {
            return None;
        }
        let (window, blocks) = (self.window().min(reach), size.div_ceil(BLOCK_BYTES));
        let here = self.run.next.div_ceil(BLOCK_BYTES);
        let from = (self.run.asked >> BLOCK_SHIFT).max(here);
        // Half a window each: the second half is on its way while the first one is read.
        let length = (window / 2).clamp(BLOCK_BYTES, MAX_READAHEAD_BYTES) >> BLOCK_SHIFT;
        let limit = (here + (window >> BLOCK_SHIFT)).min(blocks);
        let end = (from + length).min(limit);
        if end <= from || (end - from < length && end < blocks) {
            return None;
        }
        self.run.asked = end << BLOCK_SHIFT;
        Some(from..end)
    }
}

/// Permits for readahead, over all content of a cache.
pub(super) struct FetchPermits {
    fetches: Arc<Semaphore>,
    /// A decode takes a core and itself fetches stored bytes: it must not hold the permits that those fetches wait
    /// for.
    decodes: Arc<Semaphore>,
}

impl FetchPermits {
    pub(super) fn new() -> Self {
        Self {
            fetches: Arc::new(Semaphore::new(concurrency::READAHEAD_FETCHES)),
            decodes: Arc::new(Semaphore::new(concurrency::decodes())),
        }
    }

    /// Semaphore for content of this kind; one permit is one fetch.
    pub(super) fn of(&self, kind: ContentKind) -> &Arc<Semaphore> {
        match kind {
            ContentKind::Blob => &self.fetches,
            ContentKind::Stream | ContentKind::Claim => &self.decodes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    /// What is asked for ahead by reads of `step` bytes over `range`, when every fetch ends at once.
    fn scan(ahead: &mut Readahead, range: ByteRange, step: u64) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for start in (range.start..range.end).step_by(step as usize) {
            let read = ByteRange::new(start, (start + step).min(range.end));
            for run in ahead.note(read, SIZE) {
                let reach = run.end * BLOCK_BYTES - read.end;
                assert!(reach <= 32 * MIB + BLOCK_BYTES, "{reach} bytes ahead at {start}");
                assert!((run.end - run.start) * BLOCK_BYTES <= MAX_READAHEAD_BYTES);
                ahead.ended();
                runs.push(run);
            }
        }
        runs
    }

    #[test]
    fn readahead_window_from_the_start_grows_to_32_mib() {
        let runs = scan(&mut Readahead::default(), ByteRange::new(0, 64 * MIB), 128 * KIB);
        assert_eq!(runs[0], 1..2);
        assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start), "{runs:?}");
        assert!(runs.last().unwrap().end > 88 * MIB / BLOCK_BYTES, "{runs:?}");
        assert!(runs.len() <= 24, "{runs:?}");
    }

    #[test]
    fn readahead_from_the_middle_is_a_quarter_of_the_bytes_read() {
        for length in [MIB, 6 * MIB, 40 * MIB, 200 * MIB] {
            let range = ByteRange::at(300 * MIB + 512, length);
            let runs = scan(&mut Readahead::default(), range, 100_000);
            let reach = runs.last().unwrap().end * BLOCK_BYTES - range.end;
            assert!(reach <= (length / 4).min(32 * MIB) + 3 * BLOCK_BYTES, "{reach} past {length}");
            assert!(reach >= (length / 8).min(24 * MIB), "{reach} past {length}");
        }
    }

    #[test]
    fn readahead_for_a_reader_of_one_file_ends_with_the_file() {
        let file = ByteRange::at(300 * MIB + 512, 7 * MIB + 1000);
        let mut ahead = Readahead::default();
        ahead.stop_after(file);
        let end = file.end.div_ceil(BLOCK_BYTES);
        let runs = scan(&mut ahead, file, 100_000);
        assert_eq!(runs.last().unwrap().end, end, "{runs:?}");
        // Blocks are read as wholes.
        assert_eq!(scan(&mut ahead, ByteRange::new(file.end, end * BLOCK_BYTES), 100_000), []);
        // A reader that goes on behind the file reads several.
        let runs = scan(&mut ahead, ByteRange::new(end * BLOCK_BYTES, file.end + 4 * MIB), 100_000);
        assert!(runs.last().unwrap().end * BLOCK_BYTES > file.end + 4 * MIB, "{runs:?}");

        // So does one that begins before it.
        let mut ahead = Readahead::default();
        ahead.stop_after(file);
        let runs = scan(&mut ahead, ByteRange::new(file.start - 4 * MIB, file.end), 100_000);
        assert!(runs.last().unwrap().end > end + 4, "{runs:?}");
        // More files than are remembered.
        for at in 0..20 {
            ahead.stop_after(ByteRange::at(at * MIB, MIB));
        }
        assert_eq!(ahead.files.len(), READERS);
    }

    #[test]
    fn concurrent_sequential_readers_have_separate_windows() {
        let mut ahead = Readahead::default();
        let mut reach = [0; 3];
        for step in 0..100 {
            for (reader, reach) in reach.iter_mut().enumerate() {
                let start = reader as u64 * 300 * MIB;
                for run in ahead.note(ByteRange::at(start + step * 128 * KIB, 128 * KIB), SIZE) {
                    assert!(run.start * BLOCK_BYTES >= start && run.end * BLOCK_BYTES <= start + 48 * MIB);
                    *reach = run.end * BLOCK_BYTES - start;
                    ahead.ended();
                }
            }
        }
        assert!(reach.iter().all(|reach| *reach > 12 * MIB), "{reach:?}");
    }

    #[test]
    fn requests_in_the_wrong_order_are_one_reader() {
        let mut ahead = Readahead::default();
        let mut end = 0;
        for pair in 0..64 {
            for start in [pair * 256 * KIB + 128 * KIB, pair * 256 * KIB] {
                for run in ahead.note(ByteRange::at(start, 128 * KIB), SIZE) {
                    assert!(run.start * BLOCK_BYTES >= end, "asked twice");
                    end = run.end * BLOCK_BYTES;
                    ahead.ended();
                }
            }
        }
        assert!(end >= 40 * MIB, "{end}");
        assert_eq!(ahead.readers.len(), 1);
    }

    #[test]
    fn a_small_cache_is_never_overrun() {
        let mut ahead = Readahead::within(MIB + 1);
        let widest = scan(&mut ahead, ByteRange::new(0, 64 * MIB), 128 * KIB).into_iter();
        assert_eq!(widest.map(|run| (run.end - run.start) * BLOCK_BYTES).max(), Some(MIB / 2));
        let mut ahead = Readahead::within(BLOCK_BYTES - 1);
        assert!(scan(&mut ahead, ByteRange::new(0, 64 * MIB), 128 * KIB).is_empty());
    }

    #[test]
    fn jumps_and_repetitions_ask_for_nothing() {
        let mut ahead = Readahead::default();
        let mut random = 9u64;
        for _ in 0..2000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Never less than 128 KiB after another one.
            let start = (random >> 33) % (SIZE / MIB) * MIB;
            assert!(ahead.note(ByteRange::at(start, 4096), SIZE).is_empty());
            assert!(ahead.note(ByteRange::at(start, 4096), SIZE).is_empty());
            assert!(ahead.note(ByteRange::at(start + 100, 10), SIZE).is_empty());
        }
        for start in (0..100).rev() {
            assert!(ahead.note(ByteRange::at(start * MIB, MIB), SIZE).is_empty(), "backwards");
        }
    }

    #[test]
    fn no_more_than_four_fetches_go_at_once_and_none_passes_the_end() {
        let mut ahead = Readahead::default();
        let size = 100 * MIB + 1;
        let mut asked = Vec::new();
        for start in (0..64 * MIB).step_by(MIB as usize) {
            asked.extend(ahead.note(ByteRange::at(start, MIB), size));
        }
        assert_eq!(asked.len(), RANGES, "{asked:?}");
        for start in (64 * MIB..100 * MIB).step_by(MIB as usize) {
            while ahead.going > 0 {
                ahead.ended();
            }
            asked.extend(ahead.note(ByteRange::at(start, MIB), size));
        }
        assert_eq!(asked.last().unwrap().end, size.div_ceil(BLOCK_BYTES));
    }
}
