//! Writing a decoded stream front to back, before anybody knows how long it will be.
//!
//! It never fetches and never reads content. The idea: it is the forward pass over a layer writing down what it decodes
//! anyway, block by block, so that a pass that dies leaves whole blocks behind.

use std::io;

use super::CacheError;
use super::pair::{Pair, Refused};
use super::sidecar::{BLOCK, MAX_SIZE, State};
use crate::oci::Digest;

/// Stores a decoded stream from its first byte. Every call blocks its thread for the time of writing to a file.
pub struct StreamWriter {
    pair: Pair,
    digest: Digest,
    /// The number of the block that `partial` begins.
    block: u64,
    /// Invariant: shorter than a block.
    partial: Vec<u8>,
    /// Bytes of a last, short block that was left out.
    left_out: u64,
    /// Whether every block so far is recorded on disk.
    whole: bool,
}

impl StreamWriter {
    pub(super) fn new(pair: Pair, digest: Digest) -> Self {
        Self { pair, digest, block: 0, partial: Vec::new(), left_out: 0, whole: true }
    }

    /// Appends `bytes`. After an error the caller should drop the writer: the blocks before stay.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), CacheError> {
        if self.written().saturating_add(bytes.len() as u64) > MAX_SIZE {
            let size = self.written().saturating_add(bytes.len() as u64);
            return Err(CacheError::Oversized { digest: self.digest.clone(), size, limit: MAX_SIZE });
        }
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() as u64 >= BLOCK {
                let (block, rest) = bytes.split_at(BLOCK as usize);
                self.store(block)?;
                bytes = rest;
                continue;
            }
            let take = bytes.len().min(BLOCK as usize - self.partial.len());
            let (head, rest) = bytes.split_at(take);
            self.partial.extend_from_slice(head);
            bytes = rest;
            if self.partial.len() as u64 == BLOCK {
                let block = std::mem::take(&mut self.partial);
                self.store(&block)?;
                self.partial = block;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Leaves out the next `len` bytes, whole blocks or all that follows: what produces them will be asked for them.
    pub fn skip(&mut self, len: u64) {
        debug_assert!(self.partial.is_empty(), "only whole blocks can be left out");
        self.block += len / BLOCK;
        self.left_out = len % BLOCK;
        self.whole = false;
    }

    /// Stores the last, short block, settles the size and says what it is.
    pub fn finish(mut self) -> Result<u64, CacheError> {
        let size = self.written();
        if !self.partial.is_empty() {
            let last = std::mem::take(&mut self.partial);
            self.store(&last)?;
        }
        self.pair.sidecar.settle_size(&self.digest, size)?;
        if self.whole {
            self.pair.sidecar.advance(State::Complete)?;
        }
        Ok(size)
    }

    fn written(&self) -> u64 {
        self.block * BLOCK + self.partial.len() as u64 + self.left_out
    }

    fn store(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let block = self.block;
        self.block += 1;
        let sum = blake3::hash(bytes).into();
        // A block is at most 256 KiB long.
        if self.pair.sum(block, bytes.len() as u32) == Some(sum) {
            return Ok(());
        }
        let path = self.pair.sidecar.path();
        let claimed =
            self.pair.sidecar.try_claim(block).map_err(|error| CacheError::io("lock", path, error))?;
        if !claimed {
            // A reader is producing this very block, and will store it.
            self.whole = false;
            return Ok(());
        }
        let stored = self.pair.store(block, bytes, &sum);
        self.pair.sidecar.release(block);
        stored.map_err(|refused| {
            let error = match refused {
                Refused::NoRoom => return CacheError::NoRoom { path: path.to_owned() },
                Refused::Disk(error) => error,
                Refused::Poisoned | Refused::Contradicts => io::Error::other("content was given up"),
            };
            CacheError::io("write", path, error)
        })
    }
}
