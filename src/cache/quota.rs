//! Cache size limit: reserves space before each write and evicts least recently used content.
//!
//! A reservation adds to the shared account, or evicts until the limit allows that. Whole contents that no process
//! has open are evicted first, then blocks of contents that this process alone has open. Small files are evicted only
//! for small files. Without room the caller does not store, so no read fails and no mount waits; a separate thread
//! counts the files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::block_data::PAGE;
use super::descriptors::{is_out_of_files, most_open};
use super::evictable::EvictableSlot;
use super::eviction_scan::{self, EvictionScan, ScanPurpose, Victim, VictimKind};
use super::limit::DiskSpace;
use super::remove::{RemoveOutcome, occupied, remove_if};
use super::usage::{CountMark, SpaceRemoval, SpaceReservation, Usage, UsageFile, boot, now};
use super::{SizeLimit, lock};
use crate::metrics;

/// Bytes evicted at a time, so that not every block pays for the search.
const EVICTION_BATCH_BYTES: u64 = 1 << 20;
/// Tries of a caller while other writers take the room that it made.
const MAX_ADMISSION_ATTEMPTS: u32 = 16;
/// Age at which the files are counted anew, which removes the leftovers of killed processes from the account.
const COUNT_AGE: Duration = Duration::from_secs(3600);
/// The same age while there is no room and nothing to evict.
const TIGHT_COUNT_AGE: Duration = Duration::from_secs(60);
/// Longest wait of a reader's block for a count that could find something to evict.
const COUNT_PATIENCE: Duration = Duration::from_millis(200);
/// An account that may exceed the files by more than one part in this many is counted when the directory is opened.
const MAX_DOUBT_SHARE: u64 = 64;
/// Validity of a list of eviction candidates.
const LIST_AGE: Duration = Duration::from_secs(5);
/// Counts take at most one part in this many of the time.
const COUNT_SHARE: u32 = 20;
/// Time without readahead after a refusal.
const PRESSURE_DURATION: Duration = Duration::from_secs(1);

/// Purpose of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WritePriority {
    /// A block, which can be fetched again.
    Block,
    /// A document, an index, an offer or a trace: small, and worth more than its bytes.
    Small,
}

/// The space of one directory, as one process sees it.
pub(super) struct CacheQuota {
    pub(super) root: PathBuf,
    limit: SizeLimit,
    pub(super) account: UsageFile,
    /// The contents of this process, whether their files are open or not.
    slots: Mutex<Vec<Weak<dyn EvictableSlot>>>,
    /// Number of open pairs of files.
    open: AtomicUsize,
    /// Upper bound of `open`.
    most_open: usize,
    /// Guards: one thread at a time evicts; the others use the space that it freed.
    evicting: Mutex<()>,
    pub(super) list: Mutex<VictimList>,
    /// Wakes the waiters for the end of a count.
    pub(super) counted: Condvar,
    /// Set when content was closed since the last count: it may be evicted now.
    pub(super) closed: AtomicBool,
    /// Counts uses, to find the least recently used content.
    clock: AtomicU64,
    /// Milliseconds after `start` until which there is no room.
    tight: AtomicU64,
    start: Instant,
    evicted: AtomicU64,
}

/// Result of the last count.
#[derive(Default)]
pub(super) struct VictimList {
    pub(super) census: EvictionScan,
    pub(super) at: Option<Instant>,
    pub(super) took: Duration,
    pub(super) counting: bool,
}

enum QuotaAnswer {
    /// The bytes are in the account, which starts from this count.
    Granted(CountMark),
    Unknown,
    Over(u64),
}

impl CacheQuota {
    /// `is_new`: the directory did not exist before, so its count is quick.
    pub(super) fn new(root: &Path, limit: SizeLimit, is_new: bool) -> Arc<Self> {
        let room = Arc::new(Self {
            root: root.to_owned(),
            limit,
            account: UsageFile::new(root),
            slots: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: most_open(),
            evicting: Mutex::default(),
            list: Mutex::default(),
            counted: Condvar::new(),
            closed: AtomicBool::new(false),
            clock: AtomicU64::new(1),
            tight: AtomicU64::new(0),
            start: Instant::now(),
            evicted: AtomicU64::new(0),
        });
        let begin = |known: Option<Usage>| match known {
            None if is_new => {
                // The account is a file itself, of one page.
                let used = eviction_scan::count(root).used + PAGE as u64;
                (Some(Usage { used, counted: now(), boot: boot(), ..Usage::default() }), false)
            }
            None => (None, true),
            Some(tally) => {
                let is_stale = tally.boot != boot() || is_older(&tally, COUNT_AGE);
                (None, is_stale || tally.doubt > tally.used / MAX_DOUBT_SHARE)
            }
        };
        // A disk that takes no file takes no blocks either.
        if room.account.change(begin).unwrap_or(false) && limit != SizeLimit::None {
            room.start_count(ScanPurpose::Account);
        }
        room
    }

    /// Registers content: from now on its blocks can be evicted, and its files closed.
    pub(super) fn register<S: EvictableSlot + 'static>(&self, slot: &Arc<S>) {
        let slot: Weak<S> = Arc::downgrade(slot);
        let mut slots = lock(&self.slots);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(slot);
    }

    /// Records that a pair of files was opened.
    pub(super) fn note_opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a pair of files was closed.
    pub(super) fn note_closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether there are descriptors for one pair more.
    pub(super) fn has_descriptors(&self) -> bool {
        self.open.load(Ordering::Relaxed) < self.most_open
    }

    /// Closes files until there are descriptors for one pair more; `false` when all open ones are in use.
    pub(super) fn spare_descriptors(&self) -> bool {
        self.has_descriptors() || self.close_idle() > 0
    }

    /// Closes the files of the least recently used eighth of the open and idle contents. Returns the number of closed
    /// pairs.
    pub(super) fn close_idle(&self) -> usize {
        let mut open = self.open_slots();
        let most = open.len().div_ceil(8);
        open.drain(..).map(|(_, slot)| slot).filter(|slot| slot.close_idle()).take(most).count()
    }

    /// Contents with open files, least recently used first.
    fn open_slots(&self) -> Vec<(u64, Arc<dyn EvictableSlot>)> {
        let slots: Vec<_> = lock(&self.slots).iter().filter_map(Weak::upgrade).collect();
        let used = |slot: Arc<dyn EvictableSlot>| Some((slot.open_file()?.last_use(), slot));
        let mut open: Vec<_> = slots.into_iter().filter_map(used).collect();
        open.sort_by_key(|(used, _)| *used);
        open
    }

    /// Longest readahead of one reader, in bytes: with eight readers the limit still holds the blocks not read yet.
    pub(super) fn reach(&self) -> u64 {
        if self.limit == SizeLimit::None {
            return u64::MAX;
        }
        // A failed query of the disk is no reason to fetch less.
        let Ok(disk) = nix::sys::statvfs::statvfs(&self.root).map(|found| DiskSpace::from(&found)) else {
            return u64::MAX;
        };
        self.limit.most(self.used().unwrap_or(0), disk).min(disk.size) / 8
    }

    /// Largest size of the directory in bytes, in the present state of the disk; `None` while unknown.
    pub(super) fn capacity(&self) -> Option<u64> {
        let disk = nix::sys::statvfs::statvfs(&self.root).map(|found| DiskSpace::from(&found)).ok()?;
        Some(self.limit.capacity(self.used()?, disk))
    }

    /// A number greater than that of every earlier use.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether blocks were refused in the last second.
    pub(super) fn is_tight(&self) -> bool {
        let tight = self.tight.load(Ordering::Relaxed);
        tight != 0 && tight > self.elapsed()
    }

    /// Bytes that this process has evicted to make room.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Disk bytes taken according to the account; `None` while unknown.
    pub(super) fn used(&self) -> Option<u64> {
        self.account.change(|known| (None, known.map(|tally| tally.used))).ok().flatten()
    }

    /// Adds `bytes`, which are about to be written, to the account, and evicts for them if necessary. `None`: do not
    /// write them.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64, need: WritePriority) -> Option<SpaceReservation<'_>> {
        for _ in 0..MAX_ADMISSION_ATTEMPTS {
            let writer = self.account.begin_write();
            match self.try_reserve(bytes) {
                QuotaAnswer::Granted(mark) => {
                    self.tight.store(0, Ordering::Relaxed);
                    return Some(SpaceReservation::new(writer, bytes, mark));
                }
                // Small files are written all the same: the count, which is on its way, finds them.
                QuotaAnswer::Unknown if need == WritePriority::Small => {
                    self.start_count(ScanPurpose::Account);
                    return Some(SpaceReservation::new(writer, bytes, CountMark::default()));
                }
                QuotaAnswer::Unknown => {
                    self.start_count(ScanPurpose::Account);
                    break;
                }
                QuotaAnswer::Over(excess) => {
                    // An eviction writes nothing, and a count beside it finds no writer.
                    drop(writer);
                    if self.evict(excess, need) == 0 {
                        self.recount_if_tight();
                        break;
                    }
                }
            }
        }
        self.refuse();
        None
    }

    /// Begins the removal of about `expected` bytes.
    pub(super) fn begin_removal(&self, expected: u64) -> SpaceRemoval<'_> {
        self.account.begin_removal(expected)
    }

    fn try_reserve(&self, bytes: u64) -> QuotaAnswer {
        let disk = match self.limit {
            SizeLimit::None => Ok(DiskSpace { size: 0, free: 0 }),
            _ => nix::sys::statvfs::statvfs(&self.root).map(|found| DiskSpace::from(&found)),
        };
        let disk = match disk {
            Ok(disk) => disk,
            Err(error) => {
                tracing::debug!(%error, "cannot read the free space of the cache's disk");
                return QuotaAnswer::Unknown;
            }
        };
        let added = self.account.change(|known| match known {
            None if self.limit == SizeLimit::None => (None, QuotaAnswer::Granted(CountMark::default())),
            None => (None, QuotaAnswer::Unknown),
            Some(tally) => match self.limit.excess(tally.used, bytes, disk) {
                0 => {
                    let used = tally.used.saturating_add(bytes);
                    let added = tally.added.wrapping_add(bytes);
                    let doubt = tally.doubt.saturating_add(bytes);
                    (Some(Usage { used, added, doubt, ..tally }), QuotaAnswer::Granted(tally.mark()))
                }
                excess => (None, QuotaAnswer::Over(excess)),
            },
        });
        added.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot record bytes written to the cache");
            match self.limit {
                // Eviction does not free descriptors.
                _ if is_out_of_files(&error) => QuotaAnswer::Unknown,
                SizeLimit::None => QuotaAnswer::Granted(CountMark::default()),
                // On a full disk the account itself may find no room.
                _ => QuotaAnswer::Over(bytes),
            }
        })
    }

    /// Adds bytes that are written in any case.
    pub(super) fn charge(&self, bytes: u64) {
        self.account.charge(bytes);
    }

    /// Makes room for `bytes` on a full disk, whatever the account holds. `true` when another try is worthwhile.
    pub(super) fn relieve(self: &Arc<Self>, bytes: u64, need: WritePriority) -> bool {
        self.evict(bytes, need) > 0
    }

    fn refuse(&self) {
        let until = self.elapsed() + PRESSURE_DURATION.as_millis() as u64;
        self.tight.store(until, Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        // Milliseconds of a process's life fit u64.
        self.start.elapsed().as_millis() as u64
    }

    /// Evicts `excess` bytes and some more, and returns the bytes freed; fewer when nothing evictable is left.
    fn evict(self: &Arc<Self>, excess: u64, need: WritePriority) -> u64 {
        let waited = self.evicted();
        let _evicting = lock(&self.evicting);
        let meanwhile = self.evicted() - waited;
        if meanwhile > 0 {
            // Another thread made room while we waited for our turn.
            return meanwhile;
        }
        let want = excess.max(EVICTION_BATCH_BYTES);
        // Whole contents that no process has open. One that was closed since the last count is not in the list.
        let stale = || if self.closed.load(Ordering::Relaxed) { Duration::ZERO } else { LIST_AGE };
        let mut freed = self.evict_listed(want, |census| &mut census.contents, stale);
        if freed < excess {
            freed += self.evict_blocks(want - freed);
        }
        if freed < excess && need == WritePriority::Small {
            freed += self.evict_listed(excess - freed, |census| &mut census.small, || Duration::ZERO);
        }
        freed
    }

    /// Removes the candidates in the list `of` the count, least recently used first. An empty list is made anew once,
    /// if it is older than `stale` returns.
    fn evict_listed(
        self: &Arc<Self>,
        want: u64,
        of: fn(&mut EvictionScan) -> &mut Vec<Victim>,
        stale: impl Fn() -> Duration,
    ) -> u64 {
        let mut freed = 0;
        let mut looked = false;
        while freed < want {
            let next = of(&mut lock(&self.list).census).pop();
            match next {
                Some(candidate) => freed += self.remove(&candidate),
                None if !looked => {
                    looked = true;
                    self.list_anew(stale());
                }
                None => break,
            }
        }
        freed
    }

    /// Evicts blocks of contents that this process alone has open, least recently used content first. The first round
    /// spares blocks that were read since the last search.
    fn evict_blocks(&self, want: u64) -> u64 {
        let open: Vec<_> = self.open_slots().into_iter().filter_map(|(_, slot)| slot.open_file()).collect();
        let mut freed = 0;
        for spare_recent in [true, false] {
            for pair in &open {
                if freed >= want {
                    return freed;
                }
                let removal = self.account.begin_removal(want - freed);
                let here = pair.evict(want - freed, spare_recent);
                self.note_evicted(here, removal);
                freed += here;
            }
        }
        freed
    }

    /// Removes one candidate if it was not used since it was listed; returns the bytes freed.
    fn remove(&self, candidate: &Victim) -> u64 {
        let unused = |found: &std::fs::Metadata| found.modified().is_ok_and(|used| used <= candidate.used);
        let removal = self.account.begin_removal(candidate.on_disk());
        let freed = match &candidate.what {
            // A sidecar that had to be made for lone data is newer, and its time means nothing.
            VictimKind::Content(files) => match remove_if(files, |found| found.len() == 0 || unused(found)) {
                Ok(RemoveOutcome::Gone(bytes)) => bytes,
                Ok(RemoveOutcome::InUse | RemoveOutcome::Absent) => 0,
                Err(error) => {
                    tracing::debug!(%error, "cannot remove content from the cache");
                    0
                }
            },
            VictimKind::Small(path) => match std::fs::symlink_metadata(path) {
                Ok(found) if unused(&found) && std::fs::remove_file(path).is_ok() => occupied(&found),
                Ok(_) | Err(_) => 0,
            },
        };
        self.note_evicted(freed, removal);
        freed
    }

    fn note_evicted(&self, bytes: u64, removal: SpaceRemoval<'_>) {
        removal.finish(bytes);
        if bytes > 0 {
            self.evicted.fetch_add(bytes, Ordering::Relaxed);
            metrics::EVICTIONS.add(1);
            metrics::EVICTED_BYTES.add(bytes);
        }
    }

    /// Lists the candidates again, if the list is older than `age`; waits a moment for it.
    fn list_anew(self: &Arc<Self>, age: Duration) {
        let mut list = lock(&self.list);
        let due = list.at.is_none_or(|at| at.elapsed() > age.max(list.took * COUNT_SHARE));
        if !due {
            return;
        }
        let before = list.at;
        drop(list);
        self.start_count(ScanPurpose::List);
        list = lock(&self.list);
        let patience = Instant::now() + COUNT_PATIENCE;
        while list.at == before && list.counting {
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            list = self.counted.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing can be evicted, and still there is no room: the account may be wrong.
    fn recount_if_tight(self: &Arc<Self>) {
        let old = |known: Option<Usage>| (None, known.is_none_or(|tally| is_older(&tally, TIGHT_COUNT_AGE)));
        if self.account.change(old).unwrap_or(false) {
            self.start_count(ScanPurpose::Account);
        }
    }

    /// Evicts the excess over the limit, which may be lower than that of earlier writers.
    pub(super) fn trim(self: &Arc<Self>) {
        for _ in 0..MAX_ADMISSION_ATTEMPTS {
            match self.try_reserve(0) {
                QuotaAnswer::Over(excess) if self.evict(excess, WritePriority::Small) > 0 => {}
                QuotaAnswer::Granted(_) | QuotaAnswer::Unknown | QuotaAnswer::Over(_) => return,
            }
        }
    }
}

/// Whether the last count is older than `age`, or lies in the future.
fn is_older(tally: &Usage, age: Duration) -> bool {
    now().checked_sub(tally.counted).is_none_or(|seconds| seconds > age.as_secs())
}
