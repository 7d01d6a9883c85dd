//! Decoded streams as they are served: no byte of them is handed out once it is known to be wrong.

use std::sync::Arc;

use crate::cache::{Cached, State};
use crate::io::{BoxFuture, ByteRange, Fault, ReadAt, ReadError, Shared, Verified};

use super::index::{LayerIndex, SUM_BLOCK};
use super::stored::Core;

/// What was decoded from bytes that turned out to be wrong is as wrong as they are.
pub(super) fn refuse_poisoned(blob: &Cached) -> Result<(), ReadError> {
    if blob.state() == State::Poisoned {
        let message = format!("blob {} does not match its digest", blob.digest());
        return Err(ReadError::new(Fault::Mismatch, message));
    }
    Ok(())
}

/// A decoded stream: as trustworthy as the stored bytes it was decoded from.
pub(super) struct Decoded {
    pub(super) stream: Arc<Cached>,
    pub(super) blob: Arc<Cached>,
    /// Where all bytes are zeros, as far as the index tells.
    pub(super) holes: Vec<ByteRange>,
}

/// The runs of blocks of the stream that are zeros, by the checksums that the index has of them.
pub(super) fn holes(index: &LayerIndex) -> Vec<ByteRange> {
    let size = index.spans.stream_size();
    let zeros = |len: u64| *blake3::hash(&vec![0; len as usize]).as_bytes();
    let (whole, last) = (zeros(SUM_BLOCK), zeros(size % SUM_BLOCK));
    let mut holes: Vec<ByteRange> = Vec::new();
    for (block, sum) in (0..).zip(&index.blocks) {
        let range = ByteRange::at(block * SUM_BLOCK, SUM_BLOCK).intersect(ByteRange::new(0, size));
        let expected = if range.len() == SUM_BLOCK { &whole } else { &last };
        if sum != expected {
            continue;
        }
        match holes.last_mut() {
            Some(hole) if hole.end == range.start => hole.end = range.end,
            _ => holes.push(range),
        }
    }
    holes
}

impl ReadAt for Decoded {
    fn size(&self) -> u64 {
        self.stream.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            refuse_poisoned(&self.blob)?;
            self.stream.read_at(offset, buf).await
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        refuse_poisoned(&self.blob)?;
        self.stream.read_ready(offset, buf)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let after = self.holes.partition_point(|hole| hole.end <= offset);
        let data =
            self.holes.get(after).map_or(offset, |hole| if hole.start <= offset { hole.end } else { offset });
        (data < self.size()).then_some(data)
    }

    fn next_hole(&self, offset: u64) -> u64 {
        let after = self.holes.partition_point(|hole| hole.end <= offset);
        self.holes.get(after).map_or(self.size(), |hole| hole.start.max(offset))
    }

    fn verified(&self) -> Verified {
        self.blob.verified()
    }
}

/// A stream as somebody else's index describes it: served until the index was found wrong, and trusted no further than it
/// was compared.
pub(super) struct Claimed {
    pub(super) stream: Shared,
    pub(super) core: Arc<Core>,
    /// Whether nothing but what was compared with a digest that the manifest vouches for is handed out.
    pub(super) is_rooted: bool,
}

impl Claimed {
    fn refuse(&self) -> Result<(), ReadError> {
        refuse_poisoned(&self.core.blob)?;
        self.core.refuted.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl ReadAt for Claimed {
    fn size(&self) -> u64 {
        self.stream.size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.stream.read_at(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.refuse()?;
        self.stream.read_ready(offset, buf)
    }

    fn verified(&self) -> Verified {
        if self.core.refuted.get().is_some() {
            return Verified::Poisoned;
        }
        match (self.core.confirmed.get(), self.core.blob.verified()) {
            (Some(()), blob) => blob,
            (None, Verified::Poisoned) => Verified::Poisoned,
            // Every part that is handed out was compared; what nobody has read was not.
            (None, _) if self.is_rooted => Verified::Partial,
            (None, _) => Verified::None,
        }
    }
}
