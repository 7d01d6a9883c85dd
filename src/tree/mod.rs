//! Immutable file trees in memory: one for each layer, and the union of many.
//!
//! This module does no I/O and does not wait. Links, whiteouts and `..` come from untrusted archives, so they are
//! resolved inside the tree only. A [`TreeBuilder`] is a mutable arena that applies tables of contents one after the
//! other, by the rules of the image specification or those of plain archives. `freeze` turns it into a [`FrozenTree`]: flat
//! arrays that answer the requests of a mount without allocating.

mod builder;
mod error;
mod fingerprint;
mod freeze;
mod frozen;
mod limits;
mod names;
mod path;
mod plain;
mod union;
mod xattrs;

#[cfg(test)]
mod tests;

pub use builder::{NewKind, NewNode, TreeBuilder};
pub use error::{EntryProblem, TreeError};
pub use frozen::{
    FileRef, FollowLinks, FrozenTree, InodeAttr, InodeKind, InodeNumber, ResolvedPath, TreeWalk,
};
pub use plain::{ArchiveOverlap, is_below, is_name_of, lone_file};
