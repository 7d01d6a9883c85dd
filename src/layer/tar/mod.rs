//! Tar walker: from the uncompressed stream of a layer to its [`TableOfContents`](super::TableOfContents). It does
//! no I/O.
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

pub use error::TarError;
pub use limits::TarLimits;
pub use walker::{TarWalker, WalkerNeed};

pub(super) use entry::{owner, xattr_limits};

/// Checks that the names in a foreign entry satisfy the limits of the walker.
pub(super) fn check_names(entry: &super::TocEntry, limits: &TarLimits) -> Result<(), TarError> {
    entry::check_names(entry, limits).map_err(|problem| problem.at(entry.header, &entry.path))
}
