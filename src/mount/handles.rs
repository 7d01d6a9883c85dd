//! Table of open file handles and of the backing files for passthrough.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use fuser::BackingId;

use crate::io::{ReadAt as _, SharedReader, lock, read_lock, write_lock};
use crate::metrics;

use super::errno;
use super::passthrough::{InodeModes, ReadServer, RefusalReach};

/// Handles that one process can allocate. The next process allocates from the range behind, so that a handle is
/// unique over a takeover.
const PER_PROCESS: u64 = 1 << 48;

/// Open files. A handle is never reused, not even by a process that takes the mount over.
#[derive(Default)]
pub(super) struct FileHandles {
    next: AtomicU64,
    /// Guards only the map; held for one insert, get or remove.
    open: RwLock<HashMap<u64, HandleFile>>,
    /// Guards the invariant of [`InodeModes`]. Held over the call that registers a backing file with the kernel, so that
    /// two opens of an inode agree on one file. That call allocates a descriptor and a number, and waits for neither
    /// the disk nor this process.
    modes: Mutex<InodeModes<Arc<BackingFile>>>,
}

struct HandleFile {
    bytes: SharedReader,
    /// The inode whose mode counts this handle; `None` for direct I/O.
    counted: Option<u64>,
}

/// A cache file that the kernel reads by itself.
pub(super) struct BackingFile {
    pub(super) id: BackingId,
    /// Holding the content and its file protects both from eviction.
    _content: SharedReader,
    _file: Arc<OwnedFd>,
}

impl FileHandles {
    /// Enables passthrough of complete files.
    pub(super) fn offer_files(&self) {
        self.modes().offer_files();
    }

    /// Opens `bytes` for direct I/O, outside the page cache and any mode.
    pub(super) fn insert_direct(&self, bytes: SharedReader) -> u64 {
        self.insert(HandleFile { bytes, counted: None })
    }

    /// Opens `bytes` as a handle of `inode`, and returns whether the kernel serves it. The kernel does if there is a
    /// backing file that `register` can make known to it.
    pub(super) fn insert_counted(
        &self,
        inode: u64,
        bytes: SharedReader,
        register: impl FnOnce(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> (u64, ReadServer<Arc<BackingFile>>) {
        // Finding the file may access the disk, so it happens without the lock of other opens.
        let file = if self.modes().wants_file(inode) { bytes.backing() } else { None };
        let register = file.map(|file| {
            let content = Arc::clone(&bytes);
            move || match register(&file) {
                Ok(id) => Ok(Arc::new(BackingFile { id, _content: content, _file: file })),
                Err(error) => {
                    let refusal = errno::refusal_of_backing(&error);
                    match refusal {
                        RefusalReach::EveryFile => {
                            tracing::debug!(%error, "no file of this mount is passed through")
                        }
                        RefusalReach::ThisFile => {
                            tracing::debug!(%error, inode, "a file is not passed through")
                        }
                    }
                    Err(refusal)
                }
            }
        });
        let served = self.modes().open(inode, register);
        (self.insert(HandleFile { bytes, counted: Some(inode) }), served)
    }

    /// The handle table of a process that came after `earlier` others.
    pub(super) fn after(earlier: u64) -> Self {
        Self { next: AtomicU64::new(earlier.saturating_mul(PER_PROCESS)), ..Self::default() }
    }

    /// Whether an earlier process may have allocated `handle`.
    pub(super) fn is_inherited(&self, handle: u64) -> bool {
        handle / PER_PROCESS < self.next.load(Ordering::Relaxed) / PER_PROCESS
    }

    /// Opens `bytes` under a handle of an earlier process, unless another request did so first.
    pub(super) fn adopt(&self, handle: u64, bytes: SharedReader) -> SharedReader {
        let mut open = write_lock(&self.open);
        Arc::clone(&open.entry(handle).or_insert(HandleFile { bytes, counted: None }).bytes)
    }

    /// The open file.
    pub(super) fn get(&self, handle: u64) -> Option<SharedReader> {
        let open = read_lock(&self.open);
        open.get(&handle).map(|file| Arc::clone(&file.bytes))
    }

    /// Closes the handle.
    pub(super) fn remove(&self, handle: u64) {
        let closed = write_lock(&self.open).remove(&handle);
        if closed.is_some() {
            metrics::OPEN_FILES.down();
        }
        if let Some(inode) = closed.as_ref().and_then(|file| file.counted) {
            let freed = self.modes().close(inode);
            // Outside the lock: this may drop the last user of a cached blob, which closes files.
            drop(freed);
        }
    }

    fn insert(&self, file: HandleFile) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        write_lock(&self.open).insert(handle, file);
        metrics::OPEN_FILES.up();
        handle
    }

    fn modes(&self) -> MutexGuard<'_, InodeModes<Arc<BackingFile>>> {
        lock(&self.modes)
    }
}
