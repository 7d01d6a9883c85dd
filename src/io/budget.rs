//! Process-wide memory budget for structures whose size untrusted content decides: tables of contents, trees, decoder
//! windows.
//!
//! Memory is not measured: each holder charges its allocation in advance. A request waits for a temporary share, but
//! not for a lasting one (a tree, for the life of its mount). A temporary share is not held during a wait for the
//! network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::sync::lock;
use super::{FaultClass, ReadError};

/// Bytes of all shares together. With the maximum of passes and reads, and the process itself, the total stays below
/// 256 MiB. A tree of a million files and its table of contents take 165 MiB.
const BUDGET_BYTES: u64 = 176 * 1024 * 1024;

/// Time limit for a share. Holders only compute, so a longer wait is a fault.
const SHARE_TIMEOUT: Duration = Duration::from_secs(60);

/// The budget of this process.
pub(crate) static MEMORY: MemoryBudget = MemoryBudget::new(BUDGET_BYTES, SHARE_TIMEOUT);

/// A limit on bytes that are held at once.
pub struct MemoryBudget {
    /// Bytes.
    limit: u64,
    /// Time limit for a share.
    timeout: Duration,
    used: Mutex<BudgetShare>,
    /// Wakes blocked threads when bytes are freed.
    freed: Condvar,
    /// Wakes waiting tasks when bytes are freed.
    freed_async: Notify,
}

/// Bytes in use.
struct BudgetShare {
    /// In temporary shares.
    passing: u64,
    /// In lasting shares.
    lasting: u64,
}

/// A share of the budget, freed on drop.
pub struct MemoryShare {
    budget: &'static MemoryBudget,
    bytes: u64,
    /// Changed under the lock of the budget.
    lasts: AtomicBool,
}

/// A share that cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it takes {needed} bytes of memory, and {free} of the {limit} that all layers share are free")]
pub struct OverBudget {
    needed: u64,
    free: u64,
    limit: u64,
}

impl OverBudget {
    /// Converts to the error of a read.
    pub(crate) fn into_read(self, what: &str) -> ReadError {
        ReadError::new(FaultClass::Unsupported, format!("{what}: {self}"))
    }
}

impl MemoryBudget {
    const fn new(limit: u64, timeout: Duration) -> Self {
        Self {
            limit,
            timeout,
            used: Mutex::new(BudgetShare { passing: 0, lasting: 0 }),
            freed: Condvar::new(),
            freed_async: Notify::const_new(),
        }
    }

    /// An empty temporary share, which can grow.
    pub(crate) fn passing(&'static self) -> MemoryShare {
        MemoryShare { budget: self, bytes: 0, lasts: AtomicBool::new(false) }
    }

    /// An empty lasting share, which can grow.
    pub(crate) fn lasting(&'static self) -> MemoryShare {
        MemoryShare { budget: self, bytes: 0, lasts: AtomicBool::new(true) }
    }

    /// An error for what no share can be large enough for.
    pub(crate) fn refuse_larger(&self, bytes: u64) -> Result<(), OverBudget> {
        match bytes > self.limit {
            true => Err(OverBudget { needed: bytes, free: self.limit, limit: self.limit }),
            false => Ok(()),
        }
    }

    /// Waits for a temporary share of `bytes`.
    pub(crate) async fn take(&'static self, bytes: u64) -> Result<MemoryShare, OverBudget> {
        let mut share = self.passing();
        let wait = async {
            loop {
                // Registered before the attempt, so that bytes freed after it wake the task.
                let freed = self.freed_async.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                match share.try_grow(bytes) {
                    Ok(true) => return Ok(()),
                    Ok(false) => freed.await,
                    Err(error) => return Err(error),
                }
            }
        };
        match tokio::time::timeout(self.timeout, wait).await {
            Ok(taken) => taken?,
            Err(_) => return Err(self.over(bytes)),
        }
        Ok(share)
    }

    /// A temporary share of `bytes` for a value that can be dropped without loss; `None` unless half of the budget
    /// stays free.
    pub(crate) fn spare(&'static self, bytes: u64) -> Option<MemoryShare> {
        let mut used = self.lock();
        if used.passing + used.lasting + bytes > self.limit / 2 {
            return None;
        }
        used.passing += bytes;
        drop(used);
        Some(MemoryShare { budget: self, bytes, lasts: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, BudgetShare> {
        lock(&self.used)
    }

    fn over(&self, needed: u64) -> OverBudget {
        let used = self.lock();
        OverBudget { needed, free: self.limit.saturating_sub(used.lasting + used.passing), limit: self.limit }
    }
}

impl MemoryShare {
    /// Grows by `bytes`; blocks its thread while temporary shares hold the missing bytes.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), OverBudget> {
        let end = std::time::Instant::now() + self.budget.timeout;
        while !self.try_grow(bytes)? {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Err(self.budget.over(bytes));
            }
            let used = self.budget.lock();
            // Checked under the lock, so that bytes freed meanwhile are not missed.
            if used.passing + used.lasting + bytes > self.budget.limit {
                drop(self.budget.freed.wait_timeout(used, left));
            }
        }
        Ok(())
    }

    /// Returns `false` when waiting may help, an error when it cannot.
    fn try_grow(&mut self, bytes: u64) -> Result<bool, OverBudget> {
        let limit = self.budget.limit;
        let mut used = self.budget.lock();
        // A share does not free its own bytes while it waits.
        let lasts = self.lasts.load(Ordering::Relaxed);
        let own = if lasts { 0 } else { self.bytes };
        let stays = used.lasting + own;
        if stays.saturating_add(bytes) > limit {
            return Err(OverBudget { needed: bytes, free: limit - stays.min(limit), limit });
        }
        if used.passing + used.lasting + bytes > limit {
            return Ok(false);
        }
        *used.of(lasts) += bytes;
        self.bytes += bytes;
        Ok(true)
    }

    /// Makes the share lasting: a request that needs its bytes fails instead of waiting.
    pub(crate) fn pin(&self) {
        let mut used = self.budget.lock();
        if !self.lasts.swap(true, Ordering::Relaxed) {
            used.passing -= self.bytes;
            used.lasting += self.bytes;
        }
        drop(used);
        self.budget.notify();
    }

    /// Frees all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        *self.budget.lock().of(self.lasts.load(Ordering::Relaxed)) -= back;
        self.budget.notify();
    }

    /// Bytes of this share.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl BudgetShare {
    fn of(&mut self, lasts: bool) -> &mut u64 {
        if lasts { &mut self.lasting } else { &mut self.passing }
    }
}

impl MemoryBudget {
    fn notify(&self) {
        self.freed.notify_all();
        self.freed_async.notify_waiters();
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shrink_to(0);
        }
    }
}

impl std::fmt::Debug for MemoryShare {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MemoryShare").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn budget_waits_for_short_holders_and_fails_on_lasting_ones() {
        static BUDGET: MemoryBudget = MemoryBudget::new(100, SHARE_TIMEOUT);
        let held = BUDGET.take(60).await.unwrap();
        let waiting = tokio::spawn(BUDGET.take(60));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        let mut held = waiting.await.unwrap().unwrap();
        assert_eq!(held.grow(41), Err(OverBudget { needed: 41, free: 40, limit: 100 }));
        held.grow(40).unwrap();
        held.pin();
        held.shrink_to(50);
        let error = BUDGET.take(51).await.unwrap_err();
        assert_eq!(error, OverBudget { needed: 51, free: 50, limit: 100 });
        drop(BUDGET.take(50).await.unwrap());
        drop(held);
        drop(BUDGET.take(100).await.unwrap());
    }

    #[test]
    fn spare_memory_is_at_most_half_of_the_budget() {
        static BUDGET: MemoryBudget = MemoryBudget::new(100, SHARE_TIMEOUT);
        let mut held = BUDGET.lasting();
        held.grow(20).unwrap();
        let spare = BUDGET.spare(30).unwrap();
        assert!(BUDGET.spare(1).is_none());
        drop(spare);
        assert!(BUDGET.spare(31).is_none());
        drop(held);
        assert_eq!(BUDGET.spare(50).unwrap().bytes(), 50);
    }

    #[test]
    fn a_share_grows_when_another_thread_gives_back() {
        static BUDGET: MemoryBudget = MemoryBudget::new(100, SHARE_TIMEOUT);
        let (mut first, mut second) = (BUDGET.passing(), BUDGET.passing());
        first.grow(80).unwrap();
        let growing = std::thread::spawn(move || second.grow(70));
        drop(first);
        assert_eq!(growing.join().unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_share_that_does_not_come_is_an_error_after_its_time() {
        static BUDGET: MemoryBudget = MemoryBudget::new(100, Duration::from_millis(10));
        let _held = BUDGET.take(60).await.unwrap();
        let error = BUDGET.take(60).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "it takes 60 bytes of memory, and 40 of the 100 that all layers share are free"
        );
    }
}
