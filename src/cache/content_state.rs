//! Content state: the facts about one cached content that its fetches share with its readers.
//!
//! Its methods are in the files above, by concern: presence, verification, rejection, arrival of blocks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, Semaphore, broadcast, watch};

use super::blob_hasher::IncrementalDigest;
use super::derived::DerivedFiles;
use super::fetch_permits::FetchPermits;
use super::inflight::InflightBlocks;
use super::memory_cache::MemoryCache;
use super::read_bitmap::ReadBitmap;
use super::readahead::{Readahead, ReadaheadUse};
use super::readahead_window::{BlockOrigin, MIN_LINK_WINDOW_BYTES};
use super::reject_history::RejectHistory;
use super::seat::BlockSeat;
use super::sidecar::{BLOCK_SHIFT, BlockChecksum, ContentKind, VerificationState};
use super::verify_policy::VerifyPolicy;
use crate::io::{
    ByteRange, FaultClass, LinkEstimate, RangeFetch, ReadError, lock, proportion, read_lock, write_lock,
};
use crate::metrics;
use crate::oci::{Digest, HashAlgorithm};

/// Longest delay of the last-use record on disk while content is being read.
const LAST_USE_INTERVAL: Duration = Duration::from_secs(60);

/// The parts of a new [`ContentState`].
pub(super) struct ContentConfig {
    pub(super) digest: Digest,
    pub(super) algorithm: HashAlgorithm,
    pub(super) kind: ContentKind,
    pub(super) fetch: Arc<dyn RangeFetch>,
    pub(super) seat: BlockSeat,
    pub(super) derived: DerivedFiles,
    pub(super) places: Arc<FetchPermits>,
    pub(super) verify: Option<VerifyPolicy>,
    pub(super) shelf: Arc<MemoryCache>,
    pub(super) distrusted: broadcast::Sender<Digest>,
}

/// State that the fetches share with the readers.
pub(super) struct ContentState {
    pub(super) digest: Digest,
    pub(super) kind: ContentKind,
    pub(super) size: u64,
    pub(super) fetch: Arc<dyn RangeFetch>,
    /// Nothing when the disk let no file be made: then everything is fetched for its readers only.
    pub(super) seat: BlockSeat,
    pub(super) flights: Mutex<InflightBlocks>,
    pub(super) proof: IncrementalDigest,
    pub(super) ahead: Mutex<Readahead>,
    /// The link to the origin: that of a host, or of this content alone.
    pub(super) link: Arc<LinkEstimate>,
    /// The content that this one is decoded from; empty where it is not decoded or that is unknown.
    pub(super) stored: OnceLock<Weak<ContentState>>,
    places: Arc<FetchPermits>,
    /// When a blob is compared with its digest; `None` where the caller takes blocks as they come.
    pub(super) verify: Option<VerifyPolicy>,
    /// Checksums of blocks that were handed out and are not on disk.
    pub(super) noted: Mutex<HashMap<u64, BlockChecksum>>,
    /// Set while the latest bytes were wrong and none of them was handed out.
    pub(super) rejected: AtomicBool,
    pub(super) rejections: Mutex<RejectHistory>,
    /// Set once a caller peeked at bytes to detect the blob's format before the comparison.
    pub(super) is_looked_at: AtomicBool,
    /// Files derived from this blob.
    pub(super) derived: DerivedFiles,
    /// Small blobs that could not be stored on disk.
    pub(super) shelf: Arc<MemoryCache>,
    /// Guard: one fetch of a small blob into memory at a time.
    pub(super) filling: tokio::sync::Mutex<()>,
    /// Announces blobs that must no longer be trusted, by their digests.
    pub(super) distrusted: broadcast::Sender<Digest>,
    /// Whether all blocks are known to be on disk: then no reader needs to be followed.
    pub(super) whole: AtomicBool,
    /// Notifies its subscribers of the result of the comparison with the digest.
    pub(super) verdict: watch::Sender<Option<VerificationState>>,
    /// Set after `verdict`, so that a look costs no lock.
    pub(super) notified: AtomicBool,
    /// Set once the bytes were compared with the digest and found different.
    pub(super) poisoned: AtomicBool,
    /// Empty while content is complete on disk and not yet compared with its digest.
    pub(super) settled: OnceCell<()>,
    /// Set while the comparison runs beside the readers.
    pub(super) settling: AtomicBool,
    /// Blocks that are being stored, up to the comparison that follows from the last one. Until then a reader of such
    /// a block may see bytes of a blob that is wrong.
    pub(super) storing: AtomicUsize,
    pub(super) warned: AtomicBool,
    pub(super) fetched: AtomicU64,
    pub(super) served: AtomicU64,
    /// Ranges that readers got, for display.
    pub(super) read: ReadBitmap,
    touched: RwLock<Instant>,
}

impl ContentState {
    pub(super) fn new(content: ContentConfig) -> Self {
        let ContentConfig {
            digest,
            algorithm,
            kind,
            fetch,
            seat,
            derived,
            places,
            verify,
            shelf,
            distrusted,
        } = content;
        let size = fetch.size();
        let link = fetch.link().unwrap_or_default();
        let reach = seat.get().and_then(|slot| slot.opened()).map_or(u64::MAX, |pair| pair.reach());
        Self {
            digest,
            kind,
            size,
            fetch,
            seat,
            flights: Mutex::default(),
            proof: IncrementalDigest::new(algorithm, size),
            ahead: Mutex::new(Readahead::within(reach)),
            link,
            stored: OnceLock::new(),
            places,
            verify,
            noted: Mutex::default(),
            rejected: AtomicBool::new(false),
            rejections: Mutex::default(),
            is_looked_at: AtomicBool::new(false),
            derived,
            shelf,
            filling: tokio::sync::Mutex::default(),
            distrusted,
            whole: AtomicBool::new(false),
            verdict: watch::Sender::new(None),
            notified: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            settled: OnceCell::new(),
            settling: AtomicBool::new(false),
            storing: AtomicUsize::new(0),
            warned: AtomicBool::new(false),
            fetched: AtomicU64::new(0),
            served: AtomicU64::new(0),
            read: ReadBitmap::default(),
            touched: RwLock::new(Instant::now()),
        }
    }

    pub(super) fn check_bounds(&self, range: ByteRange) -> Result<(), ReadError> {
        if range.end > self.size {
            let message = format!("range {range} of {} passes the end at {}", self.digest, self.size);
            return Err(ReadError::new(FaultClass::Usage, message));
        }
        Ok(())
    }

    /// Counts a read of `range` that found `missing` blocks absent.
    pub(super) fn note_lookup(&self, range: ByteRange, missing: usize) {
        let lookups = match self.kind {
            ContentKind::Blob => &metrics::BLOBS,
            ContentKind::Stream | ContentKind::Claim => &metrics::STREAMS,
        };
        let wanted = range.blocks(BLOCK_SHIFT);
        lookups.note(wanted.end - wanted.start, missing as u64);
    }

    /// The right to fetch ahead of readers of this kind of content.
    pub(super) fn places(&self) -> &Arc<Semaphore> {
        self.places.of(self.kind)
    }

    /// Where the blocks come from.
    pub(super) fn origin(&self) -> BlockOrigin {
        match self.kind {
            // A file of this machine is read as fast as its checksums are computed.
            ContentKind::Blob if self.opened().is_some_and(|pair| pair.is_local()) => {
                BlockOrigin::Decoder { most: u64::MAX }
            }
            ContentKind::Blob => BlockOrigin::Link(self.link.measure()),
            ContentKind::Stream | ContentKind::Claim => BlockOrigin::Decoder { most: self.decoder_window() },
        }
    }

    /// Widest window over the decoder of this content, in bytes. Where stored bytes are still to be fetched, these
    /// have half a window of their link: the other half is ahead of the decoder.
    fn decoder_window(&self) -> u64 {
        let Some(stored) = self.stored.get().and_then(Weak::upgrade) else { return u64::MAX };
        if stored.is_complete() {
            return u64::MAX;
        }
        proportion(stored.link.product().max(MIN_LINK_WINDOW_BYTES) / 2, stored.size, self.size)
    }

    /// Whether all bytes are known to be present.
    pub(super) fn is_complete(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
            || self.opened().is_some_and(|pair| pair.is_local())
            || *self.verdict.borrow() == Some(VerificationState::Verified)
    }

    /// Records the use of the readahead of readers that have stopped.
    pub(super) fn note_readahead_use(&self, counted: ReadaheadUse) {
        if counted != Default::default() {
            self.link.note_use(counted.used, counted.unused);
        }
    }

    pub(super) fn warn_once(&self, error: &std::io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(digest = %self.digest, %error, "cannot store blocks; reads continue uncached");
        }
    }

    pub(super) fn note_fetched(&self, len: u64) {
        self.fetched.fetch_add(len, Ordering::Relaxed);
    }

    pub(super) fn note_served(&self, range: ByteRange) {
        self.served.fetch_add(range.len(), Ordering::Relaxed);
        self.read.note(range, self.size);
        let fresh = |touched: &Instant| touched.elapsed() < LAST_USE_INTERVAL;
        if fresh(&read_lock(&self.touched)) {
            return;
        }
        *write_lock(&self.touched) = Instant::now();
        if let Some(pair) = self.opened() {
            pair.record_last_use();
        }
    }
}

impl Drop for ContentState {
    fn drop(&mut self) {
        let counted = {
            let mut ahead = lock(&self.ahead);
            ahead.forget_all();
            ahead.take_use()
        };
        self.note_readahead_use(counted);
    }
}
