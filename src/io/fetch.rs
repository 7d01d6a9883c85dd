//! Where the bytes of a blob come from when no cache has them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::read_at::check_bounds;
use super::{BoxFuture, BoxStream, ByteRange, Fault, ReadAt, ReadError};

/// The answer to one [`Fetch::fetch`].
pub struct Delivery {
    /// Which bytes `body` holds. Invariant: it contains the range that was asked for and lies inside `0..size`. It is
    /// wider when wider was cheaper: a registry without ranges sends the whole blob, a decoder starts at its span.
    pub range: ByteRange,
    /// Exactly `range.len()` bytes in order, or an error.
    pub body: BoxStream<'static, Result<Bytes, ReadError>>,
}

/// A producer of byte ranges that keeps nothing: a registry blob, a file of a layout, a decoder.
pub trait Fetch: Send + Sync + 'static {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// Starts producing at least `range` (not empty, inside `0..size`). Retries, resumption and deadlines are the
    /// producer's business: an error that comes out is final for this attempt.
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<Delivery, ReadError>>;
}

/// [`ReadAt`] straight from a [`Fetch`], one fetch a read: for small documents and for tests of producers.
pub struct FetchAll(pub Arc<dyn Fetch>);

impl ReadAt for FetchAll {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            let want = ByteRange::at(offset, buf.len() as u64);
            check_bounds(want, self.size())?;
            if want.is_empty() {
                return Ok(());
            }
            let mut delivery = self.0.fetch(want).await?;
            let mut at = delivery.range.start;
            while at < want.end {
                let Some(chunk) = delivery.body.next().await else {
                    return Err(ReadError::new(
                        Fault::Misbehaved,
                        format!("delivery of {:?} ended at {at}", delivery.range),
                    ));
                };
                let chunk = chunk?;
                let here = ByteRange::at(at, chunk.len() as u64);
                let part = here.intersect(want);
                if !part.is_empty() {
                    let target = (part.start - want.start) as usize..(part.end - want.start) as usize;
                    buf[target].copy_from_slice(&chunk[(part.start - at) as usize..(part.end - at) as usize]);
                }
                at = here.end;
            }
            Ok(())
        })
    }

    fn read_ready(&self, _offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        Ok(buf.is_empty())
    }
}
