//! Pull: fetches a whole selection into the cache and compares it with its digests.
//!
//! Pulling serves no bytes. Cached content is not fetched again. Large blobs are fetched in concurrent ranges. A blob
//! counts as pulled when all of it is on disk and hashes to its digest.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;

use crate::cache::{CachedFile, VerificationState};
use crate::io::concurrency::PULL_REQUESTS;
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadAt as _, ReadError};
use crate::oci::Digest;

use super::ArchiveSelection;
use super::prefetch::too_large;

/// Bytes of one request.
const PULL_RANGE_BYTES: u64 = 8 * 1024 * 1024;

/// Result of a pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullSummary {
    /// Number of blobs and documents.
    pub blobs: usize,
    /// Number of those that were on this machine before.
    pub present: usize,
    /// Size of all, in bytes.
    pub size: u64,
    /// Bytes that were fetched.
    pub fetched: u64,
}

impl ArchiveSelection {
    /// Size of the whole selection, in bytes.
    pub fn size(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.descriptor.size).fold(0, u64::saturating_add)
    }

    /// Fails if the cache cannot hold all selections at once, before any byte is fetched that would have to be
    /// evicted.
    pub fn check_room(all: &[Self]) -> Result<(), ReadError> {
        let mut wanted: HashMap<&Digest, u64> = HashMap::new();
        for descriptor in all.iter().flat_map(Self::pieces).map(|piece| &piece.descriptor) {
            wanted.insert(&descriptor.digest, descriptor.size);
        }
        let wanted = wanted.into_values().fold(0, u64::saturating_add);
        match all.first().and_then(Self::capacity) {
            Some(capacity) if wanted > capacity => {
                Err(ReadError::new(FaultClass::Io, too_large(wanted, capacity)))
            }
            _ => Ok(()),
        }
    }

    /// Fetches all content that is not cached, and verifies it. `advance` receives the number of bytes that were
    /// added.
    pub async fn pull(&self, advance: &(dyn Fn(u64) + Sync)) -> Result<PullSummary, ReadError> {
        let mut pulled =
            PullSummary { blobs: self.pieces().len(), size: self.size(), ..PullSummary::default() };
        Self::check_room(std::slice::from_ref(self))?;
        let mut opened: Vec<(Arc<CachedFile>, u64)> = Vec::new();
        for piece in self.pieces() {
            let Some(blob) = self.cached(piece)? else {
                pulled.present += 1;
                advance(piece.descriptor.size);
                continue;
            };
            let whole = ByteRange::new(0, blob.size());
            if blob.present(whole) && blob.state() == VerificationState::Verified {
                pulled.present += 1;
                advance(blob.size());
                continue;
            }
            let before = blob.fetched();
            opened.push((blob, before));
        }
        let ranges = opened.iter().flat_map(|(blob, _)| {
            let size = blob.size();
            (0..size)
                .step_by(PULL_RANGE_BYTES as usize)
                .map(move |start| (blob, ByteRange::new(start, (start + PULL_RANGE_BYTES).min(size))))
        });
        let fetches = ranges.map(|(blob, range)| -> BoxFuture<'_, Result<u64, ReadError>> {
            Box::pin(async move { blob.ensure(range).await.map(|()| range.len()) })
        });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(PULL_REQUESTS);
        while let Some(done) = fetches.next().await {
            advance(done?);
        }
        for (blob, before) in &opened {
            let whole = ByteRange::new(0, blob.size());
            // An evicted range is not fetched again: it would evict other ranges of the pull.
            let is_kept = || match blob.present(whole) {
                true => Ok(()),
                false => Err(ReadError::new(
                    FaultClass::Io,
                    format!(
                        "the cache does not keep all of {}: is its disk or its limit too small?",
                        blob.digest()
                    ),
                )),
            };
            is_kept()?;
            blob.ensure(whole).await?;
            is_kept()?;
            pulled.fetched += blob.fetched() - before;
        }
        Ok(pulled)
    }
}
