//! Cached content as [`ReadAt`]: present blocks are read from disk, and each missing block is fetched once.
//!
//! Bytes that failed a check are not handed out, and a disk that does not take or return a block does not fail a
//! read. A read takes the present blocks from disk and joins or starts a flight for each missing one. It looks at the
//! state last, because poisoning writes the state before it truncates the data.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, broadcast, watch};
use tokio::task::JoinSet;

use super::blob_hasher::IncrementalDigest;
use super::copy_number::CopyNumber;
use super::derived::DerivedFiles;
use super::inflight::{BlockWait, InflightBlocks, ReadaheadGuard, fetch_ahead, fetch_demanded};
use super::read_bitmap::ReadBitmap;
use super::readahead::{FetchPermits, Readahead};
use super::reject::RejectHistory;
use super::seat::BlockSeat;
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT, BlockChecksum, ContentKind, VerificationState};
use super::verification::{SOON, StoredBlock};
use super::verify_first::MemoryCache;
use super::verify_policy::VerifyPolicy;
use super::wait::blocking;
use super::{CacheError, lock};
use crate::io::{BoxFuture, ByteRange, FaultClass, RangeFetch, ReadAt, ReadError, VerifiedLevel};
use crate::metrics;
use crate::oci::{Digest, HashAlgorithm};

/// Fetches of one read that run at the same time.
const FETCH_CONCURRENCY_PER_READ: usize = 4;
/// Blocks that [`ReadAt::read_ready`] may hash at once: a FUSE read is at most 1 MiB, which touches five.
const READY_CHECKS: usize = 5;
/// Blocks that [`Cached::ensure`] has in flight: four fetches of 4 MiB.
const ENSURE_WINDOW: u64 = 64;
/// Longest delay of the last-use record on disk while content is being read.
const LAST_USE_INTERVAL: Duration = Duration::from_secs(60);

/// Cached content: a stored blob, or the decoded stream of one.
pub struct CachedFile {
    pub(super) inner: Arc<ContentState>,
    /// Running fetches. They outlive a reader that went away, but not the content: dropping the set ends them.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// Runtime of the fetches, set by the first one that a reader waited for. With it a cache hit on a FUSE thread
    /// can start readahead.
    runtime: OnceLock<Handle>,
}

/// The parts of a [`Cached`].
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
    pub(super) told: AtomicBool,
    /// Set once the bytes were compared with the digest and found different.
    pub(super) poisoned: AtomicBool,
    /// Empty while content is complete on disk and not yet compared with its digest.
    pub(super) settled: OnceCell<()>,
    /// Set while the comparison runs beside the readers.
    pub(super) settling: AtomicBool,
    /// Blocks that are being stored, up to the comparison that follows from the last one. Until then a reader of such a block may
    /// see bytes of a blob that is wrong.
    pub(super) storing: AtomicUsize,
    /// What the owner of a decoded stream says about it, as [`Verified`].
    vouched: AtomicU8,
    warned: AtomicBool,
    pub(super) fetched: AtomicU64,
    served: AtomicU64,
    /// Ranges that readers got, for display.
    pub(super) read: ReadBitmap,
    touched: RwLock<Instant>,
}

impl CachedFile {
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
        let reach = seat.get().and_then(|slot| slot.opened()).map_or(u64::MAX, |pair| pair.reach());
        let inner = ContentState {
            digest,
            kind,
            size,
            fetch,
            seat,
            flights: Mutex::default(),
            proof: IncrementalDigest::new(algorithm, size),
            ahead: Mutex::new(Readahead::within(reach)),
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
            told: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            settled: OnceCell::new(),
            settling: AtomicBool::new(false),
            storing: AtomicUsize::new(0),
            vouched: AtomicU8::new(0),
            warned: AtomicBool::new(false),
            fetched: AtomicU64::new(0),
            served: AtomicU64::new(0),
            read: ReadBitmap::default(),
            touched: RwLock::new(Instant::now()),
        };
        inner.settle_at_open();
        Self { inner: Arc::new(inner), tasks: Mutex::default(), runtime: OnceLock::new() }
    }

    /// The digest of the stored blob.
    pub fn digest(&self) -> &Digest {
        &self.inner.digest
    }

    /// Whether all blocks of `range` are on disk according to their records.
    pub fn present(&self, range: ByteRange) -> bool {
        let Some(pair) = self.inner.pair() else { return range.is_empty() };
        let clipped = range.intersect(ByteRange::new(0, self.inner.size));
        clipped == range
            && self.inner.state() != VerificationState::Poisoned
            && range.blocks(BLOCK_SHIFT).all(|block| pair.is_recorded(block, self.inner.proof.len(block)))
    }

    /// Bytes on disk according to the records. Reads all records: for progress, not for reads.
    pub fn bytes_present(&self) -> u64 {
        let Some(pair) = self.inner.pair() else { return 0 };
        pair.sidecar.bytes_present().unwrap_or_else(|error| {
            tracing::debug!(%error, digest = %self.inner.digest, "cannot read the sidecar");
            0
        })
    }

    /// The number of the cached copy, unique among copies of this content; `None` where nothing is cached.
    pub fn copy_number(&self) -> Option<CopyNumber> {
        self.inner.pair()?.copy_number()
    }

    /// Finds out where the blocks are read: in the cache, or where the source has them on this machine. Reads do that, too; what is
    /// asked of the copy before is not known.
    pub async fn locate(&self) {
        self.inner.choose_seat().await;
    }

    /// State of the content over all processes.
    pub fn state(&self) -> VerificationState {
        self.inner.state()
    }

    /// Bytes that readers got from this value.
    pub fn served(&self) -> u64 {
        self.inner.served.load(Ordering::Relaxed)
    }

    /// Bytes that this process fetched for this content.
    pub fn fetched(&self) -> u64 {
        self.inner.fetched.load(Ordering::Relaxed)
    }

    /// Fetches the missing blocks of `range` and checks the present ones, without handing out bytes. Does nothing
    /// when no disk takes the blocks.
    pub async fn ensure(&self, range: ByteRange) -> Result<(), ReadError> {
        self.inner.check_bounds(range)?;
        self.inner.settle().await?;
        if self.inner.seat.get().is_none() {
            return Ok(());
        }
        let blocks = range.blocks(BLOCK_SHIFT);
        let mut from = blocks.start;
        while from < blocks.end {
            let window = from..blocks.end.min(from + ENSURE_WINDOW);
            from = window.end;
            let inner = Arc::clone(&self.inner);
            let missing = blocking(&self.inner.digest, move || inner.unproven(window)).await?;
            for wait in self.join_or_start(&missing) {
                wait.outcome().await?;
            }
        }
        if range.len() == self.inner.size {
            return self.compared().await;
        }
        self.inner.refuse_poisoned()
    }

    /// Waits until content with all blocks on disk was compared with its digest; its last block may be served while
    /// the comparison still runs. Fails when the digests differ.
    pub async fn compared(&self) -> Result<(), ReadError> {
        let inner = Arc::clone(&self.inner);
        let comparing = blocking(&self.inner.digest, move || {
            if let Some(pair) = inner.pair()
                && inner.kind == ContentKind::Blob
                && matches!(inner.state(), VerificationState::Partial | VerificationState::Complete)
                && inner.proof.all_recorded(&pair)
                && inner.conclude(&pair)
            {
                inner.proof.persist(&pair);
            }
        });
        comparing.await?;
        self.inner.refuse_poisoned()
    }

    /// Reports the digest `actual` of a caller that hashed the whole stored blob in order while reading it through
    /// the cache. An equal digest makes it verified, as far as all blocks are on disk; a different one poisons it.
    /// Blocks its thread for hashing and syncing files.
    pub fn mark_verified_by(&self, actual: &Digest) -> Result<VerificationState, CacheError> {
        let inner = &self.inner;
        let equal = *actual == inner.digest;
        // A caller's read error cannot make a verified blob wrong.
        if !equal {
            if inner.state() != VerificationState::Verified {
                inner.poison(actual);
            }
            return Err(CacheError::Mismatch { expected: inner.digest.clone(), actual: actual.clone() });
        }
        // The files are compared all the same: their bytes may have changed since they were handed out.
        if let Some(pair) = inner.pair()
            && inner.state() != VerificationState::Verified
            && inner.proof.all_recorded(&pair)
            && inner.conclude(&pair)
        {
            inner.proof.persist(&pair);
        }
        Ok(inner.state())
    }

    /// Waits until the whole content was compared with its digest, and returns [`VerificationState::Verified`] or
    /// [`VerificationState::Poisoned`]. `None` when the content was dropped before; waiting does not prevent that. The result of
    /// another process counts from the next read in this one. A decoded stream is never compared.
    pub fn until_verified(&self) -> impl Future<Output = Option<VerificationState>> + Send + use<> {
        // Looks at the disk, where another process may have written the result.
        self.inner.state();
        let mut verdict = self.inner.verdict.subscribe();
        async move { verdict.wait_for(Option::is_some).await.ok().and_then(|state| *state) }
    }

    /// Sets the answer of [`ReadAt::verified`] for a decoded stream, which has no digest to be compared with. For a
    /// stored blob only the comparison with its digest decides.
    pub fn set_verified(&self, verified: VerifiedLevel) {
        self.inner.vouched.store(verified as u8, Ordering::Relaxed);
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if self.inner.is_whole_first() {
            let range = ByteRange::at(offset, buf.len() as u64);
            self.inner.check_bounds(range)?;
            self.try_again();
            self.inner.settle().await?;
            return self.read_whole_first(range, buf).await;
        }
        self.read_as_it_comes(offset, buf).await
    }

    /// Reads present blocks and blocks as they arrive, whether the whole was compared or not.
    pub(super) async fn read_as_it_comes(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let range = ByteRange::at(offset, buf.len() as u64);
        self.inner.check_bounds(range)?;
        self.settle_for_reader().await?;
        let missing = self.inner.read_or_hash(range, buf);
        self.inner.note_lookup(range, missing.len());
        // Demanded blocks come before readahead.
        let waits = self.join_or_start(&missing);
        if !missing.is_empty() {
            self.inner.whole.store(false, Ordering::Relaxed);
        }
        self.read_ahead(range);
        for wait in waits {
            let (block, bytes) = wait.outcome().await?;
            let here = ByteRange::at(block * BLOCK_BYTES, bytes.len() as u64);
            let part = here.intersect(range);
            // Both differences lie inside a buffer and a block, which are in memory.
            let target = (part.start - range.start) as usize..(part.end - range.start) as usize;
            buf[target].copy_from_slice(
                &bytes[(part.start - here.start) as usize..(part.end - here.start) as usize],
            );
        }
        self.decided().await?;
        self.inner.note_served(range);
        Ok(())
    }

    /// Joins the flights of `missing` blocks and starts the others; the waits come in the same order.
    fn join_or_start(&self, missing: &[u64]) -> Vec<BlockWait> {
        if missing.is_empty() {
            return Vec::new();
        }
        let (waits, runs) = lock(&self.inner.flights).join(missing);
        if !runs.is_empty() {
            let permits = Arc::new(Semaphore::new(FETCH_CONCURRENCY_PER_READ));
            let runtime = self.runtime.get_or_init(Handle::current);
            let mut tasks = lock(&self.tasks);
            while tasks.try_join_next().is_some() {}
            for run in runs {
                let fetch = fetch_demanded(Arc::clone(&self.inner), run, Arc::clone(&permits));
                tasks.spawn_on(fetch, runtime);
            }
        }
        waits
    }

    /// Follows the reader of `range` and starts the fetches that should be on their way before it gets there.
    fn read_ahead(&self, range: ByteRange) {
        let inner = &self.inner;
        if inner.whole.load(Ordering::Relaxed)
            || inner.warned.load(Ordering::Relaxed)
            || inner.seat.get().is_none()
        {
            // All blocks are present, or a block that no reader waits for could not be stored.
            return;
        }
        if inner.opened().is_some_and(|pair| pair.is_tight()) {
            return;
        }
        let Some(runtime) = self.runtime.get() else { return };
        let runs = lock(&inner.ahead).note(range, inner.size);
        if runs.is_empty() {
            return;
        }
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        for blocks in runs {
            let going = ReadaheadGuard(Arc::clone(inner));
            tasks.spawn_on(fetch_ahead(Arc::clone(inner), blocks, going), runtime);
        }
    }
}

impl ReadAt for CachedFile {
    fn size(&self) -> u64 {
        self.inner.size
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(offset, buf))
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        let range = ByteRange::at(offset, buf.len() as u64);
        self.inner.check_bounds(range)?;
        let whole_first = self.inner.is_whole_first();
        if self.is_rejected() {
            // Only a fetch can repair this.
            return Ok(false);
        }
        if !self.inner.settled.initialized()
            || self.inner.is_closed()
            || whole_first && self.inner.state() != VerificationState::Verified
        {
            // Wrong content is an error now as well as later.
            if !self.inner.is_closed() {
                self.inner.refuse_poisoned()?;
            }
            return Ok(false);
        }
        let ready =
            self.inner.read_from_disk(range, buf, READY_CHECKS).is_some_and(|missing| missing.is_empty());
        if self.inner.is_undecided()? {
            return Ok(false);
        }
        if whole_first && self.inner.state() != VerificationState::Verified {
            return Ok(false);
        }
        if ready {
            self.inner.note_lookup(range, 0);
            self.read_ahead(range);
            self.inner.note_served(range);
        }
        Ok(ready)
    }

    fn verified(&self) -> VerifiedLevel {
        match self.inner.kind {
            ContentKind::Blob => match self.inner.state() {
                VerificationState::Verified => VerifiedLevel::Full,
                VerificationState::Poisoned => VerifiedLevel::Poisoned,
                VerificationState::Partial | VerificationState::Complete => VerifiedLevel::None,
            },
            ContentKind::Stream | ContentKind::Claim => match self.inner.vouched.load(Ordering::Relaxed) {
                full if full == VerifiedLevel::Full as u8 => VerifiedLevel::Full,
                partial if partial == VerifiedLevel::Partial as u8 => VerifiedLevel::Partial,
                _ => VerifiedLevel::None,
            },
        }
    }

    /// The data file of a verified blob with all blocks on disk. It stays valid while both this [`CachedFile`] and the
    /// descriptor are held. The lock of the first keeps evictors of other processes away, the second those of this
    /// process.
    fn backing(&self) -> Option<Arc<OwnedFd>> {
        let inner = &self.inner;
        inner.pair().filter(|_| inner.kind == ContentKind::Blob)?.hand_out(inner.size)
    }
}

impl ContentState {
    fn check_bounds(&self, range: ByteRange) -> Result<(), ReadError> {
        if range.end > self.size {
            let message = format!("range {range} of {} passes the end at {}", self.digest, self.size);
            return Err(ReadError::new(FaultClass::Usage, message));
        }
        Ok(())
    }

    /// Counts a read of `range` that found `missing` blocks absent.
    fn note_lookup(&self, range: ByteRange, missing: usize) {
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

    /// Stores a block that arrived (if `right` allows), answers its waiters, and settles the consequences. Runs on a
    /// blocking thread, because a write can wait for the disk without a bound.
    pub(super) fn accept<R>(&self, block: u64, bytes: &Bytes, right: Option<R>) {
        let storing = StoredBlock::begin(&self.storing);
        let mut outcome = self.refuse_poisoned();
        let mut kept = None;
        let pair = self.pair();
        let is_stored = pair.is_some() && right.is_some();
        let sum = (is_stored || self.kind == ContentKind::Blob).then(|| blake3::hash(bytes).into());
        if let (Some(sum), ContentKind::Blob) = (&sum, self.kind) {
            outcome = outcome.and_then(|()| self.compare_earlier(block, sum));
        }
        if let (Some(pair), Some(sum)) = (pair, sum)
            && right.is_some()
            && outcome.is_ok()
        {
            match pair.store(block, bytes, &sum) {
                Ok(()) => {
                    // A verified block whose record was lost made the content partial again.
                    if pair.sidecar.status().is_none_or(|status| status.state != VerificationState::Verified)
                    {
                        pair.set_proven(VerificationState::Partial);
                    }
                    kept = Some((pair, sum));
                }
                Err(super::block_file::StoreError::Poisoned) => outcome = self.refuse_poisoned(),
                Err(super::block_file::StoreError::Contradicts) => outcome = Err(self.contradicted(block)),
                Err(super::block_file::StoreError::NoRoom) => {
                    tracing::debug!(block, digest = %self.digest, "the cache has no room for a block")
                }
                Err(super::block_file::StoreError::Disk(error)) => self.warn_once(&error),
            }
        }
        if let (Some(sum), ContentKind::Blob, None, Ok(())) = (sum, self.kind, &kept, &outcome) {
            self.note(block, sum);
        }
        // Before the answer: the next read in this process may claim the block again.
        drop(right);
        let mut concluded = false;
        // The last block does not wait until a large rest is hashed.
        let late = self.kind == ContentKind::Blob && self.proof.lag() > SOON;
        if late {
            lock(&self.flights).land(block, outcome.clone().map(|()| bytes.clone()));
        }
        let complete = kept.as_ref().map(|(pair, _)| pair).filter(|pair| self.proof.all_recorded(pair));
        if let Some(pair) = complete {
            self.whole.store(true, Ordering::Relaxed);
            match self.kind {
                ContentKind::Stream | ContentKind::Claim => self.advance(pair, VerificationState::Complete),
                ContentKind::Blob if self.state() == VerificationState::Verified => {}
                ContentKind::Blob => {
                    self.advance(pair, VerificationState::Complete);
                    concluded = self.conclude(pair);
                    outcome = outcome.and_then(|()| self.refuse_poisoned());
                }
            }
        }
        if !late {
            lock(&self.flights).land(block, outcome.map(|()| bytes.clone()));
        }
        drop(storing);
        match (&kept, complete) {
            (Some((pair, _)), Some(_)) if concluded => self.proof.persist(pair),
            (Some((pair, sum)), None) if self.kind == ContentKind::Blob => {
                self.proof.follow(pair, block, bytes, sum)
            }
            _ => {}
        }
    }

    fn warn_once(&self, error: &std::io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(digest = %self.digest, %error, "cannot store blocks; reads go on without");
        }
    }

    pub(super) fn note_fetched(&self, len: u64) {
        self.fetched.fetch_add(len, Ordering::Relaxed);
    }

    pub(super) fn note_served(&self, range: ByteRange) {
        self.served.fetch_add(range.len(), Ordering::Relaxed);
        self.read.note(range, self.size);
        let fresh = |touched: &Instant| touched.elapsed() < LAST_USE_INTERVAL;
        if fresh(&self.touched.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        *self.touched.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Some(pair) = self.opened()
            && let Err(error) = pair.sidecar.touch()
        {
            tracing::debug!(%error, "cannot note the last use");
        }
    }
}
