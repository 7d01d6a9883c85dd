//! qcow2: what the header of an image says, and the disk inside of the image as raw bytes.
//!
//! Never opens a file, never writes, and never looks at refcounts or at the states that internal snapshots keep. The idea:
//! a raw byte is found by two table look-ups, so a reader of the image needs a few entries of its tables and the clusters
//! that hold what was asked for; what nobody wrote costs nothing.

mod cluster;
mod header;
mod kept;
mod map;
mod raw;
mod tables;

pub use header::Qcow2Header;
pub(super) use header::{CORRUPT, DATA_FILE, DIRTY, KNOWN};
pub use raw::Qcow2Raw;
