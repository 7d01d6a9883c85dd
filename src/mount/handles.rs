//! The open files of a mount, by handle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::io::Shared;

/// Open files. A handle is never used twice.
#[derive(Default)]
pub(super) struct Handles {
    next: AtomicU64,
    /// Guards only the map; held for one insert, get or remove.
    open: RwLock<HashMap<u64, Shared>>,
}

impl Handles {
    /// Keeps `bytes` open and gives the handle.
    pub(super) fn insert(&self, bytes: Shared) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, bytes);
        handle
    }

    /// The open file.
    pub(super) fn get(&self, handle: u64) -> Option<Shared> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle).cloned()
    }

    /// Forgets the handle.
    pub(super) fn remove(&self, handle: u64) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }
}
