//! Sequential reader of a produced stream: produces each part once.
//!
//! Keeps the last delivery open, so that a sequential reader continues it. A jump starts a new delivery. Without
//! this, each of several small files in a row would cost a whole block. At most one part of a delivery is held.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::io::{
    BoxFuture, BoxStream, ByteRange, FaultClass, RangeFetch, ReadAt, ReadError, lock, plain_reads,
};

/// The stream of a [`RangeFetch`], for one reader.
pub(super) struct SequentialReader {
    fetch: Arc<dyn RangeFetch>,
    /// The open delivery; `None` while a reader uses it, so a second reader starts its own.
    open: Mutex<Option<OpenDelivery>>,
}

/// A delivery in progress.
struct OpenDelivery {
    /// Offset of `part`.
    at: u64,
    part: Bytes,
    /// End of the delivery, as an offset in the stream.
    end: u64,
    body: BoxStream<'static, Result<Bytes, ReadError>>,
}

impl SequentialReader {
    pub(super) fn new(fetch: Arc<dyn RangeFetch>) -> Self {
        Self { fetch, open: Mutex::default() }
    }

    async fn begin(&self, range: ByteRange) -> Result<OpenDelivery, ReadError> {
        let delivery = self.fetch.fetch(range).await?;
        Ok(OpenDelivery {
            at: delivery.range.start,
            part: Bytes::new(),
            end: delivery.range.end,
            body: delivery.body,
        })
    }

    async fn read(&self, want: ByteRange, buf: &mut [u8]) -> Result<(), ReadError> {
        if want.end > self.fetch.size() {
            let message = format!("bytes {want} of a stream of {}", self.fetch.size());
            return Err(ReadError::new(FaultClass::Usage, message));
        }
        let taken = lock(&self.open).take();
        let mut open = taken.filter(|open| open.at <= want.start && want.start < open.end);
        let mut at = want.start;
        while at < want.end {
            let mut here = match open.take() {
                Some(here) if at < here.end => here,
                _ => self.begin(ByteRange::new(at, want.end)).await?,
            };
            let part = ByteRange::at(here.at, here.part.len() as u64);
            if at < part.end {
                let take = part.intersect(ByteRange::new(at, want.end));
                buf[(at - want.start) as usize..(take.end - want.start) as usize].copy_from_slice(
                    &here.part[(at - part.start) as usize..(take.end - part.start) as usize],
                );
                at = take.end;
            } else {
                let Some(next) = here.body.next().await else {
                    let message = format!("a delivery up to {} ended at {}", here.end, part.end);
                    return Err(ReadError::new(FaultClass::Misbehaved, message));
                };
                (here.at, here.part) = (part.end, next?);
            }
            open = Some(here);
        }
        *lock(&self.open) = open;
        Ok(())
    }
}

impl ReadAt for SequentialReader {
    fn size(&self) -> u64 {
        self.fetch.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        let want = ByteRange::at(offset, buf.len() as u64);
        Box::pin(self.read(want, buf))
    }

    fn read_ready(&self, _offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        Ok(buf.is_empty())
    }

    plain_reads!(read_exactly, holes, learn_holes, verified, backing);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::io::{RangeDelivery, read_vec};

    /// Delivers whole kilobytes in parts of 100 bytes, and counts what it produces.
    struct Kilobytes(Vec<u8>, Arc<AtomicU64>);

    impl RangeFetch for Kilobytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            let range = range.align(10, self.size());
            let bytes = self.0[range.start as usize..range.end as usize].to_vec();
            let produced = self.1.clone();
            let parts: Vec<Bytes> = bytes.chunks(100).map(|part| part.to_vec().into()).collect();
            let body = futures_util::stream::iter(parts).map(move |part| {
                produced.fetch_add(part.len() as u64, Ordering::Relaxed);
                Ok(part)
            });
            Box::pin(async move { Ok(RangeDelivery { range, body: body.boxed() }) })
        }
    }

    #[tokio::test]
    async fn sequential_reader_decodes_once_and_a_jump_gets_right_bytes() {
        let bytes: Vec<u8> = (0..10_300_u32).map(|at| ((at * 7919) >> 5) as u8).collect();
        let produced = Arc::new(AtomicU64::new(0));
        let stream = SequentialReader::new(Arc::new(Kilobytes(bytes.clone(), produced.clone())));
        for start in (0..10_300).step_by(37) {
            let range = ByteRange::new(start, 10_300.min(start + 20));
            let read = read_vec(&stream, range).await.unwrap();
            assert_eq!(read, bytes[start as usize..range.end as usize]);
        }
        assert_eq!(produced.load(Ordering::Relaxed), 10_300);
        for (start, end) in [(5000, 5001), (0, 10_300), (10_299, 10_300), (3, 4), (1020, 2050), (1000, 1001)]
        {
            let read = read_vec(&stream, ByteRange::new(start, end)).await.unwrap();
            assert_eq!(read, bytes[start as usize..end as usize], "{start}..{end}");
        }
        assert_eq!(
            read_vec(&stream, ByteRange::new(10_299, 10_301)).await.unwrap_err().fault(),
            FaultClass::Usage
        );
    }
}
