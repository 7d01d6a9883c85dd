//! Block fetch: the task that fetches the blocks of a run, at most once over the processes that share the cache.
//!
//! It locks the blocks against other processes, looks at the disk again, and pours one delivery into all flights that
//! it covers. So a reader waits only for its own blocks, and no lock is held over a wait that makes no progress.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore};

use super::block_cutter::{BlockCutter, whole_blocks};
use super::block_file::BlockFile;
use super::content_state::ContentState;
use super::inflight::{BlockClaim, FetchRun, abandoned};
use super::lock;
use super::lock::LockBackoff;
use super::sidecar::BLOCK_BYTES;
use super::wait::blocking;
use crate::io::{ByteRange, DemandedFetch, FaultClass, ReadError};

/// After this long another process's claim on a block counts as stuck, and the block is fetched without storing it.
/// Half of the 60 s that a read has in all.
const BLOCK_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The same for content that serves several origins: the registry of another one may be slow on purpose.
const SHARED_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A readahead fetch of which no more than this is missing goes on when its file is closed, in bytes: a new connection
/// costs more.
const MAX_LEFTOVER_BYTES: u64 = BLOCK_BYTES;

/// Ends the remaining flights of an owner, however its task ended.
struct FetchOwner {
    inner: Arc<ContentState>,
    number: u64,
    /// Counts the fetch on the link while a reader waits for blocks before `demanded_end`.
    demanded: Mutex<Option<DemandedFetch>>,
    demanded_end: u64,
    /// The readahead of this fetch; `None` where it has none.
    ahead: Option<ReadaheadGuard>,
    /// Set once it was given up because its reader closed the file.
    is_given_up: AtomicBool,
}

impl FetchOwner {
    /// Records that `block` has arrived.
    fn note_arrival(&self, block: u64) {
        if block + 1 >= self.demanded_end {
            lock(&self.demanded).take();
        }
    }

    /// Waits until the reader of this readahead has closed its file; without readahead for ever.
    async fn closed(&self) {
        match &self.ahead {
            Some(ahead) => ahead.run.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for FetchOwner {
    fn drop(&mut self) {
        lock(&self.inner.flights).crash(self.number, &(0..u64::MAX), &abandoned());
    }
}

/// The lock on a block against other processes; dropping it releases the block.
struct BlockLock {
    /// The open file that has the lock; `None` where nothing is stored.
    pair: Option<Arc<BlockFile>>,
    block: u64,
}

impl BlockLock {
    /// `None` when another process holds the lock. Where locks do not work (some network file systems) every process
    /// gets it: then blocks may be fetched twice, and their checksums keep them right.
    fn take(inner: &Arc<ContentState>, block: u64) -> Option<Self> {
        let pair = inner.pair();
        if let Some(pair) = &pair {
            match pair.sidecar.try_claim(block) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => tracing::debug!(%error, digest = %inner.digest, "cannot lock a block"),
            }
        }
        Some(Self { pair, block })
    }
}

impl Drop for BlockLock {
    fn drop(&mut self) {
        if let Some(pair) = &self.pair {
            pair.sidecar.release(self.block);
        }
    }
}

/// The right to store a block.
enum WritePermit {
    /// Our own lock, for as long as this lives.
    Own { _lock: BlockLock },
    /// A run of this process holds the lock.
    OfRun,
}

/// When readahead may use the link.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkTurn {
    /// At once: the reader arrives there now.
    Now,
    /// Once no reader waits for a fetch.
    AfterReaders,
}

/// Fetches a run that was demanded, and its `ahead`, in one request; `turns` are the permits of its read, and `demanded`
/// has readahead yield to it. It does not wait for readahead, but takes a readahead permit when one is free: more demand
/// means less speculative fetching.
pub(super) async fn fetch_demanded(
    inner: Arc<ContentState>,
    run: FetchRun,
    turns: Arc<Semaphore>,
    demanded: Option<DemandedFetch>,
    ahead: Option<ReadaheadGuard>,
) {
    let owner = FetchOwner {
        inner: Arc::clone(&inner),
        number: run.owner,
        demanded: Mutex::new(demanded),
        demanded_end: run.demanded,
        ahead,
        is_given_up: AtomicBool::new(false),
    };
    let Ok(_turn) = turns.acquire().await else { return };
    let _place = inner.places().try_acquire().ok();
    fetch_run(&inner, &owner, run).await;
}

/// Fetches the missing ones of `blocks`, which no reader wants yet, once its turn has come and a readahead permit is
/// free. Until then they are not in flight: a reader that wants one of them fetches it.
pub(super) async fn fetch_ahead(
    inner: Arc<ContentState>,
    blocks: Range<u64>,
    ahead: ReadaheadGuard,
    turn: LinkTurn,
) {
    let permitted = async {
        if turn == LinkTurn::AfterReaders {
            inner.link.yield_to_readers().await;
        }
        inner.places().acquire().await
    };
    let _place = tokio::select! {
        biased;
        () = ahead.run.notified() => return,
        place = permitted => match place {
            Ok(place) => place,
            Err(_) => return,
        },
    };
    if !ahead.has_turn() {
        return;
    }
    let absent = inner.absent(blocks);
    let mut absent = &absent[..];
    let mut ahead = Some(ahead);
    // One after the other: one permit is one fetch.
    loop {
        let Some(run) = lock(&inner.flights).start(&mut absent) else { return };
        let mut owner = FetchOwner {
            inner: Arc::clone(&inner),
            number: run.owner,
            demanded: Mutex::default(),
            demanded_end: run.demanded,
            ahead: ahead.take(),
            is_given_up: AtomicBool::new(false),
        };
        fetch_run(&inner, &owner, run).await;
        if owner.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        ahead = owner.ahead.take();
    }
}

/// A readahead fetch, counted until it is dropped.
pub(super) struct ReadaheadGuard {
    pub(super) inner: Arc<ContentState>,
    /// Notified when it is to end early.
    pub(super) run: Arc<Notify>,
}

impl ReadaheadGuard {
    /// Records that its turn has come; returns whether it still is to run.
    pub(super) fn has_turn(&self) -> bool {
        lock(&self.inner.ahead).has_turn(&self.run)
    }
}

impl Drop for ReadaheadGuard {
    fn drop(&mut self) {
        lock(&self.inner.ahead).ended(&self.run);
    }
}

/// Fetches the blocks of `run`: first those that no other process is fetching, the others once their locks are
/// released.
async fn fetch_run(inner: &Arc<ContentState>, owner: &FetchOwner, run: FetchRun) {
    let is_shared = inner.opened().is_some_and(|pair| pair.is_fixed());
    let patience = Instant::now() + if is_shared { SHARED_LOCK_TIMEOUT } else { BLOCK_LOCK_TIMEOUT };
    let mut backoff = LockBackoff::new();
    let mut open: Vec<u64> = run.blocks.collect();
    loop {
        let alone = Instant::now() >= patience;
        let mut claimed = Vec::new();
        let mut busy = Vec::new();
        for block in open {
            let mut flights = lock(&inner.flights);
            // A wide delivery of another run may have brought the block.
            if !flights.is_owned(owner.number, block) {
                continue;
            }
            match BlockLock::take(inner, block) {
                Some(taken) => {
                    flights.set_held(block);
                    claimed.push((block, Some(taken)));
                }
                None if alone => claimed.push((block, None)),
                None => busy.push(block),
            }
        }
        for run in neighbours(look_again(inner, claimed).await) {
            if !owner.is_given_up.load(Ordering::Relaxed) {
                deliver(inner, owner, run).await;
            }
        }
        if busy.is_empty() || owner.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        open = busy;
        tokio::time::sleep(backoff.next()).await;
    }
}

/// A block that a run claimed, with its lock; `None` after patience ended.
type LockedBlock = (u64, Option<BlockLock>);

/// Answers from disk the blocks that another process stored before we got the lock; returns those still to be
/// fetched.
async fn look_again(inner: &Arc<ContentState>, claimed: Vec<LockedBlock>) -> Vec<LockedBlock> {
    if inner.seat.get().is_none() || claimed.is_empty() {
        return claimed;
    }
    let here = Arc::clone(inner);
    let looked = blocking(&inner.digest, move || {
        let Some(pair) = here.pair() else { return claimed };
        let mut absent = Vec::new();
        for (block, taken) in claimed {
            match pair.load(block, here.proof.len(block)) {
                Some((bytes, _)) => here.accept(block, &bytes.into(), taken),
                None => absent.push((block, taken)),
            }
        }
        absent
    });
    // When the runtime ends, the drop of the owner answers the readers.
    looked.await.unwrap_or_default()
}

fn neighbours(claimed: Vec<LockedBlock>) -> Vec<Vec<LockedBlock>> {
    let mut runs: Vec<Vec<LockedBlock>> = Vec::new();
    for one in claimed {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.0 + 1 == one.0) => run.push(one),
            _ => runs.push(vec![one]),
        }
    }
    runs
}

/// Fetches neighbouring blocks and answers all their waiters, with bytes or with the error.
async fn deliver(inner: &Arc<ContentState>, owner: &FetchOwner, run: Vec<LockedBlock>) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    let blocks = first.0..last.0 + 1;
    let mut locks: HashMap<u64, Option<BlockLock>> = run.into_iter().collect();
    let poured = pour(inner, owner, &blocks, &mut locks).await;
    // Before the answer: the next read in this process may claim the blocks again.
    drop(locks);
    if let Err(error) = poured {
        let subject = format!("blocks {}-{} of {}", blocks.start, blocks.end - 1, inner.digest);
        lock(&inner.flights).crash(owner.number, &blocks, &error.within(subject));
    }
}

async fn pour(
    inner: &Arc<ContentState>,
    owner: &FetchOwner,
    blocks: &Range<u64>,
    locks: &mut HashMap<u64, Option<BlockLock>>,
) -> Result<(), ReadError> {
    let want = ByteRange::new(blocks.start * BLOCK_BYTES, blocks.end * BLOCK_BYTES)
        .intersect(ByteRange::new(0, inner.size));
    let mut transfer = inner.link.begin(Instant::now());
    let mut delivery = inner.fetch.fetch(want).await?;
    let range = delivery.range;
    let misbehaved = |what: String| ReadError::new(FaultClass::Misbehaved, what);
    if !range.contains(want) || range.end > inner.size {
        return Err(misbehaved(format!("range {want} was requested, range {range} was delivered")));
    }
    let mut wide = WideDelivery::announce(inner, whole_blocks(range, inner.size), blocks);
    let mut cutter = BlockCutter::new(range, inner.size);
    let mut is_closed = false;
    let result = async {
        loop {
            let next = tokio::select! {
                biased;
                () = owner.closed(), if !is_closed => {
                    is_closed = true;
                    if wide.is_none()
                        && cutter.missing() > MAX_LEFTOVER_BYTES
                        && lock(&inner.flights).give_up_unwanted(owner.number, blocks, || locks.clear())
                    {
                        owner.is_given_up.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                    continue;
                }
                next = delivery.body.next() => next,
            };
            let Some(chunk) = next else { break };
            let mut chunk = chunk?;
            transfer.receive(chunk.len() as u64, Instant::now());
            inner.fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if cutter.missing() < chunk.len() as u64 {
                return Err(misbehaved(format!("the delivery of range {range} goes on after its end")));
            }
            while !chunk.is_empty() {
                // The last block waits for the end of the body: a delivery that goes on after it is not to be
                // trusted.
                if let Some((block, bytes)) = cutter.cut(&mut chunk) {
                    put(inner, block, bytes, locks.remove(&block), &wide).await?;
                    owner.note_arrival(block);
                }
            }
        }
        match cutter.finish() {
            Ok(Some((block, bytes))) => put(inner, block, bytes, locks.remove(&block), &wide).await,
            Ok(None) => Ok(()),
            Err(at) => Err(misbehaved(format!("the delivery of range {range} ended at {at}"))),
        }
    }
    .await;
    if let (Err(error), Some(wide)) = (&result, &mut wide) {
        wide.error = error.clone();
        if error.fault() == FaultClass::Mismatch {
            // The blocks before are as wrong as the last one.
            inner.give_up_misdelivered(error);
        }
    }
    result
}

/// Hands one whole block to the blocking threads and waits until it is stored and its readers are answered.
async fn put(
    inner: &Arc<ContentState>,
    block: u64,
    bytes: Bytes,
    claimed: Option<Option<BlockLock>>,
    wide: &Option<WideDelivery>,
) -> Result<(), ReadError> {
    let right = match (claimed, wide) {
        (Some(taken), _) => taken.map(|taken| WritePermit::Own { _lock: taken }),
        (None, Some(wide)) => wide.right(block),
        (None, None) => None,
    };
    let here = Arc::clone(inner);
    blocking(&inner.digest, move || here.accept(block, &bytes, right)).await
}

/// A delivery that brings blocks beyond its request: readers that want them now wait for it.
struct WideDelivery {
    inner: Arc<ContentState>,
    owner: u64,
    /// The error that its waiters get if it ends early.
    error: ReadError,
}

impl WideDelivery {
    fn announce(inner: &Arc<ContentState>, whole: Range<u64>, asked: &Range<u64>) -> Option<Self> {
        if whole.start >= asked.start && whole.end <= asked.end {
            return None;
        }
        let mut flights = lock(&inner.flights);
        let owner = flights.announce(whole);
        Some(Self { inner: Arc::clone(inner), owner, error: abandoned() })
    }

    /// The right to store an extra block; `None` when another process is about to store it, or it is on disk.
    fn right(&self, block: u64) -> Option<WritePermit> {
        let mut flights = lock(&self.inner.flights);
        match flights.claim(block) {
            Some(BlockClaim::Held) => return Some(WritePermit::OfRun),
            Some(BlockClaim::Wanted) => return None,
            Some(BlockClaim::Carried) => {}
            None if self.inner.pair().is_some_and(|pair| pair.is_trusted(block)) => return None,
            // From now on every reader of the block waits for us, so no run can lock it too.
            None => drop(flights.take_off(block, self.owner, BlockClaim::Carried)),
        }
        BlockLock::take(&self.inner, block).map(|lock| WritePermit::Own { _lock: lock })
    }
}

impl Drop for WideDelivery {
    fn drop(&mut self) {
        lock(&self.inner.flights).crash(self.owner, &(0..u64::MAX), &self.error);
    }
}
