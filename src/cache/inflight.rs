//! Single-flight table: at most one fetch per missing block, over the threads of this process.
//!
//! A read joins or starts a flight per block. Neighbouring new flights become one run, which one task fetches.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::watch;

use crate::io::{FaultClass, ReadError};

/// Blocks of one fetch that readers wait for: 4 MiB. Readahead fetches longer ranges.
const RUN: u64 = 16;

/// Longest demand that readahead yields to, in blocks: a read of the kernel is at most 1 MiB. Longer ones are those of a
/// pass over a layer, which would hold readahead up until its end.
const MAX_READER_BLOCKS: u64 = 5;

/// The bytes of a block, or the error of all its waiters.
pub(super) type FetchOutcome = Result<Bytes, ReadError>;

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
pub(super) enum BlockClaim {
    /// The run is waiting for another process.
    Wanted,
    /// The run holds the lock.
    Held,
    /// No run owns the block: a wide delivery brings it.
    Carried,
}

/// Neighbouring blocks whose flights one task owns.
pub(super) struct FetchRun {
    pub(super) owner: u64,
    pub(super) blocks: Range<u64>,
    /// End of the blocks that a reader waits for.
    pub(super) demanded: u64,
}

impl FetchRun {
    /// Whether a reader of a mount may wait for it.
    pub(super) fn is_short(&self) -> bool {
        self.demanded - self.blocks.start <= MAX_READER_BLOCKS
    }
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
                                runs.push(FetchRun {
                                    owner: self.last_owner,
                                    blocks: block..block,
                                    demanded: block,
                                });
                                let last = runs.len() - 1;
                                &mut runs[last]
                            }
                        };
                        run.blocks.end = block + 1;
                        run.demanded = block + 1;
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
    pub(super) fn waiters(&self) -> usize {
        self.map.values().map(|flight| flight.answer.receiver_count()).sum()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Adds those of `ahead` (ascending) to the end of `run` that follow it without a gap and are not in flight: one
    /// request brings the demanded blocks first. Returns the end of the run.
    pub(super) fn extend(&mut self, run: &mut FetchRun, ahead: &[u64]) -> u64 {
        for &block in ahead {
            if block != run.blocks.end || self.is_coming(block) {
                break;
            }
            run.blocks.end = block + 1;
            self.take_off(block, run.owner, BlockClaim::Wanted);
        }
        run.blocks.end
    }

    /// The first of `blocks` that is not in flight.
    pub(super) fn first_unrequested(&self, blocks: &[u64]) -> Option<u64> {
        blocks.iter().copied().find(|&block| !self.is_coming(block))
    }

    fn is_coming(&self, block: u64) -> bool {
        self.map.contains_key(&block) || self.ahead.iter().any(|(_, coming)| coming.contains(&block))
    }

    /// Gives up the flights of `owner`, unless a reader waits for one of them or `owner` holds locks on blocks other than
    /// `blocks`; returns whether it did. Calls `release` before, because the next reader may claim the blocks again.
    pub(super) fn give_up_unwanted(
        &mut self,
        owner: u64,
        blocks: &Range<u64>,
        release: impl FnOnce(),
    ) -> bool {
        let is_needed = |(block, flight): (&u64, &InflightBlock)| {
            let is_locked_elsewhere = flight.claim == BlockClaim::Held && !blocks.contains(block);
            flight.owner == owner && (flight.answer.receiver_count() > 0 || is_locked_elsewhere)
        };
        if self.map.iter().any(is_needed) {
            return false;
        }
        release();
        self.map.retain(|_, flight| flight.owner != owner);
        true
    }

    /// The first run among `blocks` (ascending) that is not in flight yet; the caller must start it now. Removes the
    /// examined blocks from the front of `blocks`.
    pub(super) fn start(&mut self, blocks: &mut &[u64]) -> Option<FetchRun> {
        let mut run: Option<FetchRun> = None;
        while let Some((&block, rest)) = blocks.split_first() {
            let coming = self.is_coming(block);
            match &mut run {
                Some(run) if coming || run.blocks.end != block => break,
                Some(run) => run.blocks.end = block + 1,
                None if coming => {}
                None => {
                    self.last_owner += 1;
                    let (owner, blocks) = (self.last_owner, block..block + 1);
                    run = Some(FetchRun { owner, blocks, demanded: block });
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

    /// Registers a delivery that brings the blocks `whole`, and returns the number of its owner.
    pub(super) fn announce(&mut self, whole: Range<u64>) -> u64 {
        self.last_owner += 1;
        let owner = self.last_owner;
        self.ahead.push((owner, whole));
        owner
    }

    /// The claim on `block`; `None` while it is not in flight.
    pub(super) fn claim(&self, block: u64) -> Option<BlockClaim> {
        self.map.get(&block).map(|flight| flight.claim)
    }

    /// Records that the run of `block` holds its lock.
    pub(super) fn set_held(&mut self, block: u64) {
        if let Some(flight) = self.map.get_mut(&block) {
            flight.claim = BlockClaim::Held;
        }
    }

    /// Adds a flight of `block`.
    pub(super) fn take_off(
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
    pub(super) fn crash(&mut self, owner: u64, blocks: &Range<u64>, error: &ReadError) {
        self.ahead.retain(|(other, _)| *other != owner);
        self.map.retain(|block, flight| {
            let fails = flight.owner == owner && blocks.contains(block);
            if fails {
                flight.answer.send_replace(Some(Err(error.clone())));
            }
            !fails
        });
    }

    pub(super) fn is_owned(&self, owner: u64, block: u64) -> bool {
        self.map.get(&block).is_some_and(|flight| flight.owner == owner)
    }
}

pub(super) fn abandoned() -> ReadError {
    ReadError::new(FaultClass::Io, "the fetch of a block was abandoned")
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_run_is_extended_by_the_blocks_that_follow_it_and_are_not_in_flight() {
        let mut flights = InflightBlocks::default();
        let (_other, _) = flights.join(&[7]);
        let (_waits, mut runs) = flights.join(&[2, 3]);
        assert_eq!(flights.extend(&mut runs[0], &[4, 5, 6, 7, 8]), 7);
        assert_eq!((runs[0].blocks.clone(), runs[0].demanded), (2..7, 4));
        let (_joined, again) = flights.join(&[5]);
        assert!(again.is_empty());
        // Without a gap only.
        let (_waits, mut runs) = flights.join(&[20]);
        assert_eq!(flights.extend(&mut runs[0], &[22, 23]), 21);
    }

    #[test]
    fn flights_are_given_up_unless_a_reader_waits_for_one_of_them() {
        let mut flights = InflightBlocks::default();
        let run = flights.start(&mut &[0, 1, 2][..]).unwrap();
        let (waits, _) = flights.join(&[1]);
        assert!(!flights.give_up_unwanted(run.owner, &run.blocks, || {}));
        assert!(flights.is_owned(run.owner, 2));
        drop(waits);
        let (_other, _) = flights.join(&[9]);
        flights.set_held(2);
        assert!(!flights.give_up_unwanted(run.owner, &(0..2), || {}), "its lock would outlive the flight");
        assert!(flights.give_up_unwanted(run.owner, &run.blocks, || {}));
        assert!(!flights.is_owned(run.owner, 2));
        assert!(flights.claim(9).is_some(), "the block of another owner");
        let (_waits, runs) = flights.join(&[2]);
        assert_eq!(runs.len(), 1, "the next reader fetches it");
    }
}
