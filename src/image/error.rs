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
            ImageError::Nesting { .. } => Fault::Malformed,
            ImageError::TooMany { .. } => Fault::Unsupported,
            ImageError::Cache(error) => error.fault(),
            ImageError::Read(error) => error.fault(),
        }
    }
}
