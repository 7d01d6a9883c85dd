//! Lazily opened reader of a known size.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::{BoxFuture, FaultClass, ReadAt, ReadError, SharedReader, VerifiedLevel};

/// Opens the bytes; called again after an error.
pub type ReaderOpener = Box<dyn Fn() -> BoxFuture<'static, Result<SharedReader, ReadError>> + Send + Sync>;

/// Bytes that are opened on the first read: a packed part of a disk behind parts that are not packed.
pub struct DeferredReader {
    size: u64,
    open: ReaderOpener,
    opened: OnceCell<SharedReader>,
}

impl DeferredReader {
    /// Bytes from `open`, which must have `size` bytes; another size is an error of the claim.
    pub fn new(size: u64, open: ReaderOpener) -> Self {
        Self { size, open, opened: OnceCell::new() }
    }

    async fn opened(&self) -> Result<&SharedReader, ReadError> {
        self.opened
            .get_or_try_init(|| async {
                let bytes = (self.open)().await?;
                if bytes.size() != self.size {
                    let message = format!("it has {} bytes and was to have {}", bytes.size(), self.size);
                    return Err(ReadError::new(FaultClass::Malformed, message));
                }
                Ok(bytes)
            })
            .await
    }
}

impl ReadAt for DeferredReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move { self.opened().await?.read_at(offset, buf).await })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move { self.opened().await?.read_exactly(offset, buf).await })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.opened.get().map_or(Ok(buf.is_empty()), |bytes| bytes.read_ready(offset, buf))
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        match self.opened.get() {
            Some(bytes) => bytes.next_data(offset),
            None => (offset < self.size).then_some(offset),
        }
    }

    fn next_hole(&self, offset: u64) -> u64 {
        self.opened.get().map_or(self.size, |bytes| bytes.next_hole(offset))
    }

    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        // Opening may decompress everything, which a query for holes does not justify.
        self.opened.get()?.learn_holes()
    }

    fn verified(&self) -> VerifiedLevel {
        self.opened.get().map_or(VerifiedLevel::None, |bytes| bytes.verified())
    }

    fn backing(&self) -> Option<Arc<OwnedFd>> {
        self.opened.get()?.backing()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{ByteRange, MemoryReader, read_all, read_vec};
    use super::*;

    /// Opens what `make` makes, counting how often it is asked.
    fn deferred(
        size: u64,
        make: impl Fn(usize) -> Result<SharedReader, ReadError> + Send + Sync + 'static,
    ) -> (DeferredReader, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let opener = {
            let (count, make) = (count.clone(), Arc::new(make));
            Box::new(move || -> BoxFuture<'static, Result<SharedReader, ReadError>> {
                let made = make(count.fetch_add(1, Ordering::Relaxed));
                Box::pin(async move { made })
            })
        };
        (DeferredReader::new(size, opener), count)
    }

    #[tokio::test]
    async fn it_is_opened_once_and_only_when_it_is_read() {
        let (bytes, count) = deferred(5, |_| Ok(Arc::new(MemoryReader::new(&b"hello"[..]))));
        assert_eq!((bytes.size(), bytes.next_hole(0), bytes.next_data(4)), (5, 5, Some(4)));
        assert!(!bytes.read_ready(0, &mut [0]).unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 0);
        assert_eq!(read_all(&bytes).await.unwrap(), b"hello");
        assert_eq!(read_vec(&bytes, ByteRange::new(1, 3)).await.unwrap(), b"el");
        assert!(bytes.read_ready(0, &mut [0]).unwrap());
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn another_size_than_was_claimed_is_an_error_and_other_errors_may_pass() {
        let (bytes, _) = deferred(6, |_| Ok(Arc::new(MemoryReader::new(&b"hello"[..]))));
        let error = read_all(&bytes).await.unwrap_err();
        assert_eq!(error.fault(), FaultClass::Malformed);
        let (bytes, _) = deferred(5, |time| match time {
            0 => Err(ReadError::new(FaultClass::Unavailable, "not now")),
            _ => Ok(Arc::new(MemoryReader::new(&b"hello"[..]))),
        });
        assert_eq!(read_all(&bytes).await.unwrap_err().fault(), FaultClass::Unavailable);
        assert_eq!(read_all(&bytes).await.unwrap(), b"hello");
    }
}
