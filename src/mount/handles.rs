//! The open files of a mount, by handle, and the files that the kernel reads in their place.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fuser::BackingId;

use crate::io::{ReadAt as _, Shared};
use crate::meter;

use super::errno;
use super::passthrough::{Modes, Refusal, Served};

/// Handles that one process can give out: those of the next begin behind them, so that one is never taken for another.
const PER_PROCESS: u64 = 1 << 48;

/// Open files. A handle is never used twice, also not by a process that takes the mount over.
#[derive(Default)]
pub(super) struct Handles {
    next: AtomicU64,
    /// Guards only the map; held for one insert, get or remove.
    open: RwLock<HashMap<u64, OpenFile>>,
    /// Guards the invariant of [`Modes`]. Held over the call that makes a file known to the kernel, so that two opens of an
    /// inode agree on one file: the call takes a descriptor and a number, and waits for neither a disk nor us.
    modes: Mutex<Modes<Arc<Backing>>>,
}

struct OpenFile {
    bytes: Shared,
    /// The inode whose mode counts this handle.
    counted: Option<u64>,
}

/// A file of the cache that the kernel reads by itself.
pub(super) struct Backing {
    pub(super) id: BackingId,
    /// Who holds the content and its file keeps both from eviction.
    _content: Shared,
    _file: Arc<OwnedFd>,
}

impl Handles {
    /// From now on whole files are passed through.
    pub(super) fn offer_files(&self) {
        self.modes().offer_files();
    }

    /// Keeps `bytes` open beside the page cache and any mode.
    pub(super) fn insert_direct(&self, bytes: Shared) -> u64 {
        self.insert(OpenFile { bytes, counted: None })
    }

    /// Keeps `bytes` open as a handle of `inode`, and says who serves it: the kernel, if there is a file behind the bytes
    /// that `register` can make known to it.
    pub(super) fn insert_counted(
        &self,
        inode: u64,
        bytes: Shared,
        register: impl FnOnce(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> (u64, Served<Arc<Backing>>) {
        // Looking for the file may take a look at the disk, which no other open has to wait for.
        let file = if self.modes().wants_file(inode) { bytes.backing() } else { None };
        let register = file.map(|file| {
            let content = Arc::clone(&bytes);
            move || match register(&file) {
                Ok(id) => Ok(Arc::new(Backing { id, _content: content, _file: file })),
                Err(error) => {
                    let refusal = errno::refusal_of_backing(&error);
                    match refusal {
                        Refusal::EveryFile => {
                            tracing::debug!(%error, "no file of this mount is passed through")
                        }
                        Refusal::ThisFile => tracing::debug!(%error, inode, "a file is not passed through"),
                    }
                    Err(refusal)
                }
            }
        });
        let served = self.modes().open(inode, register);
        (self.insert(OpenFile { bytes, counted: Some(inode) }), served)
    }

    /// The handles of a process that came after `earlier` others.
    pub(super) fn after(earlier: u64) -> Self {
        Self { next: AtomicU64::new(earlier.saturating_mul(PER_PROCESS)), ..Self::default() }
    }

    /// Whether a process before this one may have given `handle` out.
    pub(super) fn is_inherited(&self, handle: u64) -> bool {
        handle / PER_PROCESS < self.next.load(Ordering::Relaxed) / PER_PROCESS
    }

    /// Keeps `bytes` open under a handle that a process before this one gave out, unless another request was faster.
    pub(super) fn adopt(&self, handle: u64, bytes: Shared) -> Shared {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&open.entry(handle).or_insert(OpenFile { bytes, counted: None }).bytes)
    }

    /// The open file.
    pub(super) fn get(&self, handle: u64) -> Option<Shared> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle).map(|file| Arc::clone(&file.bytes))
    }

    /// Forgets the handle.
    pub(super) fn remove(&self, handle: u64) {
        let closed = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        if closed.is_some() {
            meter::OPEN_FILES.down();
        }
        if let Some(inode) = closed.as_ref().and_then(|file| file.counted) {
            let freed = self.modes().close(inode);
            // Outside the lock: it may be the last user of a cached blob, whose end closes files.
            drop(freed);
        }
    }

    fn insert(&self, file: OpenFile) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, file);
        meter::OPEN_FILES.up();
        handle
    }

    fn modes(&self) -> MutexGuard<'_, Modes<Arc<Backing>>> {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
