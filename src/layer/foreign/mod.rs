//! Foreign indexes: made by another tool when the layer was pushed or converted, and carried by the image.
//!
//! Each format is a parser from bytes to a [`ForeignIndex`], the equivalent of a pass over the layer. A claim is trusted
//! only until the layer's own bytes are complete, and only the index is fetched. A format that contradicts itself
//! is an error, and the layer is read as if it had no index.

mod assembler;
mod detect;
mod estargz;
mod foreign_index;
mod raw_entry;
mod seek_table;
mod soci;
mod toc_json;
mod zstd_chunked;

pub use assembler::{is_marker, is_table};
pub use detect::{announced, find_foreign, find_seek_table, names_digest};
pub(super) use detect::{shows_markers, without_markers};
pub use foreign_index::{FindError, ForeignError, ForeignIndex, ForeignLimits, IndexKind};
pub use soci::{MAX_ZTOC, parse_ztoc};
