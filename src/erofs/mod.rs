//! EROFS images of trees: computed metadata, and a map from image addresses to the files of layers.
//!
//! This module does no I/O and holds no file data. EROFS metadata names the block at which each file begins, so an
//! image of a tree needs no data of its own: a read after the metadata is a read of a file. Equal trees give equal
//! bytes. The layout is in `docs/formats/erofs.md`.

mod attributes;
mod directory;
mod error;
mod extents;
mod format;
mod image;
mod places;
mod sparse;

pub use error::ErofsError;
pub use extents::{FileExtent, ImageMap, ImageSpan};
pub use image::ErofsImage;
