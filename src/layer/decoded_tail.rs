//! Decoded tail: the last bytes that a stream decoded far from every start.
//!
//! The reads of one reader arrive in any order. A read of bytes that the decoder of a later one has passed gets them
//! from memory. Otherwise it would begin at a start far before them, and fetch all stored bytes from there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::io::{ByteRange, MEMORY, MemoryShare, RangeDelivery, lock};

use super::paused::{COMMON_PAUSE, ExpiryTask};

/// Maximum bytes of one tail: the disorder of a reader with its readahead.
const TAIL_BYTES: u64 = 4 * 1024 * 1024;

/// The decoded tail of one stream. It is dropped after a pause, as a decoder is.
#[derive(Default)]
pub(super) struct DecodedTail(Arc<Mutex<Option<TailBlocks>>>);

struct TailBlocks {
    /// With their stream offsets, the latest last.
    blocks: VecDeque<(u64, Bytes)>,
    memory: MemoryShare,
    _expiry: ExpiryTask,
}

impl DecodedTail {
    /// Adds `ready`, blocks that end at `end`, if there is memory for a tail.
    pub(super) fn push(&self, ready: &[Bytes], end: u64) {
        let mut at = end - ready.iter().map(|block| block.len() as u64).sum::<u64>();
        let mut tail = lock(&self.0);
        let (mut blocks, memory) = match tail.take() {
            Some(tail) => (tail.blocks, tail.memory),
            None => match MEMORY.spare(TAIL_BYTES) {
                Some(memory) => (VecDeque::new(), memory),
                None => return,
            },
        };
        for block in ready {
            blocks.push_back((at, block.clone()));
            at += block.len() as u64;
        }
        while blocks.iter().map(|(_, block)| block.len() as u64).sum::<u64>() > TAIL_BYTES {
            blocks.pop_front();
        }
        let expiry = ExpiryTask::new(expire(Arc::downgrade(&self.0)));
        *tail = Some(TailBlocks { blocks, memory, _expiry: expiry });
    }

    /// The delivery of `want`; `None` unless all of it is in the tail.
    pub(super) fn delivery(&self, want: ByteRange) -> Option<RangeDelivery> {
        let tail = lock(&self.0);
        let (blocks, mut at, mut found) = (&tail.as_ref()?.blocks, want.start, Vec::new());
        while at < want.end {
            let holds = |(start, block): &&(u64, Bytes)| {
                ByteRange::at(*start, block.len() as u64).contains(ByteRange::at(at, 1))
            };
            let (start, block) = blocks.iter().find(holds)?;
            let end = want.end.min(start + block.len() as u64);
            found.push(block.slice((at - start) as usize..(end - start) as usize));
            at = end;
        }
        let body = futures_util::stream::iter(found.into_iter().map(Ok)).boxed();
        Some(RangeDelivery { range: want, body })
    }
}

async fn expire(tail: Weak<Mutex<Option<TailBlocks>>>) {
    tokio::time::sleep(COMMON_PAUSE).await;
    if let Some(tail) = tail.upgrade() {
        let expired = lock(&tail).take();
        drop(expired);
    }
}
