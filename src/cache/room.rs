//! Room for what is about to be written: nothing is stored that the limit does not allow, and what was not used for longest
//! goes first.
//!
//! Nothing here fails a read or makes a mount wait: where no room can be made the caller does without storing, and the files are
//! counted by a thread of their own. The idea: add to the shared account, or evict until that is possible. Whole contents that no
//! process has open go first, then blocks of what this process alone has open, and small files only for small files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::account::{Account, Tally};
use super::census::{self, Candidate, Census, What};
use super::limit::Disk;
use super::pair::Pair;
use super::remove::{Removed, occupied, remove_if};
use super::{Limit, lock};
use crate::meter;

/// Evicted at a time, so that not every block pays for looking around.
const BATCH: u64 = 1 << 20;
/// How often a caller tries again when others take the room that it made.
const ROUNDS: u32 = 16;
/// The files are counted anew when the last count is this old: what killed processes left in the account goes by that.
const COUNT_AGE: Duration = Duration::from_secs(3600);
/// The same when there is no room and nothing to evict.
const TIGHT_COUNT_AGE: Duration = Duration::from_secs(60);
/// How long a reader's block may wait for a count that could find something to evict.
const COUNT_PATIENCE: Duration = Duration::from_millis(200);
/// A count that is to replace the account begins this long after it read the account: what was added before that is on disk.
const SETTLE: Duration = Duration::from_secs(1);
/// A list of what can go is good for this long.
const LIST_AGE: Duration = Duration::from_secs(5);
/// Counting takes at most this part of the time.
const COUNT_SHARE: u32 = 20;
/// After a refusal nothing is fetched ahead of readers for this long.
const TIGHT: Duration = Duration::from_secs(1);

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A block, which can be fetched again.
    Block,
    /// A document, an index, an offer or a trace: small, and worth more than its bytes.
    Small,
}

/// The room of one directory, as one process sees it.
pub(super) struct Room {
    root: PathBuf,
    limit: Limit,
    account: Account,
    /// What this process has open.
    open: Mutex<Vec<Weak<Pair>>>,
    /// Guards: one thread at a time evicts; the others find what it made room for.
    evicting: Mutex<()>,
    list: Mutex<List>,
    /// Tells those who wait for it that a count ended.
    counted: Condvar,
    /// Content was closed since the last count: it may go now.
    closed: AtomicBool,
    /// Counts uses, to tell which content was not used for longest.
    clock: AtomicU64,
    /// Milliseconds after `start` until which there is no room.
    tight: AtomicU64,
    start: Instant,
    evicted: AtomicU64,
}

/// What the last count found.
#[derive(Default)]
struct List {
    census: Census,
    at: Option<Instant>,
    took: Duration,
    counting: bool,
}

enum Answer {
    Granted,
    Unknown,
    Over(u64),
}

impl Room {
    /// `is_new` says that there was no directory before, and so nothing to count.
    pub(super) fn new(root: &Path, limit: Limit, is_new: bool) -> Arc<Self> {
        let room = Arc::new(Self {
            root: root.to_owned(),
            limit,
            account: Account::new(root),
            open: Mutex::default(),
            evicting: Mutex::default(),
            list: Mutex::default(),
            counted: Condvar::new(),
            closed: AtomicBool::new(false),
            clock: AtomicU64::new(1),
            tight: AtomicU64::new(0),
            start: Instant::now(),
            evicted: AtomicU64::new(0),
        });
        let begin = |known: Option<Tally>| match known {
            None if is_new => (Some(Tally { counted: now(), boot: boot(), ..Tally::default() }), false),
            known => (None, known.is_none_or(|tally| tally.boot != boot() || is_older(&tally, COUNT_AGE))),
        };
        // A disk that takes no file takes no blocks either.
        if room.account.change(begin).unwrap_or(false) && limit != Limit::None {
            room.start_count(Purpose::Account);
        }
        room
    }

    /// From now on blocks of `pair` can be evicted.
    pub(super) fn register(&self, pair: &Arc<Pair>) {
        let mut open = lock(&self.open);
        open.retain(|pair| pair.strong_count() > 0);
        open.push(Arc::downgrade(pair));
    }

    /// Some content was closed.
    pub(super) fn note_closed(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// How far ahead of one reader blocks may be fetched: with eight readers the limit still holds what was not read yet.
    pub(super) fn reach(&self) -> u64 {
        if self.limit == Limit::None {
            return u64::MAX;
        }
        // A disk that cannot be asked is no reason to fetch less.
        let Ok(disk) = nix::sys::statvfs::statvfs(&self.root).map(|found| Disk::from(&found)) else {
            return u64::MAX;
        };
        self.limit.most(self.used().unwrap_or(0), disk).min(disk.size) / 8
    }

    /// A number greater than that of every earlier use.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether blocks were refused just now.
    pub(super) fn is_tight(&self) -> bool {
        let tight = self.tight.load(Ordering::Relaxed);
        tight != 0 && tight > self.elapsed()
    }

    /// How many bytes this process has taken away to make room.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// How many bytes of the disk the account says are taken; `None` while that is not known.
    pub(super) fn used(&self) -> Option<u64> {
        self.account.change(|known| (None, known.map(|tally| tally.used))).ok().flatten()
    }

    /// Adds `bytes`, which are about to be written, to the account, after making room for them if need be. `false`: do without
    /// writing them.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64, need: Need) -> bool {
        for _ in 0..ROUNDS {
            match self.try_reserve(bytes) {
                Answer::Granted => {
                    self.tight.store(0, Ordering::Relaxed);
                    return true;
                }
                // Small files are written all the same: the count, which is on its way, finds them.
                Answer::Unknown => {
                    self.start_count(Purpose::Account);
                    return need == Need::Small || self.refuse();
                }
                Answer::Over(excess) => {
                    if self.evict(excess, need) == 0 {
                        self.recount_if_tight();
                        return self.refuse();
                    }
                }
            }
        }
        self.refuse()
    }

    fn try_reserve(&self, bytes: u64) -> Answer {
        let disk = match self.limit {
            Limit::None => Ok(Disk { size: 0, free: 0 }),
            _ => nix::sys::statvfs::statvfs(&self.root).map(|found| Disk::from(&found)),
        };
        let disk = match disk {
            Ok(disk) => disk,
            Err(error) => {
                tracing::debug!(%error, "cannot ask how full the disk of the cache is");
                return Answer::Unknown;
            }
        };
        let added = self.account.change(|known| match known {
            None if self.limit == Limit::None => (None, Answer::Granted),
            None => (None, Answer::Unknown),
            Some(tally) => match self.limit.excess(tally.used, bytes, disk) {
                0 => {
                    let used = tally.used.saturating_add(bytes);
                    let added = tally.added.wrapping_add(bytes);
                    (Some(Tally { used, added, ..tally }), Answer::Granted)
                }
                excess => (None, Answer::Over(excess)),
            },
        });
        added.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot note what is written to the cache");
            match self.limit {
                Limit::None => Answer::Granted,
                // On a full disk the account itself may find no room.
                _ => Answer::Over(bytes),
            }
        })
    }

    /// Adds what is written in any case.
    pub(super) fn charge(&self, bytes: u64) {
        let add = |known: Option<Tally>| {
            let more = |tally: Tally| Tally {
                used: tally.used.saturating_add(bytes),
                added: tally.added.wrapping_add(bytes),
                ..tally
            };
            (known.map(more), ())
        };
        if let Err(error) = self.account.change(add) {
            tracing::debug!(%error, "cannot note what is written to the cache");
        }
    }

    /// Notes that reserved bytes were not written, or that something was removed.
    pub(super) fn give_back(&self, bytes: u64) {
        self.account.give_back(bytes);
    }

    /// The disk is full, whatever the account says: makes room for `bytes`. `true` when it is worth trying again.
    pub(super) fn relieve(self: &Arc<Self>, bytes: u64, need: Need) -> bool {
        self.evict(bytes, need) > 0
    }

    fn refuse(&self) -> bool {
        let until = self.elapsed() + TIGHT.as_millis() as u64;
        self.tight.store(until, Ordering::Relaxed);
        false
    }

    fn elapsed(&self) -> u64 {
        // Milliseconds of a process's life fit u64.
        self.start.elapsed().as_millis() as u64
    }

    /// Takes away `excess` bytes and some more, and says how many it were; fewer when nothing is left that may go.
    fn evict(self: &Arc<Self>, excess: u64, need: Need) -> u64 {
        let waited = self.evicted();
        let _evicting = lock(&self.evicting);
        let meanwhile = self.evicted() - waited;
        if meanwhile > 0 {
            // Another thread made room while we waited for our turn.
            return meanwhile;
        }
        let want = excess.max(BATCH);
        // Whole contents that no process has open. One that was closed since the last count is not in the list.
        let stale = || if self.closed.load(Ordering::Relaxed) { Duration::ZERO } else { LIST_AGE };
        let mut freed = self.evict_listed(want, |census| &mut census.contents, stale);
        if freed < excess {
            freed += self.evict_blocks(want - freed);
        }
        if freed < excess && need == Need::Small {
            freed += self.evict_listed(excess - freed, |census| &mut census.small, || Duration::ZERO);
        }
        freed
    }

    /// Removes what is listed `of` the count, what was not used for longest first. An empty list is made anew once, if it is older
    /// than `stale` says.
    fn evict_listed(
        self: &Arc<Self>,
        want: u64,
        of: fn(&mut Census) -> &mut Vec<Candidate>,
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

    /// Punches blocks out of contents that this process alone has open: first blocks that nobody read since somebody last looked
    /// for one to evict, beginning with the content that was not used for longest.
    fn evict_blocks(&self, want: u64) -> u64 {
        let mut open: Vec<Arc<Pair>> = lock(&self.open).iter().filter_map(Weak::upgrade).collect();
        open.sort_by_cached_key(|pair| pair.last_use());
        let mut freed = 0;
        for spare_recent in [true, false] {
            for pair in &open {
                if freed >= want {
                    return freed;
                }
                let here = pair.evict(want - freed, spare_recent);
                self.note_evicted(here);
                freed += here;
            }
        }
        freed
    }

    /// Removes one candidate if it was not used since it was listed; says how many bytes went.
    fn remove(&self, candidate: &Candidate) -> u64 {
        let unused = |found: &std::fs::Metadata| found.modified().is_ok_and(|used| used <= candidate.used);
        let freed = match &candidate.what {
            // A sidecar that had to be made for lone data is newer, and says nothing.
            What::Content(files) => match remove_if(files, |found| found.len() == 0 || unused(found)) {
                Ok(Removed::Gone(bytes)) => bytes,
                Ok(Removed::InUse | Removed::Absent) => 0,
                Err(error) => {
                    tracing::debug!(%error, "cannot remove content from the cache");
                    0
                }
            },
            What::Small(path) => match std::fs::symlink_metadata(path) {
                Ok(found) if unused(&found) && std::fs::remove_file(path).is_ok() => occupied(&found),
                Ok(_) | Err(_) => 0,
            },
        };
        self.note_evicted(freed);
        freed
    }

    fn note_evicted(&self, bytes: u64) {
        if bytes > 0 {
            self.give_back(bytes);
            self.evicted.fetch_add(bytes, Ordering::Relaxed);
            meter::EVICTIONS.add(1);
            meter::EVICTED_BYTES.add(bytes);
        }
    }

    /// Lists again what can go, if the list is older than `age`; waits a moment for it.
    fn list_anew(self: &Arc<Self>, age: Duration) {
        let mut list = lock(&self.list);
        let due = list.at.is_none_or(|at| at.elapsed() > age.max(list.took * COUNT_SHARE));
        if !due {
            return;
        }
        let before = list.at;
        drop(list);
        self.start_count(Purpose::List);
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

    /// Nothing can go, and yet there is no room: perhaps the account is wrong.
    fn recount_if_tight(self: &Arc<Self>) {
        let old = |known: Option<Tally>| (None, known.is_none_or(|tally| is_older(&tally, TIGHT_COUNT_AGE)));
        if self.account.change(old).unwrap_or(false) {
            self.start_count(Purpose::Account);
        }
    }

    /// Counts in a thread of its own, unless that is going on.
    fn start_count(self: &Arc<Self>, purpose: Purpose) {
        if std::mem::replace(&mut lock(&self.list).counting, true) {
            return;
        }
        let room = Arc::clone(self);
        let counter = std::thread::Builder::new().name("cache count".into());
        if let Err(error) = counter.spawn(move || room.count(purpose)) {
            tracing::debug!(%error, "cannot count the files of the cache");
            lock(&self.list).counting = false;
        }
    }

    fn count(self: &Arc<Self>, purpose: Purpose) {
        let before = self.account.change(|known| (None, known)).ok().flatten();
        if purpose == Purpose::Account && before.is_some() {
            std::thread::sleep(SETTLE);
        }
        self.closed.store(false, Ordering::Relaxed);
        let began = Instant::now();
        let census = census::count(&self.root);
        let used = census.used;
        let mut list = lock(&self.list);
        *list = List { census, at: Some(Instant::now()), took: began.elapsed(), counting: false };
        drop(list);
        self.counted.notify_all();
        if purpose == Purpose::Account {
            self.settle(before, used);
            self.trim();
        }
    }

    /// Puts what was counted in the place of what the account said.
    fn settle(&self, before: Option<Tally>, counted: u64) {
        let replace = |known: Option<Tally>| {
            let fresh = |used, added| Tally { used, added, counted: now(), boot: boot() };
            let next = match (before, known) {
                // What was added meanwhile may be missing in the count, or may be in it: it counts once more.
                (Some(before), Some(tally)) => {
                    let meanwhile = tally.added.wrapping_sub(before.added);
                    Some(fresh(counted.saturating_add(meanwhile), tally.added))
                }
                // Another process was faster, and others have added to its count.
                (None, Some(_)) => None,
                (_, None) => Some(fresh(counted, 0)),
            };
            (next, ())
        };
        if let Err(error) = self.account.change(replace) {
            tracing::debug!(%error, "cannot note how large the cache is");
        }
    }

    /// The limit may be lower than that of whoever wrote before: takes away what is too much.
    fn trim(self: &Arc<Self>) {
        for _ in 0..ROUNDS {
            match self.try_reserve(0) {
                Answer::Over(excess) if self.evict(excess, Need::Small) > 0 => {}
                Answer::Granted | Answer::Unknown | Answer::Over(_) => return,
            }
        }
    }
}

/// What a count is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To know what can go.
    List,
    /// Also to put the account right.
    Account,
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether the last count is so old, or lies in the future.
fn is_older(tally: &Tally, age: Duration) -> bool {
    now().checked_sub(tally.counted).is_none_or(|seconds| seconds > age.as_secs())
}

/// This run of the machine: after a power cut the account may lack what was added last.
fn boot() -> [u8; 8] {
    let mut out = [0; 8];
    if let Ok(id) = std::fs::read("/proc/sys/kernel/random/boot_id") {
        out.copy_from_slice(&blake3::hash(&id).as_bytes()[..8]);
    }
    out
}
