//! Refetch of stored bytes that an index contradicts, as long as nothing proves them.
//!
//! A wrong byte of a transfer is stored like a right one. The blocks in doubt are fetched once more, past the cache,
//! and those that came differently replace the stored ones. A source that stays wrong, or an index that is, gets few
//! such requests.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::block_cutter::BlockCutter;
use super::block_file::BlockFile;
use super::content_state::ContentState;
use super::lock;
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT, BlockChecksum, BlockRecord, ContentKind, VerificationState};
use super::wait::blocking;
use crate::io::{ByteRange, FaultClass, ReadError};

/// Refetches of one blob in vain, after which this process does none.
const MAX_VAIN_REFETCHES: u32 = 3;

/// Bytes of one request.
const REFETCH_BYTES: u64 = 16 * BLOCK_BYTES;

impl ContentState {
    /// Fetches `ranges` once more, as [`RangeRefetch::refetch`](crate::io::RangeRefetch::refetch).
    pub(super) async fn refetch(self: &Arc<Self>, ranges: Vec<ByteRange>, seen: usize) -> bool {
        let _running = self.refetch.running.lock().await;
        let ranges: Vec<_> = ranges.iter().map(|range| range.align(BLOCK_SHIFT, self.size)).collect();
        let is_asked = |done: &ByteRange| ranges.iter().any(|range| !range.intersect(*done).is_empty());
        if lock(&self.refetch.replaced).iter().skip(seen).any(is_asked) {
            return true;
        }
        if !self.may_refetch() {
            return false;
        }
        let mut replaced = Vec::new();
        let fetched = async {
            for range in ranges {
                for start in (range.start..range.end).step_by(REFETCH_BYTES as usize) {
                    let run = ByteRange::new(start, range.end.min(start + REFETCH_BYTES));
                    let blocks = self.fetch_past_cache(run).await?;
                    let here = Arc::clone(self);
                    let changed = blocking(&self.digest, move || here.replace_blocks(blocks));
                    replaced.extend(changed.await?);
                }
            }
            Ok::<_, ReadError>(())
        };
        let fetched = fetched.await;
        if let Err(error) = &fetched {
            tracing::debug!(digest = %self.digest, error = error.chain(), "cannot fetch doubted bytes again");
        }
        if replaced.is_empty() {
            self.refetch.vain.fetch_add(u32::from(fetched.is_ok()), Ordering::Relaxed);
            return false;
        }
        tracing::warn!(
            digest = %self.digest,
            blocks = ?replaced.iter().map(|range| range.start >> BLOCK_SHIFT).collect::<Vec<_>>(),
            "stored bytes contradicted an index and came differently when fetched again; they are replaced"
        );
        lock(&self.refetch.replaced).extend(replaced);
        // The kernel may have pages of the replaced bytes. Sending fails only without a receiver.
        self.distrusted.send(self.digest.clone()).ok();
        true
    }

    /// Whether the stored bytes may be wrong, and the source may have right ones.
    fn may_refetch(&self) -> bool {
        self.kind == ContentKind::Blob
            && !self.is_whole_first()
            && self.refetch.vain.load(Ordering::Relaxed) < MAX_VAIN_REFETCHES
            && matches!(self.state(), VerificationState::Partial | VerificationState::Complete)
            && !self.opened().is_some_and(|pair| pair.is_local())
    }

    /// The blocks of `want` from the source.
    async fn fetch_past_cache(&self, want: ByteRange) -> Result<Vec<(u64, Bytes)>, ReadError> {
        let misbehaved = |what| ReadError::new(FaultClass::Misbehaved, what);
        let mut delivery = self.fetch.fetch(want).await?;
        if !delivery.range.contains(want) || delivery.range.end > self.size {
            return Err(misbehaved("another range was delivered"));
        }
        let wanted = want.blocks(BLOCK_SHIFT);
        let mut cutter = BlockCutter::new(delivery.range, self.size);
        let mut blocks = Vec::new();
        while let Some(chunk) = delivery.body.next().await {
            let mut chunk = chunk?;
            self.note_fetched(chunk.len() as u64);
            if cutter.missing() < chunk.len() as u64 {
                return Err(misbehaved("the delivery goes on after its end"));
            }
            while !chunk.is_empty() {
                blocks.extend(cutter.cut(&mut chunk).filter(|(block, _)| wanted.contains(block)));
            }
            if blocks.len() as u64 == wanted.end - wanted.start {
                return Ok(blocks);
            }
        }
        let last = cutter.finish().map_err(|_| misbehaved("the delivery ended early"))?;
        blocks.extend(last.filter(|(block, _)| wanted.contains(block)));
        Ok(blocks)
    }

    /// Puts `blocks` in the place of stored ones that differ, and returns the ranges of those.
    fn replace_blocks(&self, blocks: Vec<(u64, Bytes)>) -> Vec<ByteRange> {
        let pair = self.pair();
        let is_replaced = |(block, bytes): &(u64, Bytes)| {
            let sum: BlockChecksum = blake3::hash(bytes).into();
            let noted = lock(&self.noted).get_mut(block).map(|noted| std::mem::replace(noted, sum) != sum);
            let stored = pair.as_ref().map(|pair| pair.replace(*block, bytes, &sum)).unwrap_or(Ok(false));
            noted.unwrap_or(false)
                | stored.unwrap_or_else(|error| {
                    self.warn_once(&error);
                    false
                })
        };
        let replaced = blocks.iter().filter(|block| is_replaced(block));
        replaced.map(|(block, bytes)| ByteRange::at(block * BLOCK_BYTES, bytes.len() as u64)).collect()
    }
}

impl BlockFile {
    /// Overwrites a block of content that is not verified, in place: other processes may be reading it. `false` where
    /// it has these bytes, or no record.
    fn replace(&self, block: u64, bytes: &[u8], sum: &BlockChecksum) -> io::Result<bool> {
        let _writing = lock(self.stripe(block));
        let Some(record) = self.sidecar.record(block).filter(|record| record.sum != *sum) else {
            return Ok(false);
        };
        let is_open = self.sidecar.status().is_some_and(|status| {
            matches!(status.state, VerificationState::Partial | VerificationState::Complete)
        });
        if !is_open || self.is_local() || !self.sidecar.try_claim(block)? {
            return Ok(false);
        }
        let replaced = if record.present {
            self.change_trust(|trust| trust.forget(block));
            // Without a record no process takes the bytes for the block while they change.
            let written = self.sidecar.drop_record(block).and_then(|()| {
                self.data.write(self.kind, block * BLOCK_BYTES, bytes)?;
                self.sidecar.put_record(block, record.len, sum)
            });
            written.inspect(|()| self.set_trusted(block))
        } else {
            self.sidecar.mark_evicted(block, BlockRecord { sum: *sum, ..record })
        };
        self.sidecar.release(block);
        replaced.map(|()| true)
    }
}
