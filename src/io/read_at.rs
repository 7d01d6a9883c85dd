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
///
/// No method has a default, so the compiler names each wrapper that forgets one.
pub trait ReadAt: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`, fetching and decoding the missing ones.
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>>;

    /// Fills `buf` and returns `true` if no wait is needed (memory or a local file). Returns `false` if
    /// [`read_at`](ReadAt::read_at) is needed; `buf` may then have been overwritten.
    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError>;

    /// As [`read_at`](ReadAt::read_at), for a caller that knows what it reads next: nothing is fetched ahead of it.
    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>>;

    /// The first byte at or after `offset` outside known holes; `None` when only holes follow.
    fn next_data(&self, offset: u64) -> Option<u64>;

    /// The first byte at or after `offset` in a known hole; the end of the bytes counts as one.
    fn next_hole(&self, offset: u64) -> u64;

    /// Finds the holes, if that needs reading; until the future completes, holes may count as data. `None` when there
    /// is nothing more to find.
    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>>;

    /// How far these bytes are verified against a digest.
    fn verified(&self) -> VerifiedLevel;

    /// A local file with exactly these bytes, verified and immutable; a caller may read the file instead while it
    /// holds the result. `None` without such a file.
    fn backing(&self) -> Option<Arc<OwnedFd>>;
}

/// Methods of [`ReadAt`] that a wrapper leaves to the reader in one of its fields: `forward_reads!(field: size, …)`.
macro_rules! forward_reads {
    ($field:tt: $($method:ident),+) => { $(forward_reads! { @one $field $method })+ };
    (@one $field:tt size) => {
        fn size(&self) -> u64 {
            $crate::io::ReadAt::size(&*self.$field)
        }
    };
    (@one $field:tt read_at) => {
        fn read_at<'a>(
            &'a self,
            offset: u64,
            buf: &'a mut [u8],
        ) -> $crate::io::BoxFuture<'a, Result<(), $crate::io::ReadError>> {
            $crate::io::ReadAt::read_at(&*self.$field, offset, buf)
        }
    };
    (@one $field:tt read_exactly) => {
        fn read_exactly<'a>(
            &'a self,
            offset: u64,
            buf: &'a mut [u8],
        ) -> $crate::io::BoxFuture<'a, Result<(), $crate::io::ReadError>> {
            $crate::io::ReadAt::read_exactly(&*self.$field, offset, buf)
        }
    };
    (@one $field:tt read_ready) => {
        fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, $crate::io::ReadError> {
            $crate::io::ReadAt::read_ready(&*self.$field, offset, buf)
        }
    };
    (@one $field:tt next_data) => {
        fn next_data(&self, offset: u64) -> Option<u64> {
            $crate::io::ReadAt::next_data(&*self.$field, offset)
        }
    };
    (@one $field:tt next_hole) => {
        fn next_hole(&self, offset: u64) -> u64 {
            $crate::io::ReadAt::next_hole(&*self.$field, offset)
        }
    };
    (@one $field:tt learn_holes) => {
        fn learn_holes(&self) -> Option<$crate::io::BoxFuture<'_, Result<(), $crate::io::ReadError>>> {
            $crate::io::ReadAt::learn_holes(&*self.$field)
        }
    };
    (@one $field:tt verified) => {
        fn verified(&self) -> $crate::io::VerifiedLevel {
            $crate::io::ReadAt::verified(&*self.$field)
        }
    };
    (@one $field:tt backing) => {
        fn backing(&self) -> Option<std::sync::Arc<std::os::fd::OwnedFd>> {
            $crate::io::ReadAt::backing(&*self.$field)
        }
    };
}

/// Methods of [`ReadAt`] of a reader without the feature: `plain_reads!(read_exactly, holes, learn_holes, verified,
/// backing)`. A reader without `read_exactly` fetches nothing ahead.
macro_rules! plain_reads {
    ($($feature:ident),+) => { $(plain_reads! { @one $feature })+ };
    (@one read_exactly) => {
        fn read_exactly<'a>(
            &'a self,
            offset: u64,
            buf: &'a mut [u8],
        ) -> $crate::io::BoxFuture<'a, Result<(), $crate::io::ReadError>> {
            $crate::io::ReadAt::read_at(self, offset, buf)
        }
    };
    (@one holes) => {
        fn next_data(&self, offset: u64) -> Option<u64> {
            (offset < $crate::io::ReadAt::size(self)).then_some(offset)
        }
        fn next_hole(&self, _offset: u64) -> u64 {
            $crate::io::ReadAt::size(self)
        }
    };
    (@one learn_holes) => {
        fn learn_holes(&self) -> Option<$crate::io::BoxFuture<'_, Result<(), $crate::io::ReadError>>> {
            None
        }
    };
    (@one verified) => {
        fn verified(&self) -> $crate::io::VerifiedLevel {
            $crate::io::VerifiedLevel::None
        }
    };
    (@one backing) => {
        fn backing(&self) -> Option<std::sync::Arc<std::os::fd::OwnedFd>> {
            None
        }
    };
}

pub(crate) use {forward_reads, plain_reads};

/// Bytes shared by several readers.
pub type SharedReader = Arc<dyn ReadAt>;

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        (**self).read_at(offset, buf)
    }
    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        (**self).read_exactly(offset, buf)
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

    plain_reads!(read_exactly, holes, learn_holes, backing);
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
    plain_reads!(read_exactly, holes, learn_holes, backing);
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{ConcatReader, DeferredReader, SliceReader};
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
        plain_reads!(read_exactly, holes, learn_holes, verified);
    }

    /// Ones for an exact read, zeros for any other.
    struct ExactOnes;

    impl ReadAt for ExactOnes {
        fn size(&self) -> u64 {
            8
        }
        fn read_at<'a>(&'a self, _: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
            buf.fill(0);
            Box::pin(std::future::ready(Ok(())))
        }
        fn read_exactly<'a>(&'a self, _: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
            buf.fill(1);
            Box::pin(std::future::ready(Ok(())))
        }
        fn read_ready(&self, _: u64, _: &mut [u8]) -> Result<bool, ReadError> {
            Ok(false)
        }
        plain_reads!(holes, learn_holes, verified, backing);
    }

    #[tokio::test]
    async fn an_exact_read_of_a_wrapper_is_an_exact_read_of_its_source() {
        let source: SharedReader = Arc::new(ExactOnes);
        let opened = source.clone();
        let open = Box::new(move || -> BoxFuture<'static, Result<SharedReader, ReadError>> {
            Box::pin(std::future::ready(Ok(opened.clone())))
        });
        let wrappers: [(&str, SharedReader); 4] = [
            ("shared", Arc::new(source.clone())),
            ("slice", Arc::new(SliceReader::new(source.clone(), ByteRange::new(2, 6)).unwrap())),
            ("concat", Arc::new(ConcatReader::of([source.clone(), source.clone()]))),
            ("deferred", Arc::new(DeferredReader::new(8, open))),
        ];
        for (name, wrapper) in wrappers {
            let mut bytes = [7; 4];
            wrapper.read_exactly(0, &mut bytes).await.unwrap();
            assert_eq!(bytes, [1; 4], "{name}");
            wrapper.read_at(0, &mut bytes).await.unwrap();
            assert_eq!(bytes, [0; 4], "{name}");
        }
    }
}
