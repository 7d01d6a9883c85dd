//! The tar walker: from the uncompressed stream of a layer to its [`Toc`](super::Toc), without doing any I/O itself.
//!
//! It must never read, wait, resolve a path or apply a union rule, and never guess: what Go's `archive/tar` refuses is an
//! error here, and what it accepts has the same names, sizes and offsets here, because that reader decides in practice what
//! a layer contains. The idea: the walker says which bytes it needs next and is fed them in pieces of any size; between two
//! headers it needs nothing, so a caller with random access skips the contents of files.
//!
//! One file per concept: `header` (one block of 512 bytes), `pax` (records of an extended header), `sparse` (the maps of
//! the three pax sparse formats), `entry` (what a header and everything that went before it mean together), `walker` (the
//! state machine).

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
pub use walker::{Need, TarWalker};

pub(super) use entry::xattr_limits;

/// That the names in an entry from elsewhere are such as the walker would give.
pub(super) fn check_names(entry: &super::Entry, limits: &TarLimits) -> Result<(), TarError> {
    entry::check_names(entry, limits).map_err(|problem| problem.at(entry.header, &entry.path))
}
