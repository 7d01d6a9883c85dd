//! Concatenation of readers, with holes between them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::read_at::check_bounds;
use super::{BoxFuture, ByteRange, ReadAt, ReadError, SharedReader, VerifiedLevel};

/// One run of the concatenation.
struct ConcatPart {
    /// The end of the run in the concatenation. Invariant: strictly increasing over the pieces.
    end: u64,
    /// Its bytes, or `None` for a hole that reads as zeros. Invariant: `size()` equals the run's length.
    bytes: Option<SharedReader>,
}

/// The concatenation of parts: a split disk, or the data runs and holes of a sparse file.
#[derive(Default)]
pub struct ConcatReader {
    pieces: Vec<ConcatPart>,
}

impl ConcatReader {
    /// An empty concatenation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Concatenates the parts in this order.
    pub fn of(parts: impl IntoIterator<Item = SharedReader>) -> Self {
        let mut concat = Self::new();
        for part in parts {
            concat.push(part);
        }
        concat
    }

    /// Appends `bytes`.
    pub fn push(&mut self, bytes: SharedReader) {
        self.append(bytes.size(), Some(bytes));
    }

    /// Appends a hole of `len` zeros.
    pub fn push_hole(&mut self, len: u64) {
        self.append(len, None);
    }

    fn append(&mut self, len: u64, bytes: Option<SharedReader>) {
        if len > 0 {
            let end = self.size().saturating_add(len);
            self.pieces.push(ConcatPart { end, bytes });
        }
    }

    /// The index of the piece that contains `offset`, and the piece's start.
    fn find(&self, offset: u64) -> (usize, u64) {
        let at = self.pieces.partition_point(|piece| piece.end <= offset);
        (at, if at == 0 { 0 } else { self.pieces[at - 1].end })
    }

    /// Splits a read into one run per piece: the piece, the offset inside it, and its part of the buffer.
    fn runs<'a>(&'a self, offset: u64, mut buf: &'a mut [u8]) -> Vec<(&'a ConcatPart, u64, &'a mut [u8])> {
        let (mut at, mut start) = self.find(offset);
        let mut offset = offset;
        let mut runs = Vec::new();
        while !buf.is_empty() && at < self.pieces.len() {
            let piece = &self.pieces[at];
            let len = (piece.end - offset).min(buf.len() as u64) as usize;
            let (head, rest) = buf.split_at_mut(len);
            runs.push((piece, offset - start, head));
            buf = rest;
            offset += len as u64;
            start = piece.end;
            at += 1;
        }
        runs
    }

    /// Fills `buf` by one of the two reads of each part.
    async fn read(
        &self,
        read: impl for<'r> Fn(&'r dyn ReadAt, u64, &'r mut [u8]) -> BoxFuture<'r, Result<(), ReadError>>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        for (piece, inner, part) in self.runs(offset, buf) {
            match &piece.bytes {
                Some(bytes) => read(&**bytes, inner, part).await?,
                None => part.fill(0),
            }
        }
        Ok(())
    }
}

impl ReadAt for ConcatReader {
    fn size(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(<dyn ReadAt>::read_at, offset, buf))
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(<dyn ReadAt>::read_exactly, offset, buf))
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        for (piece, inner, part) in self.runs(offset, buf) {
            match &piece.bytes {
                Some(bytes) if !bytes.read_ready(inner, part)? => return Ok(false),
                Some(_) => {}
                None => part.fill(0),
            }
        }
        Ok(true)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let (at, mut start) = self.find(offset);
        for piece in &self.pieces[at..] {
            let from = offset.max(start);
            if let Some(bytes) = &piece.bytes
                && let Some(data) = bytes.next_data(from - start)
            {
                return Some(start + data);
            }
            start = piece.end;
        }
        None
    }

    fn next_hole(&self, offset: u64) -> u64 {
        let (at, mut start) = self.find(offset);
        for piece in &self.pieces[at..] {
            let from = offset.max(start);
            let Some(bytes) = &piece.bytes else { return from };
            let hole = start + bytes.next_hole(from - start);
            if hole < piece.end {
                return hole;
            }
            start = piece.end;
        }
        self.size()
    }

    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        let parts = self.pieces.iter().filter_map(|piece| piece.bytes.as_ref()?.learn_holes());
        let parts: Vec<_> = parts.collect();
        (!parts.is_empty()).then(|| -> BoxFuture<'_, _> {
            Box::pin(async move {
                for part in parts {
                    part.await?;
                }
                Ok(())
            })
        })
    }

    fn verified(&self) -> VerifiedLevel {
        let mut parts =
            self.pieces.iter().filter_map(|piece| piece.bytes.as_ref()).map(|bytes| bytes.verified());
        let Some(first) = parts.next() else { return VerifiedLevel::Full };
        parts.fold(first, |all, part| match all.min(part) {
            VerifiedLevel::Poisoned => VerifiedLevel::Poisoned,
            _ if all == part => all,
            _ => VerifiedLevel::Partial,
        })
    }

    fn backing(&self) -> Option<Arc<OwnedFd>> {
        match &self.pieces[..] {
            // By the invariant of `ConcatPart` this is the whole content.
            [ConcatPart { bytes: Some(bytes), .. }] => bytes.backing(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_at::tests::ZeroReader;
    use super::super::{MemoryReader, read_all, read_vec};
    use super::*;

    fn sample() -> ConcatReader {
        let mut concat = ConcatReader::new();
        concat.push(Arc::new(MemoryReader::new(&b"abc"[..])));
        concat.push_hole(4);
        concat.push(Arc::new(MemoryReader::new(&b""[..])));
        concat.push(Arc::new(MemoryReader::new(&b"de"[..])));
        concat
    }

    #[tokio::test]
    async fn every_range_equals_the_joined_bytes() {
        let whole = b"abc\0\0\0\0de";
        let concat = sample();
        assert_eq!(read_all(&concat).await.unwrap(), whole);
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                let range = ByteRange::new(start as u64, end as u64);
                assert_eq!(read_vec(&concat, range).await.unwrap(), whole[start..end]);
                let mut buf = vec![1; end - start];
                assert!(concat.read_ready(start as u64, &mut buf).unwrap());
                assert_eq!(buf, whole[start..end]);
            }
        }
        assert!(read_vec(&concat, ByteRange::new(0, 10)).await.is_err());
    }

    #[test]
    fn holes_are_where_the_map_puts_them() {
        let concat = sample();
        assert_eq!(concat.next_hole(0), 3);
        assert_eq!(concat.next_hole(4), 4);
        assert_eq!(concat.next_hole(7), 9);
        assert_eq!(concat.next_data(0), Some(0));
        assert_eq!(concat.next_data(3), Some(7));
        assert_eq!(concat.next_data(9), None);
    }
    #[test]
    fn only_one_part_alone_has_the_file_of_its_source() {
        let part: SharedReader = Arc::new(ZeroReader::new(10));
        let empty: SharedReader = Arc::new(MemoryReader::new(&b""[..]));
        let mut concat = ConcatReader::of([empty, part.clone()]);
        assert!(Arc::ptr_eq(&concat.backing().unwrap(), &part.backing().unwrap()));
        concat.push_hole(1);
        assert!(concat.backing().is_none());
        assert!(ConcatReader::of([part.clone(), part]).backing().is_none());
        assert!(ConcatReader::new().backing().is_none());
    }
}
