//! Everything that was selected of a reference, fetched into the cache and compared with its digests.
//!
//! Hands out no byte. The idea: what is there is not fetched again, large blobs are fetched in ranges side by side, and a blob
//! counts as pulled when the whole of it is on disk and hashes to its digest.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;

use crate::cache::{Cached, State};
use crate::io::{BoxFuture, ByteRange, Fault, ReadAt as _, ReadError};
use crate::oci::Digest;

use super::Selection;

/// Bytes that are asked for at once.
const STEP: u64 = 8 * 1024 * 1024;
/// How many ranges, of one blob or of several, are fetched at once.
const PARALLEL: usize = 6;

/// What pulling took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// How many blobs and documents there are.
    pub blobs: usize,
    /// How many of them were on this machine before.
    pub present: usize,
    /// How many bytes all of them have.
    pub size: u64,
    /// How many bytes were fetched.
    pub fetched: u64,
}

impl Selection {
    /// How many bytes all that was selected has.
    pub fn size(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.descriptor.size).fold(0, u64::saturating_add)
    }

    /// An error when the cache cannot hold all that was selected at once: before a byte is fetched that would have to go again.
    pub fn check_room(all: &[Self]) -> Result<(), ReadError> {
        let mut wanted: HashMap<&Digest, u64> = HashMap::new();
        for descriptor in all.iter().flat_map(Self::pieces).map(|piece| &piece.descriptor) {
            wanted.insert(&descriptor.digest, descriptor.size);
        }
        let wanted = wanted.into_values().fold(0, u64::saturating_add);
        match all.first().and_then(Self::capacity) {
            Some(capacity) if wanted > capacity => {
                Err(ReadError::new(Fault::Io, too_large(wanted, capacity)))
            }
            _ => Ok(()),
        }
    }

    /// Fetches what the cache lacks, and compares it. `advance` is told how many bytes are there more than before.
    pub async fn pull(&self, advance: &(dyn Fn(u64) + Sync)) -> Result<Pulled, ReadError> {
        let mut pulled = Pulled { blobs: self.pieces().len(), size: self.size(), ..Pulled::default() };
        Self::check_room(std::slice::from_ref(self))?;
        let mut opened: Vec<(Arc<Cached>, u64)> = Vec::new();
        for piece in self.pieces() {
            let Some(blob) = self.cached(piece)? else {
                pulled.present += 1;
                advance(piece.descriptor.size);
                continue;
            };
            let whole = ByteRange::new(0, blob.size());
            if blob.present(whole) && blob.state() == State::Verified {
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
                .step_by(STEP as usize)
                .map(move |start| (blob, ByteRange::new(start, (start + STEP).min(size))))
        });
        let fetches = ranges.map(|(blob, range)| -> BoxFuture<'_, Result<u64, ReadError>> {
            Box::pin(async move { blob.ensure(range).await.map(|()| range.len()) })
        });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(PARALLEL);
        while let Some(done) = fetches.next().await {
            advance(done?);
        }
        for (blob, before) in &opened {
            let whole = ByteRange::new(0, blob.size());
            // What went again is not fetched again: it would push out what is there.
            let is_kept = || match blob.present(whole) {
                true => Ok(()),
                false => Err(ReadError::new(
                    Fault::Io,
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

/// Why content does not fit into the cache.
pub(super) fn too_large(wanted: u64, capacity: u64) -> String {
    format!(
        "{wanted} bytes are wanted, and the cache holds at most {capacity}: its limit or its disk is too small"
    )
}
