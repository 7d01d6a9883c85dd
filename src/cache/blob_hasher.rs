//! Whole-blob verification: compares a blob with its digest.
//!
//! A hasher follows the contiguous frontier of stored blocks, so that a sequential reader has nothing left to hash at
//! the end. Blocks can be overwritten behind the frontier, so the checksums of the hashed blocks are compared with
//! the records on disk before the result counts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block_file::BlockFile;
use super::lock;
use super::sidecar::{BLOCK_BYTES, BlockChecksum, VerificationState};
use crate::oci::{Digest, HashAlgorithm, Hasher};

/// Blocks from disk that the frontier hashes for each stored block. More than one, so that it catches up with a
/// parallel reader; few, so that no store takes long.
const CATCH_UP: u32 = 4;

pub(super) struct IncrementalDigest {
    algorithm: HashAlgorithm,
    size: u64,
    /// Number of leading blocks that had a record when they were examined.
    recorded: Mutex<u64>,
    /// Guards the hashers against two threads that feed them.
    frontier: Mutex<HashFrontier>,
    /// The frontier's `next`, readable while another thread hashes.
    hashed: AtomicU64,
}

struct HashFrontier {
    /// The next block to hash.
    next: u64,
    content: Hasher,
    /// blake3 of the checksums of the blocks in `content`.
    sums: blake3::Hasher,
}

/// Result of hashing all blocks.
pub(super) enum DigestVerdict {
    /// The digest of the whole content.
    Digest(Digest),
    /// A block was missing after all.
    Missing,
}

impl IncrementalDigest {
    pub(super) fn new(algorithm: HashAlgorithm, size: u64) -> Self {
        Self {
            algorithm,
            size,
            recorded: Mutex::new(0),
            frontier: Mutex::new(HashFrontier::new(algorithm)),
            hashed: AtomicU64::new(0),
        }
    }

    /// Drops the hash state.
    pub(super) fn restart(&self) {
        self.begin_anew(&mut lock(&self.frontier));
        *lock(&self.recorded) = 0;
    }

    fn begin_anew(&self, frontier: &mut HashFrontier) {
        *frontier = HashFrontier::new(self.algorithm);
        self.hashed.store(0, Ordering::Release);
    }

    fn feed(&self, frontier: &mut HashFrontier, bytes: &[u8], sum: &BlockChecksum) {
        frontier.feed(bytes, sum);
        self.hashed.store(frontier.next, Ordering::Release);
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES)
    }

    /// Length of `block` in bytes.
    pub(super) fn len(&self, block: u64) -> u32 {
        // The minimum with a block's size fits u32.
        self.size.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES) as u32
    }

    /// Whether every block has a record. Looks at each record once over the life of the process. For a block that was
    /// hashed before it was evicted, its checksum is enough.
    pub(super) fn all_recorded(&self, pair: &BlockFile) -> bool {
        let hashed = self.hashed.load(Ordering::Acquire);
        let mut recorded = lock(&self.recorded);
        *recorded = (*recorded).min(pair.lowest_evicted.swap(u64::MAX, Ordering::AcqRel));
        // In steps of many records, up to the first gap or known damage.
        let walked = pair.each_sound(*recorded, |block, len| {
            let is_next = block == *recorded && block < self.blocks() && len == self.len(block);
            *recorded += u64::from(is_next);
            is_next
        });
        if let Err(error) = walked {
            tracing::debug!(%error, "cannot read the sidecar");
        }
        let has_record = |block: u64| {
            pair.is_recorded(block, self.len(block))
                || block < hashed && pair.is_known(block, self.len(block))
        };
        while *recorded < self.blocks() && has_record(*recorded) {
            *recorded += 1;
        }
        *recorded == self.blocks()
    }

    /// How many bytes are left to hash before the digest is known, whichever thread hashes them.
    pub(super) fn lag(&self) -> u64 {
        self.blocks().saturating_sub(self.hashed.load(Ordering::Acquire)) * BLOCK_BYTES
    }

    /// Acts as another hashing thread for as long as this is held.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop {
        lock(&self.frontier)
    }

    /// Hashes a block that was just stored, and some earlier blocks from disk, if the frontier can reach it.
    pub(super) fn follow(&self, pair: &BlockFile, block: u64, bytes: &[u8], sum: &BlockChecksum) {
        // The thread that holds the frontier catches up for all.
        let Ok(mut frontier) = self.frontier.try_lock() else { return };
        for _ in 0..=CATCH_UP {
            let next = frontier.next;
            if next == block {
                self.feed(&mut frontier, bytes, sum);
            } else if next < self.blocks() && pair.is_recorded(next, self.len(next)) {
                let Some((bytes, sum)) = pair.load(next, self.len(next)) else { return };
                self.feed(&mut frontier, &bytes, &sum);
            } else {
                return;
            }
        }
    }

    /// Hashes the blocks that the frontier has not reached yet and returns the result for the whole. Blocks its
    /// thread that long.
    pub(super) fn conclude(&self, pair: &BlockFile) -> DigestVerdict {
        let mut frontier = lock(&self.frontier);
        // The second round hashes everything again when the first one had hashed blocks that were overwritten since.
        for _ in 0..2 {
            while frontier.next < self.blocks() {
                let Some((bytes, sum)) = pair.load(frontier.next, self.len(frontier.next)) else {
                    *lock(&self.recorded) = frontier.next;
                    return DigestVerdict::Missing;
                };
                self.feed(&mut frontier, &bytes, &sum);
            }
            let mut sums = blake3::Hasher::new();
            for block in 0..self.blocks() {
                let Some(sum) = pair.known_sum(block, self.len(block)) else {
                    *lock(&self.recorded) = block;
                    self.begin_anew(&mut frontier);
                    return DigestVerdict::Missing;
                };
                sums.update(&sum);
            }
            if sums.finalize() == frontier.sums.finalize() {
                return DigestVerdict::Digest(frontier.content.clone().finish());
            }
            self.begin_anew(&mut frontier);
        }
        DigestVerdict::Missing
    }

    /// Records that the content was verified, after a sync that makes it survive a power cut.
    pub(super) fn persist(&self, pair: &BlockFile) {
        let kept = pair
            .sync_data()
            .map_err(|error| error.to_string())
            .and_then(|()| {
                pair.sidecar.advance(VerificationState::Verified).map_err(|error| error.to_string())
            })
            .and_then(|_| pair.sidecar.sync().map_err(|error| error.to_string()));
        if kept.is_ok() {
            pair.promote();
        }
        if let Err(error) = kept {
            // The next process has to hash the content again.
            tracing::warn!(error, map = %pair.sidecar.path().display(), "cannot record that a blob is verified");
        }
    }
}

impl HashFrontier {
    fn new(algorithm: HashAlgorithm) -> Self {
        Self { next: 0, content: Hasher::new(algorithm), sums: blake3::Hasher::new() }
    }

    fn feed(&mut self, bytes: &[u8], sum: &BlockChecksum) {
        self.content.update(bytes);
        self.sums.update(sum);
        self.next += 1;
    }
}
