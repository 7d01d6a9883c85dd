//! Readahead permits, over all content of a cache.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::sidecar::ContentKind;
use crate::io::concurrency;

/// Permits for readahead, over all content of a cache.
pub(super) struct FetchPermits {
    fetches: Arc<Semaphore>,
    /// A decode takes a core and itself fetches stored bytes: it must not hold the permits that those fetches wait
    /// for.
    decodes: Arc<Semaphore>,
}

impl FetchPermits {
    pub(super) fn new() -> Self {
        Self {
            fetches: Arc::new(Semaphore::new(concurrency::READAHEAD_FETCHES)),
            decodes: Arc::new(Semaphore::new(concurrency::decodes())),
        }
    }

    /// Semaphore for content of this kind; one permit is one fetch.
    pub(super) fn of(&self, kind: ContentKind) -> &Arc<Semaphore> {
        match kind {
            ContentKind::Blob => &self.fetches,
            ContentKind::Stream | ContentKind::Claim => &self.decodes,
        }
    }
}
