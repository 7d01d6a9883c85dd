//! Root directory attributes from the first block of a layer: the entry that tar writes for `.` comes first.
//!
//! The first `stat` needs the attributes of a root directory, long before any name in it. So only the first block
//! of the layer is read, and no index is made. If the entry lies further behind, the index provides it together
//! with the names.

use crate::cache::VerifyMode;
use crate::io::{ByteRange, ReadError, compute, read_vec};

use super::audit::plain;
use super::guarded_stream::refuse_poisoned;
use super::peek;
use super::sniff::{SniffResult, sniff};
use super::stored_layer::StoredLayer;
use super::tar::{TarLimits, TarWalker};
use super::toc::{TocEntry, TocEntryKind};

/// Stored bytes examined: a block of the cache.
const STORED: u64 = 256 * 1024;

/// Stream bytes examined: room for a header behind the longest records of extended attributes that tools write.
const STREAM: usize = 256 * 1024;

impl StoredLayer {
    /// The archive's entry for the directory at `path` (empty for the root), from the first block of the layer.
    /// `None` where the entry lies further behind or is missing, and where the layer is no archive. Also `None`
    /// where bytes may only be used once the whole layer is verified.
    pub async fn directory_entry(&self, path: &[u8]) -> Result<Option<TocEntry>, ReadError> {
        let blob = &self.core.blob;
        refuse_poisoned(blob)?;
        if self.hints.verify == VerifyMode::Toc && !self.core.is_proven_first() {
            return Ok(None);
        }
        let looked_at = blob.looked_at();
        let stored = read_vec(&*looked_at, ByteRange::new(0, looked_at.size().min(STORED))).await?;
        let SniffResult::Stream(encoding) = sniff(&stored) else { return Ok(None) };
        let wanted = plain(path).into_owned();
        compute(move || {
            let stream = peek::peek(encoding, &stored, STREAM);
            let mut walker = TarWalker::new(TarLimits::default());
            if let Err(error) = walker.feed(0, &stream) {
                // The pass reports this error; entries before it are valid.
                tracing::debug!(%error, "the first entries of an archive end early");
            }
            let is_wanted =
                |entry: &TocEntry| entry.kind == TocEntryKind::Directory && *plain(&entry.path) == *wanted;
            Ok(walker.entries().iter().map(|entry| entry.to_entry()).filter(is_wanted).last())
        })
        .await
    }
}

/// Whether a table of contents has an entry for the root directory.
pub fn has_root(toc: &super::TableOfContents) -> bool {
    toc.iter().any(|entry| entry.kind == TocEntryKind::Directory && plain(entry.path).is_empty())
}
