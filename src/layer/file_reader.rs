//! File content: the bytes of one file, as a view into the stream of its layer.
//!
//! File-level readahead. Only this layer knows the end of a file. A file that is read from its start has the stored
//! bytes of its rest fetched, in growing steps and never past its end. No bytes are stored.

use std::sync::{Arc, Mutex, OnceLock};

use crate::io::{
    BoxFuture, ByteRange, ReadAt, ReadError, RunTolerance, SequentialRun, SharedReader, SliceReader,
    forward_reads, lock,
};

use super::sparse_reader::SparseReader;
use super::toc::SharedContent;

/// The first readahead step, in bytes of the file: no more than one large read of the kernel.
const INITIAL_READAHEAD_BYTES: u64 = 1024 * 1024;

/// The maximum readahead, in bytes of the file.
const MAX_FILE_READAHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// Maximum disorder of one sequential reader: the kernel reads ahead with several requests.
const DISORDER: RunTolerance = RunTolerance { back: 1024 * 1024, gap: 1024 * 1024 };

/// The readahead of the layer that holds a file. Ranges are of its stream.
pub trait FileReadahead: Send + Sync {
    /// Starts fetching the stored bytes of `range`, without a reader waiting for them.
    fn start_fetching(&self, range: ByteRange);

    /// The range of the stored bytes that holds `range`; `None` where none do.
    fn stored(&self, range: ByteRange) -> Option<ByteRange>;

    /// Ends the readahead of blocks for a reader that began in `file`, whose stored bytes are `stored`, where the file
    /// ends. Called before each of its reads.
    fn stop_after(&self, file: ByteRange, stored: Option<ByteRange>);

    /// Bytes that are worth fetching ahead of one reader.
    fn window(&self) -> u64;

    /// Ends the readahead for a reader that began in `file` and has closed it.
    fn close(&self, file: ByteRange, stored: Option<ByteRange>);
}

/// The bytes of the file that `content` locates in `stream`.
pub fn file(
    stream: &SharedReader,
    content: &SharedContent,
    readahead: Option<Arc<dyn FileReadahead>>,
) -> Result<SharedReader, ReadError> {
    if let Some(runs) = &content.runs {
        return Ok(Arc::new(SparseReader::new(
            stream.clone(),
            content.offset,
            content.size,
            Arc::clone(runs),
        )?));
    }
    let range = ByteRange::at(content.offset, content.size);
    let bytes = Arc::new(SliceReader::new(stream.clone(), range)?);
    Ok(match readahead {
        Some(readahead) if content.size > INITIAL_READAHEAD_BYTES / 4 => Arc::new(FileReader {
            bytes,
            range,
            stored: OnceLock::new(),
            readahead,
            reader: Mutex::default(),
        }),
        _ => bytes,
    })
}

/// A file with readahead for sequential readers.
struct FileReader {
    bytes: SharedReader,
    /// Range of the file in the stream.
    range: ByteRange,
    /// Range of its stored bytes, found at the first read that waits: a file may have a chunk for every 64 KiB.
    stored: OnceLock<Option<ByteRange>>,
    readahead: Arc<dyn FileReadahead>,
    /// Guards only its own state.
    reader: Mutex<SequentialRun>,
}

/// Records a read that had to wait, and returns the part of a file of `size` bytes, at most `most` bytes ahead, to fetch
/// for the reads that will follow.
fn wanted_ahead(run: &mut SequentialRun, read: ByteRange, size: u64, most: u64) -> Option<ByteRange> {
    if !run.is_continued_by(read, DISORDER) {
        // A jump: the read itself fetches its bytes.
        *run = SequentialRun::of(read);
        return None;
    }
    run.advance(read);
    let window = (run.next * 2)
        .clamp(INITIAL_READAHEAD_BYTES, most.clamp(INITIAL_READAHEAD_BYTES, MAX_FILE_READAHEAD_BYTES));
    let end = size.min(run.next + window);
    let start = run.asked.max(read.start);
    // Small steps would cause small requests.
    let is_worth_it = end > start && (end == size || end - start >= window / 2);
    is_worth_it.then(|| {
        run.asked = end;
        ByteRange::new(start, end)
    })
}

impl ReadAt for FileReader {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        let read = ByteRange::at(offset, buf.len() as u64);
        let most = self.readahead.window();
        let wanted = wanted_ahead(&mut lock(&self.reader), read, self.size(), most);
        let stored = *self.stored.get_or_init(|| self.readahead.stored(self.range));
        self.readahead.stop_after(self.range, stored);
        if let Some(wanted) = wanted {
            self.readahead.start_fetching(ByteRange::at(self.range.start + wanted.start, wanted.len()));
        }
        self.bytes.read_at(offset, buf)
    }

    forward_reads!(bytes: size, read_exactly, read_ready, next_data, next_hole, learn_holes, verified, backing);
}

impl Drop for FileReader {
    fn drop(&mut self) {
        // Only a read that waited has readahead.
        if let Some(stored) = self.stored.get() {
            self.readahead.close(self.range, *stored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    /// What is asked for by reads of these ranges.
    fn asked(size: u64, reads: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let mut run = SequentialRun::default();
        let wanted = reads
            .into_iter()
            .filter_map(|(start, end)| wanted_ahead(&mut run, ByteRange::new(start, end), size, u64::MAX));
        wanted.map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn a_file_that_is_read_in_order_is_fetched_once_in_few_steps_and_not_past_its_end() {
        for size in [300 * KIB, 3 * MIB + 7, 200 * MIB] {
            let step = 128 * KIB;
            let reads = (0..size.div_ceil(step)).map(|at| (at * step, size.min((at + 1) * step)));
            let asked = asked(size, reads);
            assert_eq!(asked.first().unwrap().0, 0);
            assert!(asked.windows(2).all(|pair| pair[0].1 == pair[1].0), "{asked:?}");
            assert_eq!(asked.last().unwrap().1, size);
            assert!(asked.len() as u64 <= 10 + size / (8 * MIB), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn the_stored_bytes_of_a_file_are_found_once() {
        #[derive(Default)]
        struct CountedReadahead(Mutex<(u32, u32, u32)>);
        impl FileReadahead for CountedReadahead {
            fn start_fetching(&self, _: ByteRange) {}
            fn stored(&self, range: ByteRange) -> Option<ByteRange> {
                lock(&self.0).0 += 1;
                Some(range)
            }
            fn stop_after(&self, file: ByteRange, stored: Option<ByteRange>) {
                assert_eq!(stored, Some(file));
                lock(&self.0).1 += 1;
            }
            fn window(&self) -> u64 {
                u64::MAX
            }
            fn close(&self, file: ByteRange, stored: Option<ByteRange>) {
                assert_eq!(stored, Some(file));
                lock(&self.0).2 += 1;
            }
        }
        let stream: SharedReader = Arc::new(crate::io::MemoryReader::new(vec![0; 2 * MIB as usize]));
        let content = SharedContent { size: MIB, offset: 512, runs: None };
        let readahead = Arc::new(CountedReadahead::default());
        let file = file(&stream, &content, Some(readahead.clone())).unwrap();
        for at in 0..8 {
            file.read_at(at * 128 * KIB, &mut [0; 4096]).await.unwrap();
        }
        assert_eq!(*lock(&readahead.0), (1, 8, 0));
        drop(file);
        assert_eq!(*lock(&readahead.0), (1, 8, 1), "a closed file has no readahead");
        // A look at the size alone ends nothing of other readers.
        let readahead = Arc::new(CountedReadahead::default());
        drop(super::file(&stream, &content, Some(readahead.clone())).unwrap());
        assert_eq!(lock(&readahead.0).2, 0);
    }

    #[test]
    fn a_short_look_at_a_large_file_costs_little() {
        assert_eq!(asked(100 * MIB, [(0, 4 * KIB)]), [(0, MIB + 4 * KIB)]);
    }

    #[test]
    fn readahead_of_a_file_is_at_most_the_window_of_its_link() {
        let mut run = SequentialRun::default();
        for start in (0..64 * MIB).step_by(128 << 10) {
            let read = ByteRange::at(start, 128 * KIB);
            if let Some(wanted) = wanted_ahead(&mut run, read, 100 * MIB, 3 * MIB) {
                assert!(wanted.end <= read.end + 3 * MIB, "{wanted} at {start}");
            }
        }
        assert!(run.asked > 64 * MIB);
    }

    #[test]
    fn jumps_ask_for_nothing() {
        let reads = (1..100).map(|at| ((at * 37) % 100 * 3 * MIB, (at * 37) % 100 * 3 * MIB + 4 * KIB));
        assert_eq!(asked(300 * MIB, reads.filter(|read| read.0 > DISORDER.gap)), []);
    }

    #[test]
    fn requests_in_the_wrong_order_are_one_reader() {
        let pairs = (0..32).flat_map(|pair| {
            let at = pair * 256 * KIB;
            [(at + 128 * KIB, at + 256 * KIB), (at, at + 128 * KIB)]
        });
        let asked = asked(8 * MIB, pairs);
        assert!(asked.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{asked:?}");
        assert_eq!(asked.last().unwrap().1, 8 * MIB);
    }
}
