//! Slot for the open files of one content: closed when idle and descriptors run short, and reopened on demand.
//!
//! Closing drops the whole [`BlockFile`], and with it the locks and the trust in its blocks; reopening makes a new one,
//! which checks each block anew. So other processes can evict, replace or remove closed content, and this one does
//! not mistake their changes for bytes it trusted.

use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::block_file::BlockFile;
use super::evictable::{EvictableFile, EvictableSlot};
use super::quota::{CacheQuota, WritePriority};
use super::sidecar::BLOCK_BYTES;
use super::{CacheError, lock};
use crate::io::{read_lock, write_lock};
use crate::oci::Digest;

/// Time for which reads go on without the files after a failed open.
const OPEN_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longer than a process lives.
const FOR_GOOD: Duration = Duration::from_hours(24 * 365);
type SlotOpener = Box<dyn Fn() -> Result<BlockFile, CacheError> + Send + Sync>;

/// The open files of one content, if they are open.
pub(super) struct PairSlot {
    pair: RwLock<Option<Arc<BlockFile>>>,
    open: SlotOpener,
    room: Arc<CacheQuota>,
    /// Identity of the sidecar that was opened first; `None` before. Another one may hold another copy of content that
    /// was not compared with its digest.
    first: Mutex<Option<Option<(u64, u64)>>>,
    /// When opening may be tried again; `None` before the first failure. Guards: one thread at a time opens.
    opening: Mutex<Option<Instant>>,
}

impl PairSlot {
    /// Opens the files by `open`, which is called again whenever they were closed.
    pub(super) fn new(open: SlotOpener, room: &Arc<CacheQuota>) -> Result<Arc<Self>, CacheError> {
        let slot = Arc::new(Self {
            pair: RwLock::default(),
            open,
            room: Arc::clone(room),
            first: Mutex::default(),
            opening: Mutex::default(),
        });
        slot.fill()?;
        room.register(&slot);
        Ok(slot)
    }

    /// Files that stay open: they cannot be opened again.
    pub(super) fn pinned(pair: BlockFile, room: &Arc<CacheQuota>) -> Arc<Self> {
        Arc::new(Self {
            pair: RwLock::new(Some(Arc::new(pair))),
            open: Box::new(|| {
                let error = io::ErrorKind::NotFound.into();
                Err(CacheError::io("open again", std::path::Path::new("a local file"), error))
            }),
            room: Arc::clone(room),
            first: Mutex::default(),
            opening: Mutex::default(),
        })
    }

    /// The files, if they are open.
    pub(super) fn opened(&self) -> Option<Arc<BlockFile>> {
        read_lock(&self.pair).clone()
    }

    /// The files, reopened if necessary, which can wait for a disk. `None` when that is not possible now.
    pub(super) fn pair(&self) -> Option<Arc<BlockFile>> {
        if let Some(pair) = self.opened() {
            return Some(pair);
        }
        let mut opening = lock(&self.opening);
        if let Some(pair) = self.opened() {
            return Some(pair);
        }
        if opening.is_some_and(|again| Instant::now() < again) {
            return None;
        }
        match self.fill() {
            Ok(pair) => Some(pair),
            Err(error) => {
                *opening = Some(Instant::now() + OPEN_RETRY_DELAY);
                let error = crate::io::ReadError::from(error).chain();
                tracing::debug!(error, "cannot reopen files of the cache; reads continue uncached");
                None
            }
        }
    }

    /// Removes the copy `damaged`, if it is the open one, and opens another. `false` if it was replaced before, or
    /// cannot be.
    pub(super) fn replace(&self, damaged: &Arc<BlockFile>) -> bool {
        let mut opening = lock(&self.opening);
        if damaged.is_local() || !self.opened().is_some_and(|open| Arc::ptr_eq(&open, damaged)) {
            return false;
        }
        let is_gone = damaged.retire();
        *write_lock(&self.pair) = None;
        *lock(&self.first) = None;
        if !is_gone {
            // The name leads to the damaged copy.
            *opening = Some(Instant::now() + FOR_GOOD);
        } else if let Err(error) = self.fill() {
            let error = crate::io::ReadError::from(error).chain();
            tracing::debug!(error, "cannot replace a damaged copy; reads continue uncached");
        }
        true
    }

    fn fill(&self) -> Result<Arc<BlockFile>, CacheError> {
        self.room.spare_descriptors();
        let opened = match (self.open)() {
            // A new sidecar needs less than a block.
            Err(CacheError::Full { .. }) if self.room.relieve(BLOCK_BYTES, WritePriority::Block) => {
                (self.open)()
            }
            // Connections take descriptors, too.
            Err(CacheError::Descriptors { .. }) if self.room.close_idle() > 0 => (self.open)(),
            opened => opened,
        };
        let pair = Arc::new(opened?);
        let identity = pair.identity();
        if *lock(&self.first).get_or_insert(identity) != identity && !pair.is_fixed() {
            return Err(CacheError::Busy { path: pair.sidecar.path().to_owned() });
        }
        *write_lock(&self.pair) = Some(Arc::clone(&pair));
        Ok(pair)
    }
}

impl EvictableSlot for PairSlot {
    fn open_file(&self) -> Option<Arc<dyn EvictableFile>> {
        Some(self.opened()?)
    }

    fn close_idle(&self) -> bool {
        let mut slot = write_lock(&self.pair);
        // The pair is not cloned while the slot is locked, so one owner means that it is this slot.
        let idle = slot.as_ref().is_some_and(|pair| Arc::strong_count(pair) == 1 && !pair.is_handed_out());
        if idle {
            *slot = None;
        }
        idle
    }
}

/// The files of content; an error is logged, and its reads are uncached.
pub(super) fn or_uncached(
    digest: &Digest,
    slot: Result<Option<Arc<PairSlot>>, CacheError>,
) -> Option<Arc<PairSlot>> {
    slot.unwrap_or_else(|error| {
        let error = crate::io::ReadError::from(error).chain();
        tracing::warn!(%digest, error, "cannot cache a blob; reads continue uncached");
        None
    })
}
