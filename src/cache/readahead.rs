//! Readahead: follows sequential readers and selects the blocks to fetch ahead of them.
//!
//! A read that begins where an earlier one ended makes its reader sequential. Its window follows the bandwidth-delay
//! product of the link, the bytes that it has read in order, and the share of earlier readahead that was used. Only
//! another read extends the window, so a reader that stops costs at most one window. A read in no order gets no readahead,
//! except its neighbours over a long link.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::Notify;

use super::readahead_window::{BlockOrigin, ReadPace, ReaderWindow};
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT};
use crate::io::{ByteRange, RunTolerance, SequentialRun};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Readers of one content that are followed at a time: one for each FUSE thread.
const READERS: usize = 8;
/// Fetches ahead of the readers of one content: a whole window, and those that follow it by thirds.
const RANGES: usize = 5;
/// Two files of an archive are separated by a header and padding, and often by a few small files that are not read.
const SEQUENTIAL_GAP_BYTES: u64 = 64 * KIB;
/// The kernel's own readahead sends several requests in any order; one this far back still belongs to its reader.
const BACK: u64 = MIB;
/// A reader of one file may end this far past it: content is read in whole blocks, and the end of the stored bytes of a
/// file is an estimate.
const FILE_MARGIN_BYTES: u64 = 2 * BLOCK_BYTES;

/// Readahead that its reader used and did not use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReadaheadUse {
    pub(super) used: u64,
    pub(super) unused: u64,
}

/// Readahead state of one content.
pub(super) struct Readahead {
    /// Upper bound of every window, in bytes.
    reach: u64,
    readers: Vec<FollowedReader>,
    /// Files of this content that are being read, in bytes, the latest last. At most `READERS`.
    files: VecDeque<ByteRange>,
    /// Counts reads, to find the reader that has been idle for longest.
    clock: u64,
    /// Readahead fetches that have not ended. Windows begin none beside `RANGES` others.
    going: Vec<AheadFetch>,
    /// Use of the readahead of readers that have stopped, not yet taken.
    stopped: ReadaheadUse,
}

/// A readahead fetch that has not ended.
struct AheadFetch {
    blocks: Range<u64>,
    /// Whether it still waits for its turn.
    is_pending: bool,
    /// Whether it does not end with a file.
    is_for_all: bool,
    /// Notified when it ends early: its reader has closed the file, or demands its blocks while it is pending.
    closed: Arc<Notify>,
}

struct FollowedReader {
    run: SequentialRun,
    pace: ReadaheadPace,
    last_read: u64,
    /// Bytes requested ahead of it.
    requested: u64,
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
            going: Vec::new(),
            stopped: ReadaheadUse::default(),
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

    /// Ends the readahead of the readers of `file`, which was closed. A reader that goes on begins anew.
    pub(super) fn close(&mut self, file: ByteRange) {
        let end = file.end.saturating_add(FILE_MARGIN_BYTES);
        for index in (0..self.readers.len()).rev() {
            let run = &self.readers[index].run;
            if begins_in(file, run.start) && run.next <= end {
                self.forget(index);
            }
        }
        let is_ended =
            |fetch: &&AheadFetch| !fetch.is_for_all && begins_in(file, fetch.blocks.start << BLOCK_SHIFT);
        for fetch in self.going.iter().filter(is_ended) {
            fetch.closed.notify_one();
        }
    }

    /// Ends the pending readahead of `block`, which its reader demands: the demand brings the blocks that follow in its
    /// own request.
    pub(super) fn overtake(&mut self, block: u64) {
        let is_overtaken = |fetch: &mut AheadFetch| fetch.is_pending && fetch.blocks.contains(&block);
        for fetch in self.going.extract_if(.., is_overtaken) {
            fetch.closed.notify_one();
            let (byte, end) = (block << BLOCK_SHIFT, fetch.blocks.end << BLOCK_SHIFT);
            for reader in
                self.readers.iter_mut().filter(|reader| reader.run.next < end && reader.run.asked >= end)
            {
                reader.requested = reader.requested.saturating_sub(reader.run.asked - byte);
                reader.run.asked = byte;
            }
        }
    }

    /// Records that the turn of a readahead fetch has come; returns whether it still is to run.
    pub(super) fn has_turn(&mut self, run: &Arc<Notify>) -> bool {
        let fetch = self.going.iter_mut().find(|fetch| Arc::ptr_eq(&fetch.closed, run));
        fetch.map(|fetch| fetch.is_pending = false).is_some()
    }

    /// Use of the readahead of readers that have stopped since the last call.
    pub(super) fn take_use(&mut self) -> ReadaheadUse {
        std::mem::take(&mut self.stopped)
    }

    /// Forgets all readers.
    pub(super) fn forget_all(&mut self) {
        while !self.readers.is_empty() {
            self.forget(0);
        }
    }

    fn forget(&mut self, index: usize) {
        let reader = self.readers.swap_remove(index);
        let unused = reader.run.asked.saturating_sub(reader.run.next).min(reader.requested);
        self.stopped.unused += unused;
        self.stopped.used += reader.requested - unused;
    }

    /// End of the file that this reader reads alone, in bytes.
    fn file_end(&self, reader: &SequentialRun) -> Option<u64> {
        let is_within = |file: &&ByteRange| {
            begins_in(**file, reader.start) && reader.next <= file.end.saturating_add(FILE_MARGIN_BYTES)
        };
        self.files.iter().rev().find(is_within).map(|file| file.end)
    }

    /// Records a read of content of `size` bytes, and returns the runs of blocks to fetch ahead of it. Each counts as
    /// running until its end is recorded.
    pub(super) fn note(
        &mut self,
        read: ByteRange,
        size: u64,
        origin: BlockOrigin,
        pace: ReadPace,
    ) -> Vec<(Range<u64>, Arc<Notify>)> {
        if read.is_empty() {
            return Vec::new();
        }
        self.clock += 1;
        let Some(index) = self.readers.iter().position(|reader| reader.is_continued_by(read)) else {
            let index = self.meet(read);
            let bytes = if pace == ReadPace::Waits { origin.neighbour_bytes() } else { 0 };
            return self.neighbours(index, size, bytes).into_iter().collect();
        };
        self.readers[index].advance(read, self.clock);
        let index = self.join_neighbours(index);
        let file_end = self.file_end(&self.readers[index].run);
        let end = file_end.map_or(size, |end| end.min(size));
        let mut window = ReaderWindow::of(origin, self.readers[index].run.len(), read.len(), pace);
        let whole = window.len;
        if self.readers[index].run.start != 0 && file_end.is_none() {
            // A reader that begins in the middle reads one file of many, whose end is unknown at this level. The bytes
            // fetched past that end stay a small part of the bytes read, and none for a small file.
            window.len = window.len.min((self.readers[index].run.len() / 4) & !(BLOCK_BYTES - 1));
        }
        window.len = window.len.min(self.reach);
        if window.len < whole {
            // Half a window each: the second half is on its way while the first one is read.
            window.least = window.least.min(window.len / 2).max(BLOCK_BYTES);
        }
        let mut runs = Vec::new();
        while self.going.len() < RANGES
            && let Some(run) = self.readers[index].widen(end, window)
        {
            let closed = self.begin(run.clone());
            runs.push((run, closed));
        }
        runs
    }

    /// The blocks in `bytes` bytes after a read in no order, whose reader is new. They are for any reader, so closing the
    /// file of this one does not end their fetch.
    fn neighbours(&mut self, index: usize, size: u64, bytes: u64) -> Option<(Range<u64>, Arc<Notify>)> {
        let run = &mut self.readers[index].run;
        // The head of a content is often all that is read of it.
        if run.start < BLOCK_BYTES {
            return None;
        }
        let first = run.next.div_ceil(BLOCK_BYTES);
        let end = (first + (bytes.min(self.reach) >> BLOCK_SHIFT)).min(size.div_ceil(BLOCK_BYTES));
        if end <= first || self.going.len() >= RANGES {
            return None;
        }
        // The window of a reader that goes on begins behind them.
        run.asked = run.asked.max(end << BLOCK_SHIFT);
        let closed = self.begin(first..end);
        if let Some(fetch) = self.going.last_mut() {
            fetch.is_for_all = true;
        }
        Some((first..end, closed))
    }

    /// Records that a readahead fetch of `blocks` is running until its end is recorded.
    pub(super) fn begin(&mut self, blocks: Range<u64>) -> Arc<Notify> {
        let closed = Arc::new(Notify::new());
        self.going.push(AheadFetch {
            blocks,
            is_pending: true,
            is_for_all: false,
            closed: Arc::clone(&closed),
        });
        closed
    }

    #[cfg(test)]
    pub(super) fn fetches(&self) -> usize {
        self.going.len()
    }

    /// Records that one of the runs was fetched, or given up.
    pub(super) fn ended(&mut self, run: &Arc<Notify>) {
        self.going.retain(|fetch| !Arc::ptr_eq(&fetch.closed, run));
    }

    fn meet(&mut self, read: ByteRange) -> usize {
        let reader = FollowedReader {
            run: SequentialRun::of(read),
            pace: ReadaheadPace::Single,
            last_read: self.clock,
            requested: 0,
        };
        if self.readers.len() == READERS
            && let Some((silent, _)) =
                self.readers.iter().enumerate().min_by_key(|(_, reader)| reader.last_read)
        {
            self.forget(silent);
        }
        self.readers.push(reader);
        self.join_neighbours(self.readers.len() - 1)
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
            reader.requested += joined.requested;
        }
        index
    }
}

/// Whether a reader that begins at `start` begins in `file`: blocks are read as wholes.
fn begins_in(file: ByteRange, start: u64) -> bool {
    start >= file.start & !(BLOCK_BYTES - 1) && start < file.end
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

    /// The next run of blocks to fetch ahead, at most to `size`; `None` while the window has no room for a whole run.
    fn widen(&mut self, size: u64, window: ReaderWindow) -> Option<Range<u64>> {
        if self.pace == ReadaheadPace::Single {
            return None;
        }
        let blocks = size.div_ceil(BLOCK_BYTES);
        let here = self.run.next.div_ceil(BLOCK_BYTES);
        let from = (self.run.asked >> BLOCK_SHIFT).max(here);
        let limit = (here + (window.len >> BLOCK_SHIFT)).min(blocks);
        let end = (from + (window.most >> BLOCK_SHIFT)).min(limit);
        if end <= from || (end - from < window.least >> BLOCK_SHIFT && end < blocks) {
            return None;
        }
        self.run.asked = end << BLOCK_SHIFT;
        self.requested += (end - from) << BLOCK_SHIFT;
        Some(from..end)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::readahead_window::MAX_READAHEAD_BYTES;
    use super::*;
    use crate::io::{LinkLength, LinkMeasure};

    const SIZE: u64 = 1 << 30;
    const DECODER: BlockOrigin = BlockOrigin::Decoder { most: u64::MAX };

    fn note(ahead: &mut Readahead, read: ByteRange) -> Vec<(Range<u64>, Arc<Notify>)> {
        ahead.note(read, SIZE, DECODER, ReadPace::Waits)
    }

    /// What is asked for ahead by reads of `step` bytes over `range`, when every fetch ends at once.
    fn scan(ahead: &mut Readahead, range: ByteRange, step: u64) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for start in (range.start..range.end).step_by(step as usize) {
            let read = ByteRange::new(start, (start + step).min(range.end));
            for (run, closed) in ahead.note(read, SIZE, DECODER, ReadPace::Waits) {
                let reach = run.end * BLOCK_BYTES - read.end;
                assert!(reach <= 32 * MIB + BLOCK_BYTES, "{reach} bytes ahead at {start}");
                assert!((run.end - run.start) * BLOCK_BYTES <= MAX_READAHEAD_BYTES);
                ahead.ended(&closed);
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
                for (run, closed) in note(&mut ahead, ByteRange::at(start + step * 128 * KIB, 128 * KIB)) {
                    assert!(run.start * BLOCK_BYTES >= start && run.end * BLOCK_BYTES <= start + 48 * MIB);
                    *reach = run.end * BLOCK_BYTES - start;
                    ahead.ended(&closed);
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
                for (run, closed) in note(&mut ahead, ByteRange::at(start, 128 * KIB)) {
                    assert!(run.start * BLOCK_BYTES >= end, "asked twice");
                    end = run.end * BLOCK_BYTES;
                    ahead.ended(&closed);
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
            assert!(note(&mut ahead, ByteRange::at(start, 4096)).is_empty());
            assert!(note(&mut ahead, ByteRange::at(start, 4096)).is_empty());
            assert!(note(&mut ahead, ByteRange::at(start + 100, 10)).is_empty());
        }
        for start in (0..100).rev() {
            assert!(note(&mut ahead, ByteRange::at(start * MIB, MIB)).is_empty(), "backwards");
        }
    }

    #[test]
    fn a_read_in_no_order_brings_its_neighbours_over_a_long_link_alone() {
        let asked_over = |length, product, start: u64, pace| {
            let mut ahead = Readahead::default();
            let link = BlockOrigin::Link(LinkMeasure { product, used: 0.0, throughput: 10_000_000, length });
            let runs = ahead.note(ByteRange::at(start, 4096), SIZE, link, pace);
            // They are not for one file alone.
            ahead.close(ByteRange::new(0, SIZE));
            assert!(runs.iter().all(|(_, closed)| closed.notified().now_or_never().is_none()));
            let bytes = |run: &Range<u64>| ByteRange::new(run.start * BLOCK_BYTES, run.end * BLOCK_BYTES);
            runs.iter().map(|(run, _)| bytes(run)).collect::<Vec<_>>()
        };
        let asked = |product, start, pace| asked_over(LinkLength::Long, product, start, pace);
        let after = |start: u64, len| vec![ByteRange::at(start + BLOCK_BYTES, len)];
        for product in [0, MIB, 2 * MIB - 1] {
            assert!(asked(product, MIB, ReadPace::Waits).is_empty(), "{product}");
        }
        assert_eq!(asked(2 * MIB, MIB, ReadPace::Waits), after(MIB, MIB));
        assert!(asked(2 * MIB, 0, ReadPace::Waits).is_empty(), "the head alone");
        assert_eq!(asked(100 * MIB, 64 * MIB, ReadPace::Waits), after(64 * MIB, 4 * MIB));
        assert!(asked_over(LinkLength::Short, 100 * MIB, MIB, ReadPace::Waits).is_empty());
        assert!(asked(8 * MIB, MIB, ReadPace::Served).is_empty(), "its blocks are present");
        assert_eq!(asked(8 * MIB, SIZE - MIB, ReadPace::Waits), after(SIZE - MIB, 3 * BLOCK_BYTES));
        assert!(asked(8 * MIB, SIZE - 4096, ReadPace::Waits).is_empty());
    }

    #[test]
    fn no_more_than_five_fetches_go_at_once_and_none_passes_the_end() {
        let mut ahead = Readahead::default();
        let size = 100 * MIB + 1;
        let mut asked = Vec::new();
        for start in (0..64 * MIB).step_by(MIB as usize) {
            asked.extend(ahead.note(ByteRange::at(start, MIB), size, DECODER, ReadPace::Waits));
        }
        assert_eq!(asked.len(), RANGES, "{asked:?}");
        for start in (64 * MIB..100 * MIB).step_by(MIB as usize) {
            ahead.going.clear();
            asked.extend(ahead.note(ByteRange::at(start, MIB), size, DECODER, ReadPace::Waits));
        }
        assert_eq!(asked.last().unwrap().0.end, size.div_ceil(BLOCK_BYTES));
    }

    #[test]
    fn a_demand_overtakes_readahead_that_was_not_requested() {
        let mut ahead = Readahead::default();
        let link = BlockOrigin::Link(LinkMeasure {
            product: MIB,
            used: 0.0,
            throughput: 1,
            length: LinkLength::Short,
        });
        let read = |ahead: &mut Readahead, start| {
            ahead.note(ByteRange::at(start, 128 * KIB), SIZE, link, ReadPace::Waits)
        };
        let mut pending = Vec::new();
        for start in (0..MIB).step_by(128 << 10) {
            pending.extend(read(&mut ahead, start));
        }
        let (run, ended) = pending.pop().unwrap();
        for (_, begun) in &pending {
            assert!(ahead.has_turn(begun));
            ahead.ended(begun);
        }
        ahead.overtake(run.end);
        for start in (MIB..run.start * BLOCK_BYTES).step_by(128 << 10) {
            for (_, later) in read(&mut ahead, start) {
                ahead.ended(&later);
            }
        }
        assert_eq!(ended.notified().now_or_never(), None, "its blocks are not demanded");
        let requested = ahead.readers[0].requested;
        ahead.overtake(run.start);
        assert_eq!(ended.notified().now_or_never(), Some(()));
        assert!(!ahead.has_turn(&ended));
        assert!(ahead.readers[0].requested < requested);
        let next = read(&mut ahead, run.start * BLOCK_BYTES);
        assert_eq!(next[0].0.start, run.start + 1, "it follows the demanded block");
        // Under way it is not overtaken.
        assert!(ahead.has_turn(&next[0].1));
        ahead.overtake(next[0].0.start);
        assert_eq!(next[0].1.notified().now_or_never(), None);
    }

    #[test]
    fn readahead_of_a_closed_file_ends_and_counts_as_unused() {
        let mut ahead = Readahead::default();
        let link = BlockOrigin::Link(LinkMeasure {
            product: 8 * MIB,
            used: 1.0,
            throughput: 1,
            length: LinkLength::Short,
        });
        let file = ByteRange::at(300 * MIB + 512, 100 * MIB);
        ahead.stop_after(file);
        let read = |ahead: &mut Readahead, start, end| {
            let mut runs = Vec::new();
            for start in (start..end).step_by(128 << 10) {
                runs.extend(ahead.note(ByteRange::at(start, 128 * KIB), SIZE, link, ReadPace::Served));
            }
            runs
        };
        let other = read(&mut ahead, 0, 2 * MIB);
        let runs = read(&mut ahead, file.start, file.start + 4 * MIB);
        let requested = runs.iter().map(|(run, _)| run.end - run.start).sum::<u64>() * BLOCK_BYTES;
        assert!(requested > 4 * MIB, "{runs:?}");
        ahead.close(file);
        let is_notified = |closed: &Arc<Notify>| {
            let mut notified = std::pin::pin!(closed.notified());
            notified.as_mut().enable()
        };
        assert!(runs.iter().all(|(_, closed)| is_notified(closed)));
        assert!(!other.iter().any(|(_, closed)| is_notified(closed)), "another reader goes on");
        let counted = ahead.take_use();
        assert_eq!(counted.used + counted.unused, requested);
        assert!((4 * MIB..=8 * MIB + BLOCK_BYTES).contains(&counted.unused), "{counted:?}");
        assert_eq!(ahead.take_use(), ReadaheadUse::default());
    }
}
