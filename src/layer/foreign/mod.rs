//! Indexes that images carry: made by others, when the layer was pushed or converted.
//!
//! Nothing here is believed for longer than until the layer's own bytes are complete, and nothing here fetches more than
//! the index. The idea: each format is a parser from bytes to a [`Foreign`], which says what a pass over the layer would say;
//! a format that contradicts itself is an error, and the layer is passed over as if it had no index.

mod assembler;
mod document;
mod estargz;
mod find;
mod seekable;
mod soci;
mod zstd_chunked;

use std::collections::BTreeMap;
use std::fmt;

use crate::io::ReadError;

use super::index::LayerIndex;

pub use assembler::{is_marker, is_table};
pub use find::{find_foreign, find_seek_table};
pub(super) use find::{shows_markers, without_markers};
pub use soci::{MAX_ZTOC, parse_ztoc};

/// Which kind of index a layer is read by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IndexKind {
    /// Made here, by a pass over the stored bytes.
    Local,
    /// The table of contents at the end of an eStargz layer.
    Estargz,
    /// The manifest at the end of a zstd:chunked layer.
    ZstdChunked,
    /// The seek table at the end of a zstd layer: spans, without a table of contents.
    ZstdSeekable,
    /// The index at the end of an xz stream of several blocks: spans, without a table of contents.
    XzBlocks,
    /// A zTOC of a SOCI index.
    Soci,
    /// An index that ocifs made elsewhere and pushed beside the image.
    Pushed,
}

impl fmt::Display for IndexKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IndexKind::Local => "local",
            IndexKind::Estargz => "eStargz",
            IndexKind::ZstdChunked => "zstd:chunked",
            IndexKind::ZstdSeekable => "zstd seekable",
            IndexKind::XzBlocks => "xz blocks",
            IndexKind::Soci => "SOCI",
            IndexKind::Pushed => "pushed",
        })
    }
}

/// The index that a layer carries, as far as the annotations of its descriptor say.
pub fn announced(annotations: &BTreeMap<String, String>) -> Option<IndexKind> {
    let has = |prefix: &str| annotations.keys().any(|key| key.starts_with(prefix));
    if zstd_chunked::PREFIXES.iter().any(|prefix| has(prefix)) {
        return Some(IndexKind::ZstdChunked);
    }
    annotations.contains_key(estargz::DIGEST_ANNOTATION).then_some(IndexKind::Estargz)
}

/// Whether the annotations name the digest of the index that they announce.
pub fn names_digest(annotations: &BTreeMap<String, String>) -> bool {
    let checksum = |prefix: &&str| annotations.contains_key(&format!("{prefix}manifest-checksum"));
    annotations.contains_key(estargz::DIGEST_ANNOTATION) || zstd_chunked::PREFIXES.iter().any(checksum)
}

/// What somebody else says about a layer.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Which format said it.
    pub kind: IndexKind,
    /// Table of contents and spans. What the index gives no digest for is checked when the layer is complete.
    pub index: LayerIndex,
    /// blake3 of the bytes of the index: what is decoded by it is kept apart from what is decoded by another.
    pub id: [u8; 32],
    /// Whether the image's manifest names the digest of these bytes (directly or by a chain of digests).
    pub is_bound: bool,
    /// What deviates from the format without making it useless, for people.
    pub warnings: Vec<String>,
}

/// Why an index that a layer carries is not used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForeignError {
    /// The bytes are not what their format allows, or contradict themselves or the layer.
    #[error("{format} index: {reason}")]
    Broken {
        /// The name of the format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The bytes do not hash to the digest that names them.
    #[error("{format} index has digest {actual}, not {expected} as the manifest says")]
    Digest {
        /// The name of the format.
        format: &'static str,
        /// As the manifest says.
        expected: String,
        /// Of the bytes.
        actual: String,
    },
    /// More than is accepted.
    #[error("{format} index has {what} over the limit of {limit}")]
    TooLarge {
        /// The name of the format.
        format: &'static str,
        /// What there is too much of, with the number.
        what: String,
        /// The limit.
        limit: u64,
    },
}

/// Why there is no answer to the question for an index.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// There is an index, and it is of no use: the layer is passed over as if it had none, with a warning.
    #[error(transparent)]
    Index(#[from] ForeignError),
    /// The stored bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What an index that a layer carries may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignLimits {
    /// Stored bytes below which a layer is not searched unless the manifest says that it has an index: fetching all of it
    /// costs one request too.
    pub smallest: u64,
    /// Stored bytes of a table of contents. They are held in memory: 1,000,000 files with their digests take some 70 MB.
    pub stored: u64,
    /// Bytes of a table of contents after decompression. They are never held.
    pub decoded: u64,
    /// Bytes of one entry of it, which are held: an extended header of a tar as large as is accepted, in base64, and more.
    /// What is over by less than a buffer of 64 KiB may pass.
    pub entry: u64,
    /// Entries, those that name a chunk included.
    pub entries: u64,
    /// Bytes of a name or a link target.
    pub path: usize,
    /// Bytes of a name between two slashes.
    pub component: usize,
}

impl Default for ForeignLimits {
    fn default() -> Self {
        Self {
            smallest: 64 << 10,
            stored: 128 << 20,
            decoded: 1 << 30,
            entry: 4 << 20,
            entries: 5_000_000,
            path: 4096,
            component: 255,
        }
    }
}

impl ForeignLimits {
    /// `actual` when it is within `limit`.
    fn check(format: &'static str, actual: u64, limit: u64, what: &'static str) -> Result<u64, ForeignError> {
        if actual > limit {
            return Err(ForeignError::TooLarge { format, what: format!("{what} of {actual} bytes"), limit });
        }
        Ok(actual)
    }
}

/// The error of a `format` whose bytes cannot be right.
fn broken(format: &'static str, reason: impl Into<String>) -> ForeignError {
    ForeignError::Broken { format, reason: reason.into() }
}
