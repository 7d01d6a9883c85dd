//! Foreign index: claims about a layer, their kinds and limits, and the reasons to refuse them.

use std::fmt;
use std::sync::Arc;

use crate::io::ReadError;

use super::super::index::LayerIndex;

/// The kind of index by which a layer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IndexKind {
    /// Local index: made by a pass over the stored bytes.
    Local,
    /// The table of contents at the end of an eStargz layer.
    Estargz,
    /// The manifest at the end of a zstd:chunked layer.
    ZstdChunked,
    /// The seek table at the end of a zstd layer: spans, without a table of contents.
    ZstdSeekable,
    /// The index at the end of an xz stream: spans, without a table of contents.
    XzBlocks,
    /// The size of the stream, as the manifest claims: one span, without a table of contents.
    ClaimedSize,
    /// A zTOC of a SOCI index.
    Soci,
    /// An index that another ocifs made and pushed beside the image.
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
            IndexKind::ClaimedSize => "claimed size",
            IndexKind::Soci => "SOCI",
            IndexKind::Pushed => "pushed",
        })
    }
}

/// A foreign index: claims about a layer.
#[derive(Clone, Debug)]
pub struct ForeignIndex {
    /// The format of the index.
    pub kind: IndexKind,
    /// Table of contents and spans. Parts without a digest are checked when the layer is complete.
    pub index: LayerIndex,
    /// blake3 of the bytes of the index. Bytes decoded by different indexes are cached separately.
    pub id: [u8; 32],
    /// Whether the image's manifest names the digest of these bytes (directly or by a chain of digests).
    pub is_bound: bool,
    /// Scope of the cache for its refutation; `None` for that of the image's origin.
    pub scope: Option<Arc<str>>,
    /// Deviations from the format that leave the index usable, as messages.
    pub warnings: Vec<String>,
}

/// The reason why a carried index is not used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForeignError {
    /// The bytes violate their format, or contradict themselves or the layer.
    #[error("{format} index: {reason}")]
    Broken {
        /// The name of the format.
        format: &'static str,
        /// The defect.
        reason: String,
    },
    /// The digest of the bytes is not the expected one.
    #[error("{format} index has digest {actual}, the manifest states {expected}")]
    Digest {
        /// The name of the format.
        format: &'static str,
        /// The digest in the manifest.
        expected: String,
        /// The digest of the bytes.
        actual: String,
    },
    /// A limit is exceeded.
    #[error("{format} index has {what} over the limit of {limit}")]
    TooLarge {
        /// The name of the format.
        format: &'static str,
        /// The excess, with its number.
        what: String,
        /// The limit.
        limit: u64,
    },
}

/// The reason why the search for an index failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The layer carries an unusable index. It is read as if it had none, with a warning.
    #[error(transparent)]
    Index(#[from] ForeignError),
    /// The stored bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Resource limits for a foreign index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignLimits {
    /// Stored bytes below which a layer is not searched unless its manifest announces an index: fetching all of it
    /// costs one request too.
    pub smallest: u64,
    /// Stored bytes of a table of contents, held in memory: 1,000,000 files with their digests take some 70 MB.
    pub stored: u64,
    /// Bytes of a table of contents after decompression, never held as a whole.
    pub decoded: u64,
    /// Bytes of one of its entries, held in memory: more than the largest accepted extended header of a tar in
    /// base64. An excess of less than a buffer of 64 KiB may go undetected.
    pub entry: u64,
    /// Entries, including those that name a chunk.
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
    /// Returns `actual` if it is within `limit`.
    pub(super) fn check(
        format: &'static str,
        actual: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<u64, ForeignError> {
        if actual > limit {
            return Err(ForeignError::TooLarge { format, what: format!("{what} of {actual} bytes"), limit });
        }
        Ok(actual)
    }
}

/// The error for invalid bytes of a `format`.
pub(super) fn broken(format: &'static str, reason: impl Into<String>) -> ForeignError {
    ForeignError::Broken { format, reason: reason.into() }
}
