//! As-served view of cached content, for a comparison.
//!
//! Readers get present blocks from disk and missing ones from the source, so the view reads both the same way. It
//! stores no block and counts no read.

use std::sync::Arc;

use super::cached::CachedFile;
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT};
use crate::io::{BoxFuture, ByteRange, ReadAt, ReadError, SharedReader, forward_reads, plain_reads};

/// See [`CachedFile::as_served`].
struct AsServed {
    cached: Arc<CachedFile>,
    /// Source of the missing blocks.
    rest: SharedReader,
}

impl CachedFile {
    /// Present blocks as they are on disk, and the others from `rest`, without storing them.
    pub fn as_served(self: &Arc<Self>, rest: SharedReader) -> SharedReader {
        Arc::new(AsServed { cached: Arc::clone(self), rest })
    }

    /// The first block on disk whose checksum differs from the one in `sums`.
    pub fn first_other(&self, sums: &[[u8; 32]]) -> Option<u64> {
        let mut other = None;
        let pair = self.inner.pair()?;
        let walked = pair.sidecar.each_record(|block, _, record| {
            let sum = usize::try_from(block).ok().and_then(|block| sums.get(block));
            let is_other = record.is_some_and(|record| Some(&record.sum) != sum);
            other = other.or(is_other.then_some(block));
            other.is_none()
        });
        if let Err(error) = walked {
            tracing::debug!(%error, digest = %self.inner.digest, "cannot read the sidecar");
        }
        other
    }
}

impl ReadAt for AsServed {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            let range = ByteRange::at(offset, buf.len() as u64);
            let inner = &self.cached.inner;
            let missing: Vec<u64> = match range.end <= inner.size {
                true => inner.read_from_disk(range, buf, usize::MAX).unwrap_or_default(),
                false => range.blocks(BLOCK_SHIFT).collect(),
            };
            for block in missing {
                let part = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).intersect(range);
                // Differences inside of the buffer, which is in memory.
                let target = (part.start - range.start) as usize..(part.end - range.start) as usize;
                self.rest.read_at(part.start, &mut buf[target]).await?;
            }
            Ok(())
        })
    }

    fn read_ready(&self, _: u64, _: &mut [u8]) -> Result<bool, ReadError> {
        Ok(false)
    }

    forward_reads!(rest: size);
    // The comparison reads every byte, in order and holes too.
    plain_reads!(read_exactly, holes, learn_holes, verified, backing);
}
