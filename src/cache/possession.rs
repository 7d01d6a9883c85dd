//! Proof of possession: an origin shows that it has a blob before the cache serves it one that another origin brought.
//!
//! A digest is no secret: a tenant may name one of another tenant's private image in a repository of its own. So the
//! origin is asked once for one block of the blob, chosen at random, and the answer is compared with the cached
//! checksum. The proof is kept for each blob and origin. Without it, the origin reads and fills files of its own.

use std::sync::Arc;

use super::blob_sharing::BlobSharing;
use super::block_file::BlockFile;
use super::files::BlockPaths;
use super::layout::{directory, exists};
use super::seat::BlockSeat;
use super::sidecar::{BLOCK_BYTES, BlockChecksum, ContentKind, VerificationState};
use super::slot::or_uncached;
use super::wait::blocking;
use super::{BlockCache, CacheError};
use crate::io::{ByteRange, FaultClass, FetchAll, RangeFetch, read_vec};
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
                    // Files that are opened again may have been verified, and have the shared names, by then.
                    opener.of_size(&name, size, || {
                        let pair = match access {
                            BlobAccess::Shared => opener.shared_or_own(&name),
                            BlobAccess::Own => opener.bare_blob_pair(&name),
                        };
                        pair.map(|pair| pair.in_room(opener.room()))
                    })
                };
                or_uncached(&digest, cache.slot(&digest, Box::new(open)))
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
        match read_vec(&FetchAll(Arc::clone(fetch)), range).await {
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
                tracing::warn!(%digest, error = error.chain(), "registry does not answer; sharing the cached blob");
                BlobAccess::Shared
            }
            Err(error) => {
                tracing::info!(%digest, error = error.chain(), "a cached blob is not shared with this origin");
                BlobAccess::Own
            }
        }
    }

    /// A block of the verified blob, and its checksum; `None` where there is no such blob. The block is random for each
    /// copy of the blob and the same at every attempt, so that repeated attempts guess nothing. Zeros prove nothing:
    /// they are asked for only where there is nothing else.
    fn question(&self, digest: &Digest, size: u64) -> Result<Option<(ByteRange, BlockChecksum)>, CacheError> {
        let files = BlockPaths::of(self.path(directory(ContentKind::Blob), digest)?);
        if !exists(&files.map) {
            return Ok(None);
        }
        let open = || BlockFile::open(&files.data, &files.map, ContentKind::Blob, digest);
        let pair = self.with_descriptors(open)?;
        let is_it = pair
            .sidecar
            .status()
            .is_some_and(|status| status.state == VerificationState::Verified && status.size == Some(size));
        let count = size.div_ceil(BLOCK_BYTES);
        if !is_it || count == 0 {
            return Ok(None);
        }
        let Some(copy) = pair.copy_number() else { return Ok(None) };
        let mut seed = [0; 8];
        blake3::Hasher::new().update(&copy).finalize_xof().fill(&mut seed);
        let first = u64::from_le_bytes(seed) % count;
        let range_of =
            |block| ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).intersect(ByteRange::new(0, size));
        // A block is at most 256 KiB long.
        let known = |block| {
            let range = range_of(block);
            Some((range, pair.known_sum(block, range.len() as u32)?))
        };
        let zeros = |range: ByteRange| *blake3::hash(&vec![0; range.len() as usize]).as_bytes();
        let (whole, last) = (zeros(range_of(0)), zeros(range_of(count - 1)));
        let in_order = || (first..count).chain(0..first).filter_map(known);
        let tells = in_order().find(|(_, sum)| *sum != whole && *sum != last);
        Ok(tells.or_else(|| in_order().next()))
    }
}
