//! zTOC parser: the SOCI index of one layer.
//!
//! A zTOC has two independent parts: the entries of the archive, and the checkpoints of inflate. Both become the
//! same values as from a pass over the layer. Nothing is fetched or decoded. A zTOC for another layer, or one that
//! contradicts itself, is refused with its numbers. The format is the schema `ztoc/fbs/ztoc.fbs` of the
//! soci-snapshotter at version 0.9. Other versions number the fields differently, so they are refused.

mod checkpoints;
mod entries;
mod flatbuffer;

use super::super::index::LayerIndex;
use super::foreign_index::{ForeignError, ForeignIndex, IndexKind};

use flatbuffer::FlatTable;

/// Maximum size of a zTOC, in bytes: 5 million entries, or the checkpoints of a layer of 128 GiB.
pub const MAX_ZTOC: u64 = 1 << 30;

/// The only version of the schema that tools have written since 2023.
const VERSION: &[u8] = b"0.9";

/// Fields of the root table.
mod slot {
    pub(super) const VERSION: usize = 0;
    pub(super) const COMPRESSED_SIZE: usize = 2;
    pub(super) const UNCOMPRESSED_SIZE: usize = 3;
    pub(super) const TOC: usize = 4;
    pub(super) const COMPRESSION: usize = 5;
    /// The only field of the table of contents.
    pub(super) const METADATA: usize = 0;
}

/// Parses a zTOC for a layer of `stored_size` stored bytes. The caller has checked the digest of `bytes`. The
/// result is not bound to the image: a caller that followed a chain of digests sets `is_bound`.
///
/// The stream of the result ends where the tool stopped reading, after the two blocks of zeros that end an archive.
/// An archive with more padding has a longer stream; no entry lies past the end mark.
///
/// Bytes after the flatbuffer (the tool appends lists of files to prefetch) are ignored.
pub fn parse_ztoc(bytes: &[u8], stored_size: u64) -> Result<ForeignIndex, ForeignError> {
    if bytes.len() as u64 > MAX_ZTOC {
        return Err(too_large(format!("{} bytes", bytes.len()), MAX_ZTOC));
    }
    let root = FlatTable::root(bytes).map_err(broken)?;
    let version = root.bytes(slot::VERSION).map_err(broken)?;
    if version != VERSION {
        let shown = version[..version.len().min(20)].escape_ascii();
        return Err(broken(format!("version is \"{shown}\", not \"{}\"", VERSION.escape_ascii())));
    }
    let compressed = root.i64(slot::COMPRESSED_SIZE).map_err(broken)?;
    if u64::try_from(compressed) != Ok(stored_size) {
        return Err(broken(format!(
            "it is for a layer of {compressed} bytes, and this one has {stored_size}"
        )));
    }
    let uncompressed = root.i64(slot::UNCOMPRESSED_SIZE).map_err(broken)?;
    let stream_size = u64::try_from(uncompressed)
        .map_err(|_| broken(format!("the stream's size is negative: {uncompressed}")))?;
    let missing = |what: &str| broken(format!("{what} is missing"));
    let compression = root.table(slot::COMPRESSION).map_err(broken)?;
    let compression = compression.ok_or_else(|| missing("compression information"))?;
    let spans = checkpoints::spans(&compression, stored_size, stream_size)?;
    let toc = root.table(slot::TOC).map_err(broken)?.ok_or_else(|| missing("table of contents"))?;
    let toc = entries::toc(toc.vector(slot::METADATA).map_err(broken)?, stream_size)?;
    let index = LayerIndex { spans, toc, blocks: Vec::new(), prefetch: 0 };
    if !(index.spans.is_sound() && index.is_inside()) {
        return Err(broken("spans or files contradict each other".into()));
    }
    Ok(ForeignIndex {
        kind: IndexKind::Soci,
        index,
        id: *blake3::hash(bytes).as_bytes(),
        is_bound: false,
        scope: None,
        warnings: Vec::new(),
    })
}

fn broken(reason: String) -> ForeignError {
    ForeignError::Broken { format: "SOCI", reason }
}

fn too_large(what: String, limit: u64) -> ForeignError {
    ForeignError::TooLarge { format: "SOCI", what, limit }
}
