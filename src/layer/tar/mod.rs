//! Tar walker: from the uncompressed stream of a layer to its [`TableOfContents`]. It does no I/O.
//!
//! Results match those of Go's `archive/tar`, because in practice that reader decides the content of a layer.
//! Archives that it refuses are errors, and accepted ones have the same names, sizes and offsets. The walker names
//! the bytes that it needs next, and gets them in pieces of any size. Between two headers it needs nothing, so a
//! caller with random access skips file contents. Paths are not resolved, and no union rule is applied.
//!
//! One file per concept: `header` (one block of 512 bytes), `pax` (records of an extended header), `sparse` (the
//! maps of the three pax sparse formats), `entry` (a header combined with the extended headers before it), `walker`
//! (the state machine), `limits` (entries, lengths and memory).

mod entry;
mod error;
mod header;
mod limits;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod walker;

use super::TableOfContents;

pub use error::TarError;
pub use limits::TarLimits;
pub use walker::{TarWalker, WalkerNeed};

pub(super) use entry::{owner, xattr_limits};
pub(super) use pax::{XATTR, has_value};

/// The entries whose headers lie in `head`, the first bytes of an archive; `None` where they are refused.
pub fn entries_of_head(head: &[u8], limits: TarLimits) -> Option<TableOfContents> {
    // Whole blocks only, so that the walker ends between two blocks.
    let head = head.get(..head.len() - head.len() % 512)?;
    let mut walker = TarWalker::new(limits);
    walker.feed(0, head).ok()?;
    let end = match walker.need() {
        WalkerNeed::Bytes(range) => range.start,
        WalkerNeed::Done => head.len() as u64,
    };
    walker.finish(end).ok()
}

/// Checks that the names in a foreign entry satisfy the limits of the walker.
pub(super) fn check_names(entry: &super::TocEntry, limits: &TarLimits) -> Result<(), TarError> {
    entry::check_names(entry, limits).map_err(|problem| problem.at(entry.header, &entry.path))
}
