//! Paused decoders: a decoder that stopped at the end of a read continues with the next read behind it.
//!
//! A gzip decoder takes 50 KiB. Any other has a window of megabytes, so it takes a share of the memory of all layers
//! while half of that is free, and it is dropped after a while.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use lru::LruCache;
use tokio::task::JoinHandle;

use crate::io::{ByteRange, MEMORY, MemoryShare, lock};

use super::codec::UnitDecoder;
use super::decode_step::WindowLimits;

/// Paused decoders of one stream: one for each file that is read sequentially at the same time.
const PAUSED: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Memory of a decoder with a common window, in bytes.
const COMMON_DECODER_BYTES: u64 = (1 << WindowLimits::Common.log()) + (1 << 20);

/// Longest pause of a decoder with a common window: programs that read a disk in steps pause for less.
pub(super) const COMMON_PAUSE: Duration = Duration::from_secs(20);

/// Longest pause of a decoder with a large window, which may hold more than a third of the memory of all layers.
const LARGE_PAUSE: Duration = Duration::from_secs(4);

/// A decoder that stopped inside its unit.
pub(super) struct PausedDecoder {
    pub(super) decoder: UnitDecoder,
    /// The windows that it may use.
    pub(super) windows: WindowLimits,
    /// Its share of the memory of all layers; `None` where it needs none.
    pub(super) memory: Option<MemoryShare>,
}

struct HeldDecoder {
    paused: PausedDecoder,
    /// Drops the decoder after its longest pause; `None` for one that is small.
    _expiry: Option<ExpiryTask>,
}

/// The task that ends a pause. It ends with the value that it would drop.
pub(super) struct ExpiryTask(JoinHandle<()>);

impl ExpiryTask {
    pub(super) fn new(expire: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(expire))
    }
}

impl Drop for ExpiryTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type DecoderMap = Mutex<LruCache<u64, HeldDecoder>>;

/// The paused decoders of one stream, by their stream offset. A decoder is absent while it works.
pub(super) struct PausedDecoders(Arc<DecoderMap>);

impl PausedDecoders {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(PAUSED))))
    }

    /// Removes the decoder closest to the end of `stream`, at most at it and behind its start.
    pub(super) fn take(&self, stream: ByteRange) -> Option<(u64, PausedDecoder)> {
        let mut decoders = lock(&self.0);
        let between = |at: &u64| stream.start < *at && *at <= stream.end;
        let at = decoders.iter().map(|(at, _)| *at).filter(between).max()?;
        decoders.pop_entry(&at).map(|(at, held)| (at, held.paused))
    }

    /// Adds a decoder, if there is memory for its window.
    pub(super) fn put(&self, at: u64, mut paused: PausedDecoder) {
        if !paused.decoder.is_small() && paused.memory.is_none() {
            paused.memory = MEMORY.spare(COMMON_DECODER_BYTES);
            if paused.memory.is_none() {
                return;
            }
        }
        let longest = match paused.windows {
            WindowLimits::Common => COMMON_PAUSE,
            WindowLimits::Large => LARGE_PAUSE,
        };
        let decoders = Arc::downgrade(&self.0);
        let expiry = paused.memory.is_some().then(|| ExpiryTask::new(expire(decoders, at, longest)));
        lock(&self.0).put(at, HeldDecoder { paused, _expiry: expiry });
    }
}

async fn expire(decoders: Weak<DecoderMap>, at: u64, longest: Duration) {
    tokio::time::sleep(longest).await;
    if let Some(decoders) = decoders.upgrade() {
        let expired = lock(&decoders).pop(&at);
        drop(expired);
    }
}
