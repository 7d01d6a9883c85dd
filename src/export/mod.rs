//! Writing parts of a mount somewhere else, through the same names and the same reads as the mount itself.
//!
//! Nothing here knows FUSE or prints: the caller brings the writer.

mod cat;
mod list;

pub use cat::{CatError, cat};
pub use list::{Depth, Detail, Listed, list};
