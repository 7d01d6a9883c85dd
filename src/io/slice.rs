//! A range of another reader.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::read_at::{check_bounds, forward_reads};
use super::{BoxFuture, ByteRange, ReadAt, ReadError, SharedReader};

/// The bytes `range` of `inner`, with offsets from 0.
#[derive(Clone)]
pub struct SliceReader {
    inner: SharedReader,
    /// Invariant: `range.end <= inner.size()`.
    range: ByteRange,
}

impl SliceReader {
    /// Fails when `range` passes the end of `inner`.
    pub fn new(inner: SharedReader, range: ByteRange) -> Result<Self, ReadError> {
        check_bounds(range, inner.size())?;
        Ok(Self { inner, range })
    }
}

impl ReadAt for SliceReader {
    fn size(&self) -> u64 {
        self.range.len()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
            self.inner.read_at(self.range.start + offset, buf).await
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
            self.inner.read_exactly(self.range.start + offset, buf).await
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        self.inner.read_ready(self.range.start + offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let data = self.inner.next_data(self.range.start.saturating_add(offset))?;
        (data < self.range.end).then(|| data - self.range.start)
    }

    fn next_hole(&self, offset: u64) -> u64 {
        self.inner.next_hole(self.range.start.saturating_add(offset)).min(self.range.end) - self.range.start
    }

    forward_reads!(inner: learn_holes, verified);

    fn backing(&self) -> Option<Arc<OwnedFd>> {
        // Only the whole of a file has a backing file.
        (self.range == ByteRange::new(0, self.inner.size())).then(|| self.inner.backing()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_at::tests::ZeroReader;
    use super::*;

    #[test]
    fn only_a_slice_of_everything_has_the_file_of_its_source() {
        let source: SharedReader = Arc::new(ZeroReader::new(10));
        let whole = SliceReader::new(source.clone(), ByteRange::new(0, 10)).unwrap();
        assert!(Arc::ptr_eq(&whole.backing().unwrap(), &source.backing().unwrap()));
        for part in [ByteRange::new(0, 9), ByteRange::new(1, 10), ByteRange::new(3, 3)] {
            assert!(SliceReader::new(source.clone(), part).unwrap().backing().is_none(), "{part:?}");
        }
    }
}
