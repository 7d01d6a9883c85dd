//! Cached content as [`ReadAt`]: present blocks are read from disk, and each missing block is fetched once.
//!
//! Bytes that failed a check are not handed out, and a disk that does not take or return a block does not fail a
//! read. A read takes the present blocks from disk and joins or starts a flight for each missing one. It looks at the
//! state last, because poisoning writes the state before it truncates the data.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::content_state::{ContentConfig, ContentState};
use super::copy_number::CopyNumber;
use super::fetch::{LinkTurn, ReadaheadGuard, fetch_ahead, fetch_demanded};
use super::inflight::BlockWait;
use super::lock;
use super::readahead_window::{MIN_LINK_WINDOW_BYTES, ReadPace};
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT, ContentKind, VerificationState};
use super::verification::SOON;
use super::wait::blocking;
use crate::io::concurrency::READ_FETCHES;
use crate::io::{BoxFuture, ByteRange, ReadAt, ReadError, VerifiedLevel, plain_reads};
use crate::oci::Digest;

/// Blocks that [`ReadAt::read_ready`] may hash at once: a FUSE read is at most 1 MiB, which touches five.
const READY_CHECKS: usize = 5;
/// Blocks that [`CachedFile::ensure`] has in flight: four fetches of 4 MiB.
const ENSURE_WINDOW: u64 = 64;

/// Cached content: a stored blob, or the decoded stream of one.
pub struct CachedFile {
    pub(super) inner: Arc<ContentState>,
    /// Running fetches. They outlive a reader that went away, but not the content: dropping the set ends them.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// Runtime of the fetches, set by the first one that a reader waited for. With it a cache hit on a FUSE thread
    /// can start readahead.
    runtime: OnceLock<Handle>,
}

impl CachedFile {
    pub(super) fn new(content: ContentConfig) -> Self {
        let inner = ContentState::new(content);
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

    /// Chooses where blocks are read: in the cache, or in a local file of the source. The first read does so too; before
    /// it, the copy number is unknown.
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
            for wait in self.join_or_start(&missing, FetchReason::Background, Vec::new()) {
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

    /// Waits until the whole content was compared with its digest, and returns [`VerificationState::Verified`] or
    /// [`VerificationState::Poisoned`]. `None` when the content was dropped before; waiting does not prevent that. The result of
    /// another process counts from the next read in this one. A decoded stream is never compared.
    pub fn until_verified(&self) -> impl Future<Output = Option<VerificationState>> + Send + use<> {
        // Looks at the disk, where another process may have written the result.
        self.inner.state();
        let mut verdict = self.inner.verdict.subscribe();
        async move { verdict.wait_for(Option::is_some).await.ok().and_then(|state| *state) }
    }

    /// Whether the latest bytes were wrong and were dropped. Reads begin anew.
    pub fn is_rejected(&self) -> bool {
        self.inner.rejected.load(Ordering::Acquire)
    }

    /// Lets the next reader fetch rejected content again. A registry that keeps sending wrong bytes gets requests
    /// less and less often: in between, readers get the error.
    pub fn try_again(&self) {
        if self.is_rejected() && lock(&self.inner.rejections).allows_fetch() {
            self.inner.rejected.store(false, Ordering::Release);
        }
    }

    /// Ends the readahead for readers that begin in `file`, a range of this content, where the file ends. Holds for the
    /// last few files.
    pub fn stop_readahead_after(&self, file: ByteRange) {
        lock(&self.inner.ahead).stop_after(file);
    }

    /// Ends the readahead for readers that began in `file`, a range of this content that was closed.
    pub fn close_readahead(&self, file: ByteRange) {
        let counted = {
            let mut ahead = lock(&self.inner.ahead);
            ahead.close(file);
            ahead.take_use()
        };
        self.inner.note_readahead_use(counted);
    }

    /// Starts to fetch the missing blocks of `range` for reads that are expected. Needs a runtime.
    pub fn start_readahead(&self, range: ByteRange) {
        let inner = Arc::clone(&self.inner);
        let blocks = range.intersect(ByteRange::new(0, inner.size)).blocks(BLOCK_SHIFT);
        let run = lock(&inner.ahead).begin(blocks.clone());
        let ahead = ReadaheadGuard { inner: Arc::clone(&inner), run };
        let turn = if inner.link.is_demanded() { LinkTurn::AfterReaders } else { LinkTurn::Now };
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(
            async move {
                inner.choose_seat().await;
                if inner.seat.get().is_some() {
                    fetch_ahead(inner, blocks, ahead, turn).await;
                }
            },
            self.runtime.get_or_init(Handle::current),
        );
    }

    /// Bytes that are worth fetching ahead of one reader; `u64::MAX` where no link is used.
    pub fn readahead_window(&self) -> u64 {
        match self.inner.is_complete() {
            true => u64::MAX,
            false => self.inner.link.product().max(MIN_LINK_WINDOW_BYTES),
        }
    }

    /// Records that this content is decoded from `stored`: as long as stored bytes are missing, windows follow the link
    /// of those.
    pub fn decoded_from(&self, stored: &Self) {
        // The first stays.
        self.inner.stored.get_or_init(|| Arc::downgrade(&stored.inner));
    }

    pub(super) async fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        follow: ReaderFollow,
    ) -> Result<(), ReadError> {
        if self.inner.is_whole_first() {
            let range = ByteRange::at(offset, buf.len() as u64);
            self.inner.check_bounds(range)?;
            self.try_again();
            self.inner.settle().await?;
            return self.read_whole_first(range, buf).await;
        }
        self.read_as_it_comes(offset, buf, follow).await
    }

    /// Reads present blocks and blocks as they arrive, whether the whole was compared or not.
    pub(super) async fn read_as_it_comes(
        &self,
        offset: u64,
        buf: &mut [u8],
        follow: ReaderFollow,
    ) -> Result<(), ReadError> {
        let range = ByteRange::at(offset, buf.len() as u64);
        self.inner.check_bounds(range)?;
        self.settle_for_reader().await?;
        let missing = self.inner.read_or_hash(range, buf);
        self.inner.note_lookup(range, missing.len());
        if !missing.is_empty() {
            self.inner.whole.store(false, Ordering::Relaxed);
            self.runtime.get_or_init(Handle::current);
        }
        let ahead = match follow {
            ReaderFollow::Ahead => self.runs_ahead(range, &missing),
            ReaderFollow::Alone => Vec::new(),
        };
        let waits = self.join_or_start(&missing, FetchReason::Reader, ahead);
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

    /// Compares content that another process completed but did not compare, before any of it is served. Where that
    /// takes long, and blocks are served before all are present, the comparison runs beside the reader.
    pub(super) async fn settle_for_reader(&self) -> Result<(), ReadError> {
        let inner = &self.inner;
        inner.choose_seat().await;
        if inner.settled.initialized() || inner.is_whole_first() || inner.proof.lag() <= SOON {
            return inner.settle().await;
        }
        if !inner.settling.swap(true, Ordering::AcqRel) {
            let settling = Arc::clone(inner);
            lock(&self.tasks).spawn(async move {
                // The next read looks at the result.
                if let Err(error) = settling.settle().await {
                    tracing::debug!(digest = %settling.digest, error = error.chain(), "compared beside a reader");
                }
            });
        }
        inner.refuse_poisoned()
    }

    /// Waits until a blob whose last block is stored was compared with its digest. A reader that got a block from disk waits as
    /// long as the reader whose fetch brought it.
    pub(super) async fn decided(&self) -> Result<(), ReadError> {
        if !self.inner.is_undecided()? {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        let comparing = blocking(&self.inner.digest, move || {
            let pair = inner.pair()?;
            (inner.proof.all_recorded(&pair) && inner.conclude(&pair)).then_some((inner, pair))
        });
        if let Some((inner, pair)) = comparing.await?
            && inner.storing.load(Ordering::Acquire) == 0
        {
            // Writing it down waits for the disk, and the reader does not.
            tokio::task::spawn_blocking(move || inner.proof.persist(&pair));
        }
        self.inner.refuse_poisoned()
    }

    /// Joins the flights of `missing` blocks and starts the others; the waits come in the same order. Runs of `ahead`
    /// follow: in the same request where they continue the last demanded run.
    fn join_or_start(&self, missing: &[u64], reason: FetchReason, ahead: Vec<AheadRun>) -> Vec<BlockWait> {
        if missing.is_empty() && ahead.is_empty() {
            return Vec::new();
        }
        let mut ahead = VecDeque::from(ahead);
        // Decoders decode side by side instead, and without a permit readahead waits.
        let absent = match (missing.last(), ahead.front()) {
            (Some(last), Some((blocks, _)))
                if last + 1 == blocks.start
                    && self.inner.kind == ContentKind::Blob
                    && self.inner.places().available_permits() > 0 =>
            {
                self.inner.absent(blocks.clone())
            }
            _ => Vec::new(),
        };
        let mut joined = None;
        let (waits, runs) = {
            let mut flights = lock(&self.inner.flights);
            let (waits, mut runs) = flights.join(missing);
            if let Some(run) = runs.last_mut().filter(|run| Some(&run.blocks.end) == absent.first()) {
                let end = flights.extend(run, &absent);
                match ahead.pop_front() {
                    Some((blocks, guard)) if end == blocks.end => joined = Some(guard),
                    Some((blocks, guard)) => ahead.push_front((end..blocks.end, guard)),
                    None => {}
                }
            }
            (waits, runs)
        };
        // Its blocks are in flight: it runs in any case.
        joined.iter().for_each(|guard: &ReadaheadGuard| _ = guard.has_turn());
        let permits = Arc::new(Semaphore::new(READ_FETCHES));
        let runtime = self.runtime.get_or_init(Handle::current);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        let last = runs.len().wrapping_sub(1);
        for (at, run) in runs.into_iter().enumerate() {
            let guard = if at == last { joined.take() } else { None };
            // Counted before readahead begins.
            let is_yielded = reason == FetchReason::Reader && run.is_short();
            let demanded = is_yielded.then(|| self.inner.link.demand());
            let fetch = fetch_demanded(Arc::clone(&self.inner), run, Arc::clone(&permits), demanded, guard);
            tasks.spawn_on(fetch, runtime);
        }
        let turn = match self.inner.kind {
            ContentKind::Blob => LinkTurn::AfterReaders,
            // Decoders take no link from each other.
            ContentKind::Stream | ContentKind::Claim => LinkTurn::Now,
        };
        for (blocks, guard) in ahead {
            tasks.spawn_on(fetch_ahead(Arc::clone(&self.inner), blocks, guard, turn), runtime);
        }
        waits
    }

    /// Follows the reader of `range`, which waits for the `missing` blocks, and returns the runs to fetch that should be
    /// on their way before it gets there.
    fn runs_ahead(&self, range: ByteRange, missing: &[u64]) -> Vec<AheadRun> {
        let inner = &self.inner;
        if inner.whole.load(Ordering::Relaxed)
            || inner.warned.load(Ordering::Relaxed)
            || inner.seat.get().is_none()
            || inner.opened().is_some_and(|pair| pair.is_tight())
            || self.runtime.get().is_none()
        {
            // All blocks are present, or a block that no reader waits for could not be stored.
            return Vec::new();
        }
        let origin = inner.origin();
        let pace = if missing.is_empty() { ReadPace::Served } else { ReadPace::Waits };
        let demanded = match pace {
            ReadPace::Served => None,
            ReadPace::Waits => lock(&inner.flights).first_unrequested(missing),
        };
        let (runs, counted) = {
            let mut ahead = lock(&inner.ahead);
            demanded.inspect(|block| ahead.overtake(*block));
            (ahead.note(range, inner.size, origin, pace), ahead.take_use())
        };
        inner.note_readahead_use(counted);
        runs.into_iter()
            .map(|(blocks, run)| (blocks, ReadaheadGuard { inner: Arc::clone(inner), run }))
            .collect()
    }
}

/// Reason of a fetch that is not readahead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FetchReason {
    /// A reader waits for its blocks, and readahead yields to it.
    Reader,
    /// A whole range is wanted some time.
    Background,
}

/// Blocks to fetch ahead of a reader.
type AheadRun = (Range<u64>, ReadaheadGuard);

/// Whether blocks are fetched ahead of a reader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderFollow {
    /// Yes, once it reads in order.
    Ahead,
    /// No.
    Alone,
}

impl ReadAt for CachedFile {
    fn size(&self) -> u64 {
        self.inner.size
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(offset, buf, ReaderFollow::Ahead))
    }

    fn read_exactly<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(self.read(offset, buf, ReaderFollow::Alone))
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
            let ahead = self.runs_ahead(range, &[]);
            self.join_or_start(&[], FetchReason::Reader, ahead);
            self.inner.note_served(range);
        }
        Ok(ready)
    }

    plain_reads!(holes, learn_holes);

    fn verified(&self) -> VerifiedLevel {
        match self.inner.kind {
            ContentKind::Blob => match self.inner.state() {
                VerificationState::Verified => VerifiedLevel::Full,
                VerificationState::Poisoned => VerifiedLevel::Poisoned,
                VerificationState::Partial | VerificationState::Complete => VerifiedLevel::None,
            },
            // A decoded stream has no digest to be compared with.
            ContentKind::Stream | ContentKind::Claim => VerifiedLevel::None,
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
