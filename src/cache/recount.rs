//! Count of the files: lists eviction candidates, and replaces the account with the disk use that it finds.
//!
//! A count is exact when no process writes and nothing is added meanwhile. Otherwise the account is at least the disk
//! use, and its doubt states by how much it may be higher. No mount and no read waits for a count.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::eviction_scan::{self, ScanPurpose};
use super::lock;
use super::quota::CacheQuota;
use super::sidecar::BLOCK_BYTES;
use super::usage::{Usage, boot, now};

/// Longest wait for a moment without writers. Bytes that were reserved that long ago are on disk.
const RECOUNT_SETTLE_TIME: Duration = Duration::from_secs(1);
/// Delay between two looks for writers: longer than a block takes to be written.
const QUIET_RETRY_DELAY: Duration = Duration::from_millis(3);
/// Delay of the next count after one during which files were written or removed.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// Number of such counts while the directory is never at rest.
const COUNTS_AGAIN: u32 = 6;

/// Whether a process is writing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WritersSeen {
    None,
    Some,
}

/// The account when a count began.
struct CountStart {
    /// `None` while it is unknown.
    known: Option<Usage>,
    writers: WritersSeen,
}

impl CacheQuota {
    /// Counts in a thread of its own, unless a count is running.
    pub(super) fn start_count(self: &Arc<Self>, purpose: ScanPurpose) {
        let Some(counting) = RunningCount::begin(self) else { return };
        let counter = std::thread::Builder::new().name("cache count".into());
        if let Err(error) = counter.spawn(move || count_until_right(counting, purpose)) {
            // The closure is gone, and the mark of the count with it.
            tracing::debug!(%error, "cannot count the files of the cache");
        }
    }

    /// Counts, and returns whether the directory was at rest meanwhile.
    fn count(self: &Arc<Self>, purpose: ScanPurpose) -> bool {
        let start = self.start_of_count(purpose);
        self.closed.store(false, Ordering::Relaxed);
        let began = Instant::now();
        let census = eviction_scan::count(&self.root);
        let used = census.used;
        let mut list = lock(&self.list);
        list.census = census;
        list.took = began.elapsed();
        list.at = Some(Instant::now());
        drop(list);
        match purpose {
            ScanPurpose::List if start.writers == WritersSeen::Some => true,
            ScanPurpose::List | ScanPurpose::Account => self.settle(&start, used, purpose),
        }
    }

    /// The account at a moment without writers, whose reserved bytes may be on disk or not; after a while, the
    /// account of a while ago: then the bytes reserved by then are on disk.
    fn start_of_count(&self, purpose: ScanPurpose) -> CountStart {
        let look = || {
            let known = self.account.change(|known| (None, known)).ok().flatten();
            let writers = if self.account.is_quiet() { WritersSeen::None } else { WritersSeen::Some };
            CountStart { known, writers }
        };
        let (first, deadline) = (look(), Instant::now() + RECOUNT_SETTLE_TIME);
        if purpose == ScanPurpose::List || first.writers == WritersSeen::None {
            return first;
        }
        while Instant::now() < deadline {
            std::thread::sleep(QUIET_RETRY_DELAY);
            let now = look();
            if now.writers == WritersSeen::None {
                return now;
            }
        }
        first
    }

    /// Replaces the account with the result of a count. `false` when the directory changed meanwhile: the account is
    /// then at least the true usage, and may be higher. A list replaces only an account that is clearly too high, for
    /// example after a process was killed.
    fn settle(&self, start: &CountStart, counted: u64, purpose: ScanPurpose) -> bool {
        let quiet = start.writers == WritersSeen::None;
        let replace = |known: Option<Usage>| {
            let fresh = |used, added, at, doubt| Usage { used, added, counted: at, boot: boot(), doubt };
            match (start.known, known) {
                // Another count was faster, and changes since then belong to that.
                (Some(before), Some(tally)) if before.mark() != tally.mark() => (None, true),
                // The count may lack bytes that were added meanwhile, or include them: they are added again.
                (Some(before), Some(tally)) => {
                    let meanwhile = tally.added.wrapping_sub(before.added);
                    let rested = quiet && tally == before;
                    // Files that were removed meanwhile may have been counted before.
                    let removed = before.used.saturating_add(meanwhile).saturating_sub(tally.used);
                    // A count without writers resolves all doubt that came before it.
                    let resolved = if quiet { before.doubt } else { 0 };
                    // Each count has a mark of its own.
                    let at = now().max(before.counted.saturating_add(1));
                    let doubt = tally.doubt.saturating_sub(resolved);
                    let doubt = doubt.saturating_add(meanwhile).saturating_add(removed);
                    let used = counted.saturating_add(meanwhile);
                    if purpose == ScanPurpose::List && used.saturating_add(BLOCK_BYTES) > tally.used {
                        return (None, true);
                    }
                    (Some(fresh(used, tally.added, at, doubt)), rested)
                }
                (_, None) if purpose == ScanPurpose::List => (None, true),
                (None, Some(_)) => (None, true),
                // Nothing was recorded meanwhile.
                (_, None) => (Some(fresh(counted, 0, now(), if quiet { 0 } else { counted })), false),
            }
        };
        self.account.change(replace).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot record how large the cache is");
            true
        })
    }
}

/// The mark that a count is running, removed however it ends.
struct RunningCount(Arc<CacheQuota>);

impl RunningCount {
    /// `None` when another thread counts.
    fn begin(room: &Arc<CacheQuota>) -> Option<Self> {
        let was = std::mem::replace(&mut lock(&room.list).counting, true);
        (!was).then(|| Self(Arc::clone(room)))
    }
}

impl Drop for RunningCount {
    fn drop(&mut self) {
        lock(&self.0.list).counting = false;
        self.0.counted.notify_all();
    }
}

/// Counts, and repeats a little later as long as files were written or removed meanwhile: only a directory at rest
/// gives the exact number. Ends with the room.
fn count_until_right(counting: RunningCount, purpose: ScanPurpose) {
    let room = Arc::downgrade(&counting.0);
    let rested = counting.0.count(purpose);
    drop(counting);
    let trim = |room: &Arc<CacheQuota>| {
        if purpose == ScanPurpose::Account {
            room.trim();
        }
    };
    if let Some(room) = room.upgrade() {
        trim(&room);
    }
    let mut again = if rested { 0 } else { COUNTS_AGAIN };
    while again > 0 {
        std::thread::sleep(COUNT_AGAIN);
        let Some(counting) = room.upgrade().and_then(|room| RunningCount::begin(&room)) else { return };
        again = if counting.0.count(purpose) { 0 } else { again - 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::super::SizeLimit;
    use super::*;

    /// A removal that the count may have missed leaves doubt, and the count is repeated.
    #[test]
    fn a_removal_beside_a_count_leaves_doubt() {
        for freed in [0, 4096] {
            let dir = tempfile::tempdir().unwrap();
            let room = CacheQuota::new(dir.path(), SizeLimit::Bytes(1 << 30), true);
            let settled = Instant::now() + std::time::Duration::from_secs(120);
            while room.used().is_none() && Instant::now() < settled {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            room.charge(1 << 20);
            let known = || room.account.change(|known| (None, known)).unwrap().unwrap();
            let (start, counted) = (room.start_of_count(ScanPurpose::Account), known().used);
            let removal = room.begin_removal(8192);
            let unfinished = match freed {
                0 => Some(removal),
                _ => {
                    removal.finish(freed);
                    None
                }
            };
            assert!(!room.settle(&start, counted, ScanPurpose::Account), "{freed} bytes");
            assert_eq!((known().used, known().doubt), (counted, if freed == 0 { 8192 } else { freed }));
            drop(unfinished);
        }
    }

    #[test]
    fn a_count_that_panics_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let room = CacheQuota::new(dir.path(), SizeLimit::None, true);
        let count = RunningCount::begin(&room).unwrap();
        assert!(RunningCount::begin(&room).is_none());
        let ended = std::thread::spawn(move || {
            let _count = count;
            panic!("as a directory that cannot be counted does");
        });
        assert!(ended.join().is_err());
        assert!(RunningCount::begin(&room).is_some());
    }
}
