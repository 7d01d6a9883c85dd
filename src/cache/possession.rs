//! Proof of possession: an origin shows that it has a blob before the cache serves it one that another origin brought.
//!
//! A digest is no secret: a tenant may name one of another tenant's private image in a repository of its own. So the
//! origin is asked once for one block of the blob, chosen at random, and the answer is compared with the cached
//! checksum. The proof is kept for each blob and origin. Without it, the origin reads and fills files of its own.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::blob_sharing::BlobSharing;
use super::block_file::BlockFile;
use super::files::BlockPaths;
use super::layout::{directory, exists};
use super::seat::BlockSeat;
use super::sidecar::{BLOCK_BYTES, BlockChecksum, ContentKind, VerificationState};
use super::wait::blocking;
use super::{BlockCache, CacheError};
use crate::io::{ByteRange, FaultClass, RangeFetch, ReadError};
use crate::oci::Digest;

/// The files that serve an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlobAccess {
    /// Those of all origins.
    Shared,
    /// Those of this origin.
    Own,
}

impl BlockCache {
    /// The same cache, whose verified blobs serve these origins.
    #[must_use]
    pub fn sharing(&self, sharing: BlobSharing) -> Self {
        let mut cache = self.clone();
        cache.sharing = sharing;
        cache
    }

    /// Whether verified blobs serve every origin.
    pub fn shares_all(&self) -> bool {
        self.sharing == BlobSharing::Always || self.origin.is_empty()
    }

    /// Whether content derived from the verified blob `digest` serves our origin.
    pub(super) fn may_share(&self, digest: &Digest) -> bool {
        self.shares_all() || self.is_proven(digest)
    }

    fn is_proven(&self, digest: &Digest) -> bool {
        let proof = self.scoped_path("proofs", digest).and_then(|path| self.sealed(&path, digest));
        proof.is_ok_and(|proof| proof.is_some())
    }

    /// Keeps the proof that our origin has the blob.
    pub(super) fn note_proven(&self, digest: &Digest) {
        let noted = self.scoped_path("proofs", digest).and_then(|path| self.seal(&path, digest, b""));
        if let Err(error) = noted {
            tracing::debug!(%digest, %error, "the proof of a blob is not kept: its origin is asked again");
        }
    }

    /// The files of a blob that our origin has to prove, chosen at the first read.
    pub(super) fn unproven_seat(&self, digest: &Digest, size: u64) -> BlockSeat {
        let (cache, digest) = (self.clone(), digest.clone());
        BlockSeat::open(Box::new(move |fetch| {
            let (cache, digest) = (cache.clone(), digest.clone());
            Box::pin(async move {
                let access = cache.access(&digest, &fetch).await;
                let (opener, name) = (cache.clone(), digest.clone());
                let open = move || {
                    let pair = match access {
                        BlobAccess::Shared => opener.shared_or_own(&name),
                        BlobAccess::Own => opener.own_blob_pair(&name),
                    };
                    let pair = pair?.in_room(opener.room());
                    pair.sidecar.settle_size(&name, size).map(|()| pair)
                };
                cache.slot(&digest, Box::new(open)).unwrap_or_else(|error| {
                    let error = ReadError::from(error).chain();
                    tracing::warn!(%digest, error, "cannot be cached, reads go on without");
                    None
                })
            })
        }))
    }

    /// Asks our origin for one block of the verified blob.
    async fn access(&self, digest: &Digest, fetch: &Arc<dyn RangeFetch>) -> BlobAccess {
        let (cache, name, size) = (self.clone(), digest.clone(), fetch.size());
        let question = blocking(digest, move || cache.question(&name, size)).await;
        let (range, sum) = match question {
            Ok(Ok(Some(question))) => question,
            Ok(Ok(None)) => return BlobAccess::Own,
            Ok(Err(error)) => {
                tracing::debug!(%digest, %error, "a shared blob cannot be opened");
                return BlobAccess::Own;
            }
            Err(error) => {
                tracing::debug!(%digest, error = error.chain(), "a shared blob cannot be opened");
                return BlobAccess::Own;
            }
        };
        match block_of(fetch, range).await {
            Ok(bytes) if *blake3::hash(&bytes).as_bytes() == sum => {
                let (cache, name) = (self.clone(), digest.clone());
                if let Err(error) = blocking(digest, move || cache.note_proven(&name)).await {
                    tracing::debug!(%digest, error = error.chain(), "the proof of a blob is not kept");
                }
                BlobAccess::Shared
            }
            Ok(_) => {
                tracing::warn!(%digest, "the origin of a cached blob has other bytes: its own copy is read");
                BlobAccess::Own
            }
            Err(error)
                if error.fault() == FaultClass::Unavailable
                    && self.sharing == BlobSharing::ProvenOrSilent =>
            {
                tracing::warn!(%digest, error = error.chain(), "its registry does not answer, the cache decides");
                BlobAccess::Shared
            }
            Err(error) => {
                tracing::info!(%digest, error = error.chain(), "a cached blob is not shared with this origin");
                BlobAccess::Own
            }
        }
    }

    /// A block of the verified blob at random, and its checksum; `None` where there is no such blob.
    fn question(&self, digest: &Digest, size: u64) -> Result<Option<(ByteRange, BlockChecksum)>, CacheError> {
        let files = BlockPaths::of(self.path(directory(ContentKind::Blob), digest)?);
        if !exists(&files.map) {
            return Ok(None);
        }
        let pair = BlockFile::open(&files.data, &files.map, ContentKind::Blob, digest)?;
        let is_it = pair
            .sidecar
            .status()
            .is_some_and(|status| status.state == VerificationState::Verified && status.size == Some(size));
        let count = size.div_ceil(BLOCK_BYTES);
        if !is_it || count == 0 {
            return Ok(None);
        }
        let first = RandomState::new().build_hasher().finish() % count;
        Ok((first..count).chain(0..first).find_map(|block| {
            let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).intersect(ByteRange::new(0, size));
            // A block is at most 256 KiB long.
            Some((range, pair.known_sum(block, range.len() as u32)?))
        }))
    }
}

/// The bytes of `range` from a source, which may deliver more.
async fn block_of(fetch: &Arc<dyn RangeFetch>, range: ByteRange) -> Result<Vec<u8>, ReadError> {
    let mut delivery = fetch.fetch(range).await?;
    let (mut at, mut bytes) = (delivery.range.start, Vec::new());
    while at < range.end
        && let Some(chunk) = delivery.body.next().await
    {
        let chunk = chunk?;
        let here = ByteRange::at(at, chunk.len() as u64);
        let part = here.intersect(range);
        if !part.is_empty() {
            bytes.extend_from_slice(
                &chunk[(part.start - here.start) as usize..(part.end - here.start) as usize],
            );
        }
        at = here.end;
    }
    Ok(bytes)
}
