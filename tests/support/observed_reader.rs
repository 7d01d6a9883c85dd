//! Observed reader: bytes in memory that always need a wait, and the ranges that were read of them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ocifs::io::{BoxFuture, ByteRange, MemoryReader, ReadAt, ReadError, VerifiedLevel};

/// Bytes without holes that no digest verifies.
pub(crate) struct ObservedReader {
    bytes: MemoryReader,
    reads: Mutex<Vec<ByteRange>>,
}

impl ObservedReader {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes: MemoryReader::new(bytes), reads: Mutex::default() })
    }

    /// The ranges of all reads since the last call.
    pub(crate) fn take(&self) -> Vec<ByteRange> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }

    /// The number and the bytes of all reads since the last call.
    pub(crate) fn cost(&self) -> (usize, u64) {
        let reads = self.take();
        (reads.len(), reads.iter().map(|range| range.len()).sum())
    }
}

impl ReadAt for ObservedReader {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            if !buf.is_empty() {
                self.reads.lock().unwrap().push(ByteRange::at(offset, buf.len() as u64));
            }
            // Other readers run between a request and its answer.
            tokio::task::yield_now().await;
            self.bytes.read_at(offset, buf).await
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        self.read_at(offset, buf)
    }

    fn read_ready(&self, _: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        Ok(buf.is_empty())
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        (offset < self.size()).then_some(offset)
    }

    fn next_hole(&self, _: u64) -> u64 {
        self.size()
    }

    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        None
    }

    fn verified(&self) -> VerifiedLevel {
        VerifiedLevel::None
    }

    fn backing(&self) -> Option<Arc<OwnedFd>> {
        None
    }
}
