//! Sums over the blobs of a mount, for the reports of `status` and `inspect`.

use crate::image::{BlobStatus, ImageStatus};

/// Sums over all blobs, in bytes.
pub(super) struct BlobTotals {
    /// Stored size.
    pub(super) size: u64,
    /// Cached bytes.
    pub(super) cached: u64,
    /// Bytes that this mount fetched.
    pub(super) fetched: u64,
    /// Bytes of blobs served to programs, with repeats.
    pub(super) served: u64,
}

impl BlobTotals {
    pub(super) fn of(status: &ImageStatus) -> Self {
        let sum = |of: fn(&BlobStatus) -> u64| status.blobs.iter().map(of).fold(0, u64::saturating_add);
        Self {
            size: sum(|blob| blob.size),
            cached: sum(|blob| blob.cached),
            fetched: sum(|blob| blob.fetched),
            served: sum(|blob| blob.served),
        }
    }
}

/// `part` in percent of `whole`; 100 if `whole` is 0.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}
