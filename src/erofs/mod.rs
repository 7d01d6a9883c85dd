//! EROFS images of trees: metadata that is computed, and a map from image addresses to the files of layers.
//!
//! Does no I/O and holds no file data. The idea: an EROFS image is metadata that names the block at which each file begins, so
//! an image of a tree needs no data of its own: reads behind the metadata are reads of the files. Equal trees give equal bytes;
//! the layout is in `docs/formats/erofs.md`.

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
