//! Why a reference could not be opened.

use crate::cache::CacheError;
use crate::io::{Fault, ReadError};
use crate::oci::{Digest, OciError};
use crate::source::SourceError;

/// A reference that did not become an [`Image`](super::Image).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The source's own story, whole.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document that is not valid.
    #[error("{what} {digest}")]
    Document {
        /// `manifest` or `index`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        source: OciError,
    },
    /// No manifest or layer is what was asked for, or several are.
    #[error("{place}")]
    Choice {
        /// The pinned reference.
        place: String,
        /// What there is.
        source: OciError,
    },
    /// Indexes inside indexes, too deep or in a circle.
    #[error("{place}: indexes are nested more than {limit} deep")]
    Nesting {
        /// The pinned reference.
        place: String,
        /// The limit.
        limit: usize,
    },
    /// More documents than a mount can show.
    #[error("{place}: there are more than {limit} manifests and indexes, or they are too large together")]
    TooMany {
        /// The reference.
        place: String,
        /// The limit.
        limit: usize,
    },
    /// No good signature where one is required.
    #[error("{digest} is not signed with a key that was given: {reason}")]
    Untrusted {
        /// The manifest or index.
        digest: Digest,
        /// What was found instead.
        reason: String,
    },
    /// A signature is required, and could not be looked for.
    #[error("whether {digest} is signed is not known")]
    Unchecked {
        /// The manifest or index.
        digest: Digest,
        /// Why.
        source: ReadError,
    },
    /// What refers to an image is not covered by the signature of the image.
    #[error(
        "{place}: what refers to an image is not signed with it, and cannot be shown where a signature is required"
    )]
    UnsignedReferrers {
        /// The reference.
        place: String,
    },
    /// Something that has no document, or none that may be handed on.
    #[error("{place} cannot be an archive: it is a blob alone, or an index that is not signed itself")]
    NoArchive {
        /// The pinned reference.
        place: String,
    },
    /// Parts that are to be compared one by one, and have no digests.
    #[error(
        "{place}: --verify=toc cannot be had: the manifest names no digests of the parts of layer {layer} ({digest})"
    )]
    NoParts {
        /// The pinned reference.
        place: String,
        /// The number of the layer.
        layer: usize,
        /// Its digest.
        digest: Digest,
    },
    /// The cache directory.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Bytes that were needed to open.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ImageError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            ImageError::Source(error) => error.fault(),
            ImageError::Document { source, .. } | ImageError::Choice { source, .. } => source.fault(),
            ImageError::Untrusted { .. } => Fault::Mismatch,
            ImageError::Unchecked { source, .. } => source.fault(),
            ImageError::UnsignedReferrers { .. } => Fault::Usage,
            ImageError::Nesting { .. } => Fault::Malformed,
            ImageError::TooMany { .. } | ImageError::NoParts { .. } | ImageError::NoArchive { .. } => {
                Fault::Unsupported
            }
            ImageError::Cache(error) => error.fault(),
            ImageError::Read(error) => error.fault(),
        }
    }
}
