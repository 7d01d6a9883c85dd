//! Exact random access to immutable bytes.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::{BoxFuture, ByteRange, FaultClass, ReadError};

/// How far bytes are verified against a digest from the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifiedLevel {
    /// Compared, and different from the digest: a read is an error.
    Poisoned,
    /// Not compared; at best received over an authenticated connection.
    None,
    /// Some parts were compared.
    Partial,
    /// Every byte was compared.
    Full,
}

impl fmt::Display for VerifiedLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VerifiedLevel::Poisoned => "poisoned",
            VerifiedLevel::None => "none",
            VerifiedLevel::Partial => "partial",
            VerifiedLevel::Full => "full",
        })
    }
}

/// Random access to immutable bytes.
///
/// Offsets and sizes are in bytes. The caller clips to [`size`](ReadAt::size). An implementation fills the whole
/// buffer or fails, without short reads; a range past the end is a [`FaultClass::Usage`] error.
pub trait ReadAt: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`, fetching and decoding the missing ones.
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>>;

    /// Fills `buf` and returns `true` if no wait is needed (memory or a local file). Returns `false` if
    /// [`read_at`](ReadAt::read_at) is needed; `buf` may then have been overwritten.
    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError>;

    /// The first byte at or after `offset` outside known holes; `None` when only holes follow.
    fn next_data(&self, offset: u64) -> Option<u64> {
        (offset < self.size()).then_some(offset)
    }

    /// The first byte at or after `offset` in a known hole; the end of the bytes counts as one.
    fn next_hole(&self, _offset: u64) -> u64 {
        self.size()
    }

    /// Finds the holes, if that needs reading; until the future completes, holes may count as data. `None` when there
    /// is nothing more to find.
    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        None
    }

    /// How far these bytes are verified against a digest.
    fn verified(&self) -> VerifiedLevel {
        VerifiedLevel::None
    }

    /// A local file with exactly these bytes, verified and immutable; a caller may read the file instead while it
    /// holds the result. `None` without such a file.
    fn backing(&self) -> Option<Arc<OwnedFd>> {
        None
    }
}

/// Bytes shared by several readers.
pub type SharedReader = Arc<dyn ReadAt>;

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        (**self).read_at(offset, buf)
    }
    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        (**self).read_ready(offset, buf)
    }
    fn next_data(&self, offset: u64) -> Option<u64> {
        (**self).next_data(offset)
    }
    fn next_hole(&self, offset: u64) -> u64 {
        (**self).next_hole(offset)
    }
    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        (**self).learn_holes()
    }
    fn verified(&self) -> VerifiedLevel {
        (**self).verified()
    }
    fn backing(&self) -> Option<Arc<OwnedFd>> {
        (**self).backing()
    }
}

/// Reads `range` into a new buffer.
pub async fn read_vec<R: ReadAt + ?Sized>(bytes: &R, range: ByteRange) -> Result<Vec<u8>, ReadError> {
    check_bounds(range, bytes.size())?;
    let len = usize::try_from(range.len()).map_err(|_| past_end(range, bytes.size()))?;
    let mut buf = vec![0; len];
    bytes.read_at(range.start, &mut buf).await?;
    Ok(buf)
}

/// Reads all bytes; for small documents only.
pub async fn read_all<R: ReadAt + ?Sized>(bytes: &R) -> Result<Vec<u8>, ReadError> {
    read_vec(bytes, ByteRange::new(0, bytes.size())).await
}

/// Rejects a range past `size`.
pub(crate) fn check_bounds(range: ByteRange, size: u64) -> Result<(), ReadError> {
    if range.end > size { Err(past_end(range, size)) } else { Ok(()) }
}

fn past_end(range: ByteRange, size: u64) -> ReadError {
    ReadError::new(FaultClass::Usage, format!("range {range} passes the end at {size}"))
}

/// Bytes in memory.
#[derive(Clone, Debug)]
pub struct MemoryReader(Bytes);

impl MemoryReader {
    /// Serves `bytes`.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }
}

impl ReadAt for MemoryReader {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move { self.read_ready(offset, buf).map(|_| ()) })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        // Both fit in memory: the bounds check above proves offset + len <= self.0.len().
        let start = offset as usize;
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(true)
    }

    fn verified(&self) -> VerifiedLevel {
        // Memory holds documents that were hashed before they were parsed, or generated text.
        VerifiedLevel::Full
    }
}

/// An empty reader.
#[derive(Clone, Copy, Debug)]
pub struct EmptyReader;

impl ReadAt for EmptyReader {
    fn size(&self) -> u64 {
        0
    }
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move { self.read_ready(offset, buf).map(|_| ()) })
    }
    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), 0).map(|()| true)
    }
    fn verified(&self) -> VerifiedLevel {
        VerifiedLevel::Full
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Zeros with a backing file.
    pub(in super::super) struct ZeroReader {
        size: u64,
        file: Arc<OwnedFd>,
    }

    impl ZeroReader {
        pub(in super::super) fn new(size: u64) -> Self {
            Self { size, file: Arc::new(std::io::pipe().unwrap().0.into()) }
        }
    }

    impl ReadAt for ZeroReader {
        fn size(&self) -> u64 {
            self.size
        }
        fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
            Box::pin(async move { self.read_ready(offset, buf).map(|_| ()) })
        }
        fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size)?;
            buf.fill(0);
            Ok(true)
        }
        fn backing(&self) -> Option<Arc<OwnedFd>> {
            Some(self.file.clone())
        }
    }
}
