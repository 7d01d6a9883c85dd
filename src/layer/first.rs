//! Root directory attributes from the first block of a layer: the entry that tar writes for `.` comes first.
//!
//! The first `stat` needs the attributes of a root directory, long before any name in it. So only the first block
//! of the layer is read, and no index is made. If the entry lies further behind, the index provides it together
//! with the names.

use crate::cache::VerifyMode;
use crate::io::{ByteRange, ReadError, compute, read_vec};

use super::audit::plain;
use super::foreign::IndexKind;
use super::guarded_stream::refuse_poisoned;
use super::peek;
use super::sniff::{SniffResult, sniff};
use super::stored_layer::{IndexSource, StoredLayer};
use super::tar::{TarLimits, TarWalker};
use super::toc::{EntryRef, TableOfContents, TocEntry, TocEntryKind};

/// Stored bytes examined: a block of the cache.
const STORED: u64 = 256 * 1024;

/// Stream bytes examined: room for a header behind the longest records of extended attributes that tools write.
const STREAM: usize = 256 * 1024;

impl StoredLayer {
    /// The archive's entry for the directory at `path` (empty for the root), by an index that ocifs pushed. Reads none
    /// of the layer. The outer `None` means that there is no such index, or that its table of contents is on disk.
    pub async fn indexed_entry(&self, path: &[u8]) -> Result<Option<Option<TocEntry>>, ReadError> {
        if self.hints.verify != VerifyMode::Lazy || !self.hints.policy.takes_foreign() {
            return Ok(None);
        }
        let IndexSource::Claim(claim) = self.choose(&mut None).await? else { return Ok(None) };
        let toc = &claim.foreign.index.toc;
        let is_usable = claim.foreign.kind == IndexKind::Pushed && !toc.is_spooled();
        Ok(is_usable.then(|| directory(toc, &plain(path))))
    }

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
            Ok(directory(walker.entries(), &wanted))
        })
        .await
    }
}

/// The last entry for the directory at the plain path `wanted`.
fn directory(toc: &TableOfContents, wanted: &[u8]) -> Option<TocEntry> {
    let is_wanted =
        |entry: &EntryRef<'_>| entry.kind == TocEntryKind::Directory && *plain(entry.path) == *wanted;
    toc.iter().filter(is_wanted).last().map(|entry| entry.to_entry())
}

/// Whether a table of contents has an entry for the root directory.
pub fn has_root(toc: &TableOfContents) -> bool {
    toc.iter().any(|entry| entry.kind == TocEntryKind::Directory && plain(entry.path).is_empty())
}
