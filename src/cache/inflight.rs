//! Single-flight table: at most one fetch per missing block, over the threads of this process and over processes.
//!
//! A read joins or starts a flight per block. Neighbouring new flights become one run, whose task locks the blocks
//! against other processes, looks at the disk again, and pours one delivery into all flights that it covers. So a
//! reader waits only for its own blocks, and no lock is held over a wait that makes no progress.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, watch};

use super::block_file::BlockFile;
use super::cached::ContentState;
use super::lock;
use super::lock::LockBackoff;
use super::sidecar::{BLOCK_BYTES, BLOCK_SHIFT};
use super::wait::blocking;
use crate::io::{ByteRange, FaultClass, ReadError};

/// Blocks of one fetch that readers wait for: 4 MiB. Readahead fetches longer ranges.
const RUN: u64 = 16;
/// After this long another process's claim on a block counts as stuck, and the block is fetched without storing it.
/// Half of the 60 s that a read has in all.
const BLOCK_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

type FetchOutcome = Result<Bytes, ReadError>;

/// The blocks that are on their way to this process.
#[derive(Default)]
pub(super) struct InflightBlocks {
    map: HashMap<u64, InflightBlock>,
    /// Deliveries that bring more blocks than their run requested: the owner's number, and the blocks still to come.
    ahead: Vec<(u64, Range<u64>)>,
    last_owner: u64,
}

struct InflightBlock {
    /// The run or the wide delivery that answers.
    owner: u64,
    claim: BlockClaim,
    answer: watch::Sender<Option<FetchOutcome>>,
}

/// Holder of the lock on a block against other processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BlockClaim {
    /// The run is waiting for another process.
    Wanted,
    /// The run holds the lock.
    Held,
    /// No run owns the block: a wide delivery brings it.
    Carried,
}

/// Neighbouring blocks whose flights one task owns.
pub(super) struct FetchRun {
    owner: u64,
    blocks: Range<u64>,
}

/// A subscription to the flight of one block.
pub(super) struct BlockWait {
    block: u64,
    answer: watch::Receiver<Option<FetchOutcome>>,
}

impl BlockWait {
    /// The block's number and bytes.
    pub(super) async fn outcome(mut self) -> Result<(u64, Bytes), ReadError> {
        let answer = self.answer.wait_for(Option::is_some).await;
        match answer.map(|answer| answer.clone()) {
            Ok(Some(outcome)) => outcome.map(|bytes| (self.block, bytes)),
            Ok(None) | Err(_) => Err(abandoned()),
        }
    }
}

impl InflightBlocks {
    /// A wait for each of `blocks` (ascending), and the new runs, which the caller must start now.
    pub(super) fn join(&mut self, blocks: &[u64]) -> (Vec<BlockWait>, Vec<FetchRun>) {
        let mut waits = Vec::with_capacity(blocks.len());
        let mut runs: Vec<FetchRun> = Vec::new();
        for &block in blocks {
            let answer = match self.map.get(&block) {
                Some(flight) => flight.answer.subscribe(),
                None => match self.ahead.iter().find(|(_, coming)| coming.contains(&block)) {
                    Some(&(owner, _)) => self.take_off(block, owner, BlockClaim::Carried),
                    None => {
                        let run = match runs.last_mut() {
                            Some(run)
                                if run.blocks.end == block && run.blocks.end - run.blocks.start < RUN =>
                            {
                                run
                            }
                            _ => {
                                self.last_owner += 1;
                                runs.push(FetchRun { owner: self.last_owner, blocks: block..block });
                                let last = runs.len() - 1;
                                &mut runs[last]
                            }
                        };
                        run.blocks.end = block + 1;
                        let owner = run.owner;
                        self.take_off(block, owner, BlockClaim::Wanted)
                    }
                },
            };
            waits.push(BlockWait { block, answer });
        }
        (waits, runs)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The first run among `blocks` (ascending) that is not in flight yet; the caller must start it now. Removes the
    /// examined blocks from the front of `blocks`.
    fn start(&mut self, blocks: &mut &[u64]) -> Option<FetchRun> {
        let mut run: Option<FetchRun> = None;
        while let Some((&block, rest)) = blocks.split_first() {
            let coming =
                self.map.contains_key(&block) || self.ahead.iter().any(|(_, coming)| coming.contains(&block));
            match &mut run {
                Some(run) if coming || run.blocks.end != block => break,
                Some(run) => run.blocks.end = block + 1,
                None if coming => {}
                None => {
                    self.last_owner += 1;
                    run = Some(FetchRun { owner: self.last_owner, blocks: block..block + 1 });
                }
            }
            *blocks = rest;
            if !coming {
                let owner = self.last_owner;
                self.take_off(block, owner, BlockClaim::Wanted);
            }
        }
        run
    }

    fn take_off(
        &mut self,
        block: u64,
        owner: u64,
        claim: BlockClaim,
    ) -> watch::Receiver<Option<FetchOutcome>> {
        let (answer, receiver) = watch::channel(None);
        self.map.insert(block, InflightBlock { owner, claim, answer });
        receiver
    }

    /// Answers all waiters of `block`.
    pub(super) fn land(&mut self, block: u64, outcome: FetchOutcome) {
        for (_, coming) in &mut self.ahead {
            // Deliveries bring their blocks in order. Another delivery may bring the block again: that is only late.
            if coming.start == block {
                coming.start = block + 1;
            }
        }
        if let Some(flight) = self.map.remove(&block) {
            flight.answer.send_replace(Some(outcome));
        }
    }

    /// Answers all waiters of `owner`'s flights in `blocks` with `error`.
    fn crash(&mut self, owner: u64, blocks: &Range<u64>, error: &ReadError) {
        self.ahead.retain(|(other, _)| *other != owner);
        self.map.retain(|block, flight| {
            let fails = flight.owner == owner && blocks.contains(block);
            if fails {
                flight.answer.send_replace(Some(Err(error.clone())));
            }
            !fails
        });
    }

    fn is_owned(&self, owner: u64, block: u64) -> bool {
        self.map.get(&block).is_some_and(|flight| flight.owner == owner)
    }
}

fn abandoned() -> ReadError {
    ReadError::new(FaultClass::Io, "the fetch of a block was abandoned")
}

/// Ends the remaining flights of an owner, however its task ended.
struct FetchOwner {
    inner: Arc<ContentState>,
    number: u64,
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

/// Fetches a run that a reader waits for; `turns` are the permits of its read. It does not wait for readahead, but
/// takes a readahead permit when one is free: more demand means less speculative fetching.
pub(super) async fn fetch_demanded(inner: Arc<ContentState>, run: FetchRun, turns: Arc<Semaphore>) {
    let owner = FetchOwner { inner: Arc::clone(&inner), number: run.owner };
    let Ok(_turn) = turns.acquire().await else { return };
    let _place = inner.places().try_acquire().ok();
    fetch_run(&inner, &owner, run).await;
}

/// Fetches the missing ones of `blocks`, which no reader wants yet, once a readahead permit is free. Until then they
/// are not in flight: a reader that wants one of them fetches it.
pub(super) async fn fetch_ahead(inner: Arc<ContentState>, blocks: Range<u64>, _going: ReadaheadGuard) {
    let Ok(_place) = inner.places().acquire().await else { return };
    let absent = inner.absent(blocks);
    let mut absent = &absent[..];
    // One after the other: one permit is one fetch.
    loop {
        let Some(run) = lock(&inner.flights).start(&mut absent) else { return };
        let owner = FetchOwner { inner: Arc::clone(&inner), number: run.owner };
        fetch_run(&inner, &owner, run).await;
    }
}

/// A readahead fetch, counted until it is dropped.
pub(super) struct ReadaheadGuard(pub(super) Arc<ContentState>);

impl Drop for ReadaheadGuard {
    fn drop(&mut self) {
        lock(&self.0.ahead).ended();
    }
}

/// Fetches the blocks of `run`: first those that no other process is fetching, the others once their locks are
/// released.
async fn fetch_run(inner: &Arc<ContentState>, owner: &FetchOwner, run: FetchRun) {
    let patience = Instant::now() + BLOCK_LOCK_TIMEOUT;
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
                    if let Some(flight) = flights.map.get_mut(&block) {
                        flight.claim = BlockClaim::Held;
                    }
                    claimed.push((block, Some(taken)));
                }
                None if alone => claimed.push((block, None)),
                None => busy.push(block),
            }
        }
        for run in neighbours(look_again(inner, claimed).await) {
            deliver(inner, owner.number, run).await;
        }
        if busy.is_empty() {
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
async fn deliver(inner: &Arc<ContentState>, owner: u64, run: Vec<LockedBlock>) {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
    let blocks = first.0..last.0 + 1;
    let mut locks: HashMap<u64, Option<BlockLock>> = run.into_iter().collect();
    let poured = pour(inner, &blocks, &mut locks).await;
    // Before the answer: the next read in this process may claim the blocks again.
    drop(locks);
    if let Err(error) = poured {
        let subject = format!("blocks {}-{} of {}", blocks.start, blocks.end - 1, inner.digest);
        lock(&inner.flights).crash(owner, &blocks, &error.within(subject));
    }
}

async fn pour(
    inner: &Arc<ContentState>,
    blocks: &Range<u64>,
    locks: &mut HashMap<u64, Option<BlockLock>>,
) -> Result<(), ReadError> {
    let want = ByteRange::new(blocks.start * BLOCK_BYTES, blocks.end * BLOCK_BYTES)
        .intersect(ByteRange::new(0, inner.size));
    let mut delivery = inner.fetch.fetch(want).await?;
    let range = delivery.range;
    let misbehaved = |what: String| ReadError::new(FaultClass::Misbehaved, what);
    if !range.contains(want) || range.end > inner.size {
        return Err(misbehaved(format!("range {want} was asked for, range {range} is delivered")));
    }
    let mut wide = WideDelivery::announce(inner, whole_blocks(range, inner.size), blocks);
    let mut cutter = BlockCutter::new(range, inner.size);
    let result = async {
        while let Some(chunk) = delivery.body.next().await {
            let mut chunk = chunk?;
            inner.fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if cutter.missing() < chunk.len() as u64 {
                return Err(misbehaved(format!("the delivery of range {range} goes on after its end")));
            }
            while !chunk.is_empty() {
                // The last block waits for the end of the body: a delivery that goes on after it is not to be
                // trusted.
                if let Some((block, bytes)) = cutter.cut(&mut chunk) {
                    put(inner, block, bytes, locks.remove(&block), &wide).await?;
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
        flights.last_owner += 1;
        let owner = flights.last_owner;
        flights.ahead.push((owner, whole));
        Some(Self { inner: Arc::clone(inner), owner, error: abandoned() })
    }

    /// The right to store an extra block; `None` when another process is about to store it, or it is on disk.
    fn right(&self, block: u64) -> Option<WritePermit> {
        let mut flights = lock(&self.inner.flights);
        match flights.map.get(&block).map(|flight| flight.claim) {
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

/// The blocks that `range` covers from their first to their last byte.
fn whole_blocks(range: ByteRange, size: u64) -> Range<u64> {
    let start = range.start.div_ceil(BLOCK_BYTES);
    let end = if range.end == size { size.div_ceil(BLOCK_BYTES) } else { range.end >> BLOCK_SHIFT };
    start..end.max(start)
}

/// Cuts a delivery into whole blocks.
struct BlockCutter {
    at: u64,
    range: ByteRange,
    /// Blocks to come out. Invariant: `block_start(whole.start) <= at` once the first of them has begun.
    whole: Range<u64>,
    size: u64,
    partial: BytesMut,
}

impl BlockCutter {
    fn new(range: ByteRange, size: u64) -> Self {
        Self { at: range.start, range, whole: whole_blocks(range, size), size, partial: BytesMut::new() }
    }

    /// Bytes of the delivery that are still to come.
    fn missing(&self) -> u64 {
        self.range.end - self.at
    }

    /// Takes bytes off the front of `chunk` (not empty), up to the end of a block. Returns the block if that
    /// completes it and it does not end the delivery.
    fn cut(&mut self, chunk: &mut Bytes) -> Option<(u64, Bytes)> {
        let block = self.at >> BLOCK_SHIFT;
        let end = ((block + 1) * BLOCK_BYTES).min(self.size);
        // Not longer than the chunk, which is in memory.
        let take = (end - self.at).min(chunk.len() as u64) as usize;
        let head = chunk.split_to(take);
        self.at += take as u64;
        if !self.whole.contains(&block) {
            return None;
        }
        if self.partial.capacity() == 0 {
            self.partial.reserve(BLOCK_BYTES as usize);
        }
        self.partial.extend_from_slice(&head);
        (self.at == end && self.at < self.range.end).then(|| (block, self.partial.split().freeze()))
    }

    /// The last block, when the delivery ends with a whole one; `Err` is the offset of an early end.
    fn finish(self) -> Result<Option<(u64, Bytes)>, u64> {
        if self.at < self.range.end {
            return Err(self.at);
        }
        let last = (self.at.saturating_sub(1)) >> BLOCK_SHIFT;
        Ok((self.whole.contains(&last) && !self.partial.is_empty()).then(|| (last, self.partial.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_all(range: ByteRange, size: u64, chunk: usize) -> Vec<(u64, Vec<u8>)> {
        let content: Vec<u8> = (0..size).map(|i| (i / 1000) as u8).collect();
        let mut cutter = BlockCutter::new(range, size);
        let mut out = Vec::new();
        for piece in content[range.start as usize..range.end as usize].chunks(chunk) {
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                out.extend(cutter.cut(&mut piece));
            }
        }
        out.extend(cutter.finish().unwrap());
        for (block, bytes) in &out {
            let start = (block * BLOCK_BYTES) as usize;
            assert_eq!(bytes[..], content[start..(start + BLOCK_BYTES as usize).min(content.len())]);
        }
        out.into_iter().map(|(block, bytes)| (block, bytes.to_vec())).collect()
    }

    #[test]
    fn only_whole_blocks_are_cut_out_of_a_delivery() {
        let size = 3 * BLOCK_BYTES + 100;
        let blocks = |range, chunk| cut_all(range, size, chunk).iter().map(|one| one.0).collect::<Vec<_>>();
        for chunk in [1 << 20, 1 << 16, 100_003, 262_144] {
            assert_eq!(blocks(ByteRange::new(0, size), chunk), [0, 1, 2, 3]);
            assert_eq!(blocks(ByteRange::new(1, size), chunk), [1, 2, 3]);
            assert_eq!(blocks(ByteRange::new(0, size - 1), chunk), [0, 1, 2]);
            assert_eq!(blocks(ByteRange::new(BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1), chunk), [1]);
            assert_eq!(blocks(ByteRange::new(5, BLOCK_BYTES - 5), chunk), [0u64; 0]);
        }
    }

    #[test]
    fn neighbouring_blocks_join_into_runs_of_at_most_four_mebibytes() {
        let mut flights = InflightBlocks::default();
        let blocks: Vec<u64> = (0..40).chain(50..52).collect();
        let (waits, runs) = flights.join(&blocks);
        assert_eq!(waits.len(), 42);
        let ranges: Vec<_> = runs.iter().map(|run| run.blocks.clone()).collect();
        assert_eq!(ranges, [0..16, 16..32, 32..40, 50..52]);
        let (_, again) = flights.join(&blocks);
        assert!(again.is_empty(), "flights that exist are joined, not started again");
    }
}
