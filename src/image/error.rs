//! Errors of opening a reference.

use crate::cache::CacheError;
use crate::io::{FaultClass, ReadError};
use crate::oci::{Digest, OciError};
use crate::source::SourceError;

/// A reason why a reference could not be opened as an [`OpenImage`](super::OpenImage).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// An error of the source, with all its context.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document that is not valid.
    #[error("{what} {digest}")]
    Document {
        /// Kind of document, for the message.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// The problem.
        source: OciError,
    },
    /// No manifest or layer matches the request, or several do.
    #[error("{place}")]
    Choice {
        /// The pinned reference.
        place: String,
        /// The problem, with the available choices.
        source: OciError,
    },
    /// Indexes inside indexes, too deep or in a cycle.
    #[error("{place}: indexes are nested more than {limit} deep")]
    Nesting {
        /// The pinned reference.
        place: String,
        /// The limit.
        limit: usize,
    },
    /// More documents than a mount can show.
    #[error("{place}: more than {limit} manifests and indexes, or too many bytes of them")]
    TooMany {
        /// The reference.
        place: String,
        /// The limit.
        limit: usize,
    },
    /// No valid signature although one is required.
    #[error("{digest} is not signed with a key that was given: {reason}")]
    Untrusted {
        /// The manifest or index.
        digest: Digest,
        /// The problems of the signatures that were found.
        reason: String,
    },
    /// A signature is required, and the search for it failed.
    #[error("signatures of {digest} cannot be searched")]
    Unchecked {
        /// The manifest or index.
        digest: Digest,
        /// The reason of the failure.
        source: ReadError,
    },
    /// Referrers of an image are not covered by its signature.
    #[error(
        "{place}: the signature of an image does not cover its referrers, which cannot be shown with --require-signature"
    )]
    UnsignedReferrers {
        /// The reference.
        place: String,
    },
    /// A reference that cannot be archived: it has no document, or none that is signed itself.
    #[error("{place} cannot be an archive: it is a blob alone, or an index that is not signed itself")]
    NoArchive {
        /// The pinned reference.
        place: String,
    },
    /// `--verify=toc` for a layer whose parts have no digests.
    #[error(
        "{place}: --verify=toc is impossible: the manifest names no digests of the parts of layer {layer} ({digest})"
    )]
    NoParts {
        /// The pinned reference.
        place: String,
        /// The number of the layer.
        layer: usize,
        /// Its digest.
        digest: Digest,
    },
    /// An error of the cache directory.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An error of reading bytes that opening needs.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ImageError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            ImageError::Source(error) => error.fault(),
            ImageError::Document { source, .. } | ImageError::Choice { source, .. } => source.fault(),
            ImageError::Untrusted { .. } => FaultClass::Mismatch,
            ImageError::Unchecked { source, .. } => source.fault(),
            ImageError::UnsignedReferrers { .. } => FaultClass::Usage,
            ImageError::Nesting { .. } => FaultClass::Malformed,
            ImageError::TooMany { .. } | ImageError::NoParts { .. } | ImageError::NoArchive { .. } => {
                FaultClass::Unsupported
            }
            ImageError::Cache(error) => error.fault(),
            ImageError::Read(error) => error.fault(),
        }
    }
}
