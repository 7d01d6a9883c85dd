//! qcow2 images: the header, and the disk inside as raw bytes.
//!
//! Read-only; opens no other file, and ignores refcounts and internal snapshots. A raw byte is found by two table
//! lookups. So a reader needs a few table entries and the clusters of the requested bytes; unallocated bytes cost
//! nothing.

mod cluster;
mod header;
mod map;
mod raw;
mod table_cache;
mod tables;

pub use header::Qcow2Header;
pub(super) use header::{CORRUPT, DATA_FILE, DIRTY, KNOWN};
pub use raw::Qcow2Raw;
