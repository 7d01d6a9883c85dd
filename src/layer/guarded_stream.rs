//! Decoded streams as served: no byte is returned once the blob or the index is known to be wrong.

use std::sync::Arc;

use crate::cache::{CachedFile, VerificationState};
use crate::io::{
    BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, SharedReader, VerifiedLevel, forward_reads,
    plain_reads,
};

use super::index::{LayerIndex, SUM_BLOCK};
use super::layer_shared::LayerShared;

/// Fails for a poisoned blob: bytes decoded from wrong bytes are wrong too.
pub(super) fn refuse_poisoned(blob: &CachedFile) -> Result<(), ReadError> {
    if blob.state() == VerificationState::Poisoned {
        let message = format!("blob {} does not match its digest", blob.digest());
        return Err(ReadError::new(FaultClass::Mismatch, message));
    }
    Ok(())
}

/// A decoded stream, verified as far as the stored bytes it is decoded from.
pub(super) struct VerifiedStream {
    pub(super) stream: Arc<CachedFile>,
    pub(super) blob: Arc<CachedFile>,
    /// Ranges of zeros, by the checksums of the index.
    pub(super) holes: Vec<ByteRange>,
}

/// The runs of zero blocks of the stream, by the checksums of the index.
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

impl ReadAt for VerifiedStream {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            refuse_poisoned(&self.blob)?;
            self.stream.read_at(offset, buf).await
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            refuse_poisoned(&self.blob)?;
            self.stream.read_exactly(offset, buf).await
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

    forward_reads!(stream: size, learn_holes);
    forward_reads!(blob: verified);
    plain_reads!(backing);
}

/// A stream as a foreign index describes it: served until the index is refuted, and verified only as far as it was
/// compared.
pub(super) struct UntrustedStream {
    pub(super) stream: SharedReader,
    pub(super) core: Arc<LayerShared>,
    /// Whether every byte was compared with a digest that the manifest covers before it is returned.
    pub(super) is_rooted: bool,
}

impl UntrustedStream {
    fn refuse(&self) -> Result<(), ReadError> {
        refuse_poisoned(&self.core.blob)?;
        self.core.refuted.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl ReadAt for UntrustedStream {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.stream.read_at(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.refuse()?;
            self.stream.read_exactly(offset, buf).await?;
            self.refuse()
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        self.refuse()?;
        self.stream.read_ready(offset, buf)
    }

    forward_reads!(stream: size, next_data, next_hole, learn_holes);

    fn verified(&self) -> VerifiedLevel {
        if self.core.refuted.get().is_some() {
            return VerifiedLevel::Poisoned;
        }
        match (self.core.confirmed.get(), self.core.blob.verified()) {
            (Some(()), blob) => blob,
            (None, VerifiedLevel::Poisoned) => VerifiedLevel::Poisoned,
            // Every returned part was compared; unread parts were not.
            (None, _) if self.is_rooted => VerifiedLevel::Partial,
            (None, _) => VerifiedLevel::None,
        }
    }

    // A file handed to the kernel could not be refused later.
    plain_reads!(backing);
}
