//! One memory budget of the process, for what foreign content makes large: tables of contents, trees, windows of decoders.
//!
//! Nothing here is measured: each holder charges what it is about to allocate. The idea: who holds a share for a while is
//! waited for, who keeps it (a tree, for the life of its mount) is not; a share is never held while a network is waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Fault, ReadError};

/// Bytes of all shares together. With what passes and reads hold at most, and the process itself, that stays below 256 MiB; a tree
/// of a million files and the table of contents that it is made from take 165 MiB.
const BUDGET_BYTES: u64 = 176 * 1024 * 1024;

/// How long a share is waited for. Holders compute, so a longer wait is a fault.
const SHARE_TIMEOUT: Duration = Duration::from_secs(60);

/// The budget of this process.
pub(crate) static MEMORY: MemoryBudget = MemoryBudget::new(BUDGET_BYTES, SHARE_TIMEOUT);

/// Bytes that may be held at once.
pub struct MemoryBudget {
    /// Bytes.
    limit: u64,
    /// How long a share is waited for.
    timeout: Duration,
    used: Mutex<Used>,
    /// Told when bytes come back, to those that wait on threads.
    freed: Condvar,
    /// The same, to tasks.
    freed_async: Notify,
}

/// Bytes that are held.
struct Used {
    /// For a while.
    passing: u64,
    /// For as long as something that was asked for exists.
    lasting: u64,
}

/// A share of the budget, given back when it is dropped.
pub struct MemoryShare {
    budget: &'static MemoryBudget,
    bytes: u64,
    /// Changed under the lock of the budget.
    lasts: AtomicBool,
}

/// A share that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it takes {needed} bytes of memory, and {free} of the {limit} that all layers share are free")]
pub struct OverBudget {
    needed: u64,
    free: u64,
    limit: u64,
}

impl OverBudget {
    /// As the error of a read.
    pub(crate) fn into_read(self, what: &str) -> ReadError {
        ReadError::new(Fault::Unsupported, format!("{what}: {self}"))
    }
}

impl MemoryBudget {
    const fn new(limit: u64, timeout: Duration) -> Self {
        Self {
            limit,
            timeout,
            used: Mutex::new(Used { passing: 0, lasting: 0 }),
            freed: Condvar::new(),
            freed_async: Notify::const_new(),
        }
    }

    /// A share of nothing, to grow for a while.
    pub(crate) fn passing(&'static self) -> MemoryShare {
        MemoryShare { budget: self, bytes: 0, lasts: AtomicBool::new(false) }
    }

    /// A share of nothing, to grow for as long as something exists.
    pub(crate) fn lasting(&'static self) -> MemoryShare {
        MemoryShare { budget: self, bytes: 0, lasts: AtomicBool::new(true) }
    }

    /// Waits for a share of `bytes`.
    pub(crate) async fn take(&'static self, bytes: u64) -> Result<MemoryShare, OverBudget> {
        let mut share = self.passing();
        let wait = async {
            loop {
                // Registered before the look, so that what is freed after it wakes.
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

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self, needed: u64) -> OverBudget {
        let used = self.lock();
        OverBudget { needed, free: self.limit.saturating_sub(used.lasting + used.passing), limit: self.limit }
    }
}

impl MemoryShare {
    /// Makes it larger by `bytes`; blocks its thread while others hold for a while what is missing.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), OverBudget> {
        let end = std::time::Instant::now() + self.budget.timeout;
        while !self.try_grow(bytes)? {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Err(self.budget.over(bytes));
            }
            let used = self.budget.lock();
            // Looked at under the lock: what came back since is not missed.
            if used.passing + used.lasting + bytes > self.budget.limit {
                drop(self.budget.freed.wait_timeout(used, left));
            }
        }
        Ok(())
    }

    /// `false` when it has to be waited for, an error when that does not help.
    fn try_grow(&mut self, bytes: u64) -> Result<bool, OverBudget> {
        let limit = self.budget.limit;
        let mut used = self.budget.lock();
        // What this one holds already does not come back while it waits.
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

    /// From now on it is not waited for: who needs what it holds gets an error.
    pub(crate) fn pin(&self) {
        let mut used = self.budget.lock();
        if !self.lasts.swap(true, Ordering::Relaxed) {
            used.passing -= self.bytes;
            used.lasting += self.bytes;
        }
        drop(used);
        self.budget.tell();
    }

    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        *self.budget.lock().of(self.lasts.load(Ordering::Relaxed)) -= back;
        self.budget.tell();
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Used {
    fn of(&mut self, lasts: bool) -> &mut u64 {
        if lasts { &mut self.lasting } else { &mut self.passing }
    }
}

impl MemoryBudget {
    fn tell(&self) {
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
    async fn what_is_held_for_a_while_is_waited_for_and_what_lasts_is_an_error() {
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
