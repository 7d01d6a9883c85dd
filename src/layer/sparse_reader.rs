//! A sparse file: its data runs, one after the other in the stream of its layer, and the holes between them.
//!
//! The runs are those of the tree, shared by all readers: an image decides how many there are. A read takes one range of
//! the stream, however many runs it meets.

use std::sync::Arc;

use crate::io::{
    BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, SharedReader, VerifiedLevel, check_bounds,
    plain_reads,
};

use super::toc::SparseRun;

/// Runs behind one mark: so many lengths are added up to find a place in the stream.
const RUNS_PER_MARK: usize = 512;

/// The bytes of a sparse file.
pub(super) struct SparseReader {
    stream: SharedReader,
    /// Bytes, holes included.
    size: u64,
    /// Invariant: in order, without overlap, at most up to `size`.
    runs: Arc<[SparseRun]>,
    /// The offset in the stream of every [`RUNS_PER_MARK`]th run. Invariant: at least one.
    marks: Box<[u64]>,
}

impl SparseReader {
    /// A file of `size` bytes with data in `runs`, which begins at `first` in `stream`.
    pub(super) fn new(
        stream: SharedReader,
        first: u64,
        size: u64,
        runs: Arc<[SparseRun]>,
    ) -> Result<Self, ReadError> {
        let mut marks = Vec::with_capacity(1 + runs.len() / RUNS_PER_MARK);
        let (mut end, mut stored) = (0, first);
        for (at, run) in runs.iter().enumerate() {
            if at % RUNS_PER_MARK == 0 {
                marks.push(stored);
            }
            end = end_of(run).filter(|&next| run.offset >= end && next <= size).ok_or_else(|| {
                let message = format!(
                    "a sparse file of {size} bytes has {} bytes of data at {}, after data up to {end}",
                    run.len, run.offset
                );
                ReadError::new(FaultClass::Malformed, message)
            })?;
            stored = stored.saturating_add(run.len);
        }
        if marks.is_empty() {
            marks.push(first);
        }
        check_bounds(ByteRange::new(first, stored), stream.size())?;
        Ok(Self { stream, size, runs, marks: marks.into() })
    }

    /// The first run that ends behind `offset`.
    fn run_at(&self, offset: u64) -> usize {
        self.runs.partition_point(|run| run.offset + run.len <= offset)
    }

    /// The offset in the stream of the first data at or behind `offset`.
    fn place_of(&self, offset: u64) -> u64 {
        let at = self.run_at(offset);
        let mark = (at / RUNS_PER_MARK).min(self.marks.len() - 1);
        let before: u64 = self.runs[mark * RUNS_PER_MARK..at].iter().map(|run| run.len).sum();
        let inside = self.runs.get(at).map_or(0, |run| offset.saturating_sub(run.offset));
        self.marks[mark] + before + inside
    }

    /// The range of the stream with the data of `range`.
    fn stored(&self, range: ByteRange) -> Result<ByteRange, ReadError> {
        check_bounds(range, self.size)?;
        Ok(ByteRange::new(self.place_of(range.start), self.place_of(range.end)))
    }

    /// Fills `buf` by one of the two reads of the stream.
    async fn read(
        &self,
        read: impl for<'r> Fn(&'r dyn ReadAt, u64, &'r mut [u8]) -> BoxFuture<'r, Result<(), ReadError>>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let data = self.stored(ByteRange::at(offset, buf.len() as u64))?;
        let holes = buf.len() - data.len() as usize;
        if !data.is_empty() {
            read(&*self.stream, data.start, &mut buf[holes..]).await?;
        }
        self.scatter(offset, buf, data);
        Ok(())
    }

    /// Puts the data at the end of `buf` where it belongs in the bytes at `offset`, and zeros in between. No data moves
    /// backwards, so none is overwritten before it has moved.
    fn scatter(&self, offset: u64, buf: &mut [u8], data: ByteRange) {
        let mut from = buf.len() - data.len() as usize;
        let mut to = 0;
        for run in &self.runs[self.run_at(offset)..] {
            let start = (run.offset.saturating_sub(offset) as usize).max(to);
            if start >= buf.len() || from == buf.len() {
                break;
            }
            buf[to..start].fill(0);
            let left = run.offset + run.len - (offset + start as u64);
            let len = left.min((buf.len() - from) as u64) as usize;
            buf.copy_within(from..from + len, start);
            (from, to) = (from + len, start + len);
        }
        buf[to..].fill(0);
    }
}

/// The end of a run in its file; `None` for a run that no file has.
fn end_of(run: &SparseRun) -> Option<u64> {
    run.offset.checked_add(run.len)
}

impl ReadAt for SparseReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(<dyn ReadAt>::read_at, offset, buf))
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(<dyn ReadAt>::read_exactly, offset, buf))
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let data = self.stored(ByteRange::at(offset, buf.len() as u64))?;
        let holes = buf.len() - data.len() as usize;
        if !data.is_empty() && !self.stream.read_ready(data.start, &mut buf[holes..])? {
            return Ok(false);
        }
        self.scatter(offset, buf, data);
        Ok(true)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let behind = &self.runs[self.run_at(offset)..];
        Some(behind.iter().find(|run| run.len > 0)?.offset.max(offset))
    }

    fn next_hole(&self, offset: u64) -> u64 {
        let mut end = offset.min(self.size);
        for run in &self.runs[self.run_at(offset)..] {
            if run.offset > end {
                break;
            }
            end = end.max(run.offset + run.len);
        }
        end
    }

    plain_reads!(learn_holes, backing);

    fn verified(&self) -> VerifiedLevel {
        match self.runs.iter().any(|run| run.len > 0) {
            true => self.stream.verified(),
            false => VerifiedLevel::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::io::{MemoryReader, read_all, read_vec};

    use super::*;

    fn reader(size: u64, runs: &[(u64, u64)]) -> Result<SparseReader, ReadError> {
        let stream: Vec<u8> = (0..=255).cycle().skip(1).take(5000).collect();
        let runs: Arc<[SparseRun]> = runs.iter().map(|&(offset, len)| SparseRun { offset, len }).collect();
        SparseReader::new(Arc::new(MemoryReader::new(stream)), 7, size, runs)
    }

    /// The bytes, put together one by one.
    fn plain(size: u64, runs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        let mut stored = (0..=255).cycle().skip(8);
        for &(offset, len) in runs {
            bytes[offset as usize..][..len as usize].fill_with(|| stored.next().unwrap());
        }
        bytes
    }

    #[tokio::test]
    async fn every_range_has_its_data_and_zeros() {
        let cases: [&[(u64, u64)]; 8] = [
            &[],
            &[(0, 40)],
            &[(40, 0)],
            &[(3, 4), (7, 2), (20, 1), (22, 18)],
            &[(0, 1), (2, 1), (4, 1), (39, 1)],
            &[(0, 0), (5, 0), (5, 5), (10, 0), (30, 10), (40, 0)],
            &[(39, 1)],
            &[(0, 20), (20, 10)],
        ];
        for runs in cases {
            let (file, whole) = (reader(40, runs).unwrap(), plain(40, runs));
            assert_eq!(read_all(&file).await.unwrap(), whole);
            for start in 0..=40 {
                for end in start..=40 {
                    let want = &whole[start as usize..end as usize];
                    assert_eq!(read_vec(&file, ByteRange::new(start, end)).await.unwrap(), want, "{runs:?}");
                    let mut buf = vec![1; want.len()];
                    assert!(file.read_ready(start, &mut buf).unwrap());
                    assert_eq!(buf, want, "{runs:?} {start} {end}");
                    buf.fill(1);
                    file.read_exactly(start, &mut buf).await.unwrap();
                    assert_eq!(buf, want);
                }
                let is_data = |at: &u64| runs.iter().any(|run| (run.0..run.0 + run.1).contains(at));
                assert_eq!(file.next_data(start), (start..40).find(is_data), "{runs:?} {start}");
                let hole = (start..40).find(|at| !is_data(at)).unwrap_or(40);
                assert_eq!(file.next_hole(start), hole, "{runs:?} {start}");
            }
            assert!(read_vec(&file, ByteRange::new(0, 41)).await.is_err());
        }
    }

    #[tokio::test]
    async fn runs_over_several_marks_are_found() {
        let runs: Vec<_> = (0..1600).map(|at| (at * 3, 2)).collect();
        let (file, whole) = (reader(4800, &runs).unwrap(), plain(4800, &runs));
        for start in (0..4800).step_by(37) {
            let range = ByteRange::new(start, (start + 1000).min(4800));
            let want = &whole[range.start as usize..range.end as usize];
            assert_eq!(read_vec(&file, range).await.unwrap(), want);
        }
        assert_eq!(file.marks.len(), 4);
    }

    #[test]
    fn runs_out_of_order_or_of_the_file_or_of_the_stream_are_refused() {
        for runs in [&[(5, 5), (9, 1)][..], &[(5, 1), (0, 1)], &[(39, 2)], &[(u64::MAX, 1)]] {
            assert_eq!(reader(40, runs).err().unwrap().fault(), FaultClass::Malformed, "{runs:?}");
        }
        assert!(reader(6000, &[(0, 4993)]).is_ok());
        assert!(reader(6000, &[(0, 4994)]).is_err());
    }
}
