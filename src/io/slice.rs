//! A window of other bytes.

use super::read_at::check_bounds;
use super::{BoxFuture, ByteRange, ReadAt, ReadError, Shared, Verified};

/// The bytes `range` of `inner`, seen from 0.
#[derive(Clone)]
pub struct Slice {
    inner: Shared,
    /// Invariant: `range.end <= inner.size()`.
    range: ByteRange,
}

impl Slice {
    /// Fails when `range` passes the end of `inner`.
    pub fn new(inner: Shared, range: ByteRange) -> Result<Self, ReadError> {
        check_bounds(range, inner.size())?;
        Ok(Self { inner, range })
    }
}

impl ReadAt for Slice {
    fn size(&self) -> u64 {
        self.range.len()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
            self.inner.read_at(self.range.start + offset, buf).await
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

    fn verified(&self) -> Verified {
        self.inner.verified()
    }
}
