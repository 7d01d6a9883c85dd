//! Immutable file trees in memory: one for each layer, and the union of many.
//!
//! Pure data: nothing here reads a file, opens a socket or waits. Links, whiteouts and `..` come from foreign archives
//! and are resolved inside the tree only. The idea: a [`Builder`] is a mutable arena that takes tables of contents one
//! after the other by the rules of the image specification, or by those of plain archives; `freeze` turns it into a [`Tree`], a few flat arrays that
//! answer the questions of a mount without allocating.

mod builder;
mod error;
mod fingerprint;
mod freeze;
mod frozen;
mod names;
mod path;
mod plain;
mod union;
mod xattrs;

#[cfg(test)]
mod tests;

pub use builder::{Builder, NewKind, NewNode};
pub use error::{Problem, TreeError};
pub use frozen::{Attr, FileRef, Follow, Ino, Kind, Resolved, Tree, Walk};
pub use plain::{Overlap, first_file, is_below, is_name_of};
