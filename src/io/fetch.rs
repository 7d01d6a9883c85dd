//! Source of a blob's bytes below the cache.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::read_at::{check_bounds, plain_reads};
use super::{BoxFuture, BoxStream, ByteRange, FaultClass, LinkEstimate, LocalBytes, ReadAt, ReadError};

/// The result of one [`RangeFetch::fetch`].
pub struct RangeDelivery {
    /// The range of `body`. Invariant: it contains the requested range and lies inside `0..size`. It is wider when
    /// that is cheaper: a registry without ranges sends the whole blob, and a decoder starts at its span.
    pub range: ByteRange,
    /// Exactly `range.len()` bytes in order, or an error.
    pub body: BoxStream<'static, Result<Bytes, ReadError>>,
}

/// A producer of byte ranges without storage: a registry blob, a file of a layout, a decoder.
pub trait RangeFetch: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Starts producing at least `range` (not empty, inside `0..size`). The producer handles retries, resumption and
    /// deadlines; its error is final for this attempt.
    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>>;

    /// Whether [`local`](Self::local) may find a file.
    fn may_be_local(&self) -> bool {
        false
    }

    /// The same bytes as a local file, so that no copy is needed; `None` if there is none. Fetches read that file while it
    /// is held.
    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(std::future::ready(None))
    }

    /// The estimate of the link to the origin, which all its content shares; `None` for a link of its own.
    fn link(&self) -> Option<Arc<LinkEstimate>> {
        None
    }
}

/// A range of another producer, with offsets from 0.
pub struct FetchPart {
    whole: Arc<dyn RangeFetch>,
    /// Invariant: `range.end <= whole.size()`.
    range: ByteRange,
}

impl FetchPart {
    /// Fails when `range` passes the end of `whole`.
    pub fn new(whole: Arc<dyn RangeFetch>, range: ByteRange) -> Result<Self, ReadError> {
        check_bounds(range, whole.size())?;
        Ok(Self { whole, range })
    }
}

impl RangeFetch for FetchPart {
    fn size(&self) -> u64 {
        self.range.len()
    }

    fn may_be_local(&self) -> bool {
        self.whole.may_be_local()
    }

    fn local(&self) -> BoxFuture<'_, Option<LocalBytes>> {
        Box::pin(async move { self.whole.local().await?.part(self.range) })
    }

    fn link(&self) -> Option<Arc<LinkEstimate>> {
        self.whole.link()
    }

    fn fetch(&self, range: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
        Box::pin(async move {
            let part = self.range;
            check_bounds(range, part.len())?;
            let want = ByteRange::new(part.start + range.start, part.start + range.end);
            let RangeDelivery { range: given, body } = self.whole.fetch(want).await?;
            // Bytes outside belong to other parts.
            let ours = given.intersect(part);
            let body =
                futures_util::stream::try_unfold((body, given.start), move |(mut body, mut at)| async move {
                    while at < ours.end {
                        let Some(chunk) = body.next().await else { return Ok(None) };
                        let mut chunk = chunk?;
                        let here = ByteRange::at(at, chunk.len() as u64);
                        at = here.end;
                        let kept = here.intersect(ours);
                        if !kept.is_empty() {
                            chunk.truncate((kept.end - here.start) as usize);
                            return Ok(Some((
                                chunk.split_off((kept.start - here.start) as usize),
                                (body, at),
                            )));
                        }
                    }
                    Ok(None)
                });
            let range = ByteRange::new(ours.start - part.start, ours.end - part.start);
            Ok(RangeDelivery { range, body: body.boxed() })
        })
    }
}

/// [`ReadAt`] directly on a [`RangeFetch`], one fetch per read: for small documents and for tests of producers.
pub struct FetchAll(pub Arc<dyn RangeFetch>);

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
                        FaultClass::Misbehaved,
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

    plain_reads!(read_exactly, holes, learn_holes, verified, backing);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{read_all, read_vec};

    /// Delivers everything, in pieces, whatever is asked for: as a server without ranges does.
    struct Everything(Vec<u8>, usize);

    impl RangeFetch for Everything {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn fetch(&self, _: ByteRange) -> BoxFuture<'_, Result<RangeDelivery, ReadError>> {
            let pieces: Vec<_> = self.0.chunks(self.1).map(|piece| Ok(Bytes::from(piece.to_vec()))).collect();
            let range = ByteRange::new(0, self.size());
            Box::pin(
                async move { Ok(RangeDelivery { range, body: futures_util::stream::iter(pieces).boxed() }) },
            )
        }
    }

    #[tokio::test]
    async fn a_part_gives_its_own_bytes_whatever_comes_with_them() {
        let bytes: Vec<u8> = (0..100).collect();
        for piece in [1, 7, 30, 100] {
            for (start, end) in [(0, 100), (0, 1), (99, 100), (10, 47), (30, 60)] {
                let whole: Arc<dyn RangeFetch> = Arc::new(Everything(bytes.clone(), piece));
                let part = FetchPart::new(whole, ByteRange::new(start, end)).unwrap();
                let part = FetchAll(Arc::new(part));
                assert_eq!(read_all(&part).await.unwrap(), bytes[start as usize..end as usize]);
                let last = part.size();
                assert_eq!(read_vec(&part, ByteRange::new(last - 1, last)).await.unwrap(), [end as u8 - 1]);
                assert!(read_vec(&part, ByteRange::new(last, last + 1)).await.is_err());
            }
        }
        let whole: Arc<dyn RangeFetch> = Arc::new(Everything(bytes, 9));
        assert!(FetchPart::new(whole, ByteRange::new(1, 101)).is_err());
    }
}
