//! Why a source could not answer.

use std::path::PathBuf;

use crate::io::{Fault, ReadError};
use crate::oci::OciError;
use crate::registry::RegistryError;

/// A failed question to a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The registry's own story, whole.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document that a source gave is not what was asked for.
    #[error("{place}")]
    Document {
        /// Which one, where.
        place: String,
        /// What is wrong with it.
        source: OciError,
    },
    /// A blob that is no manifest and no index.
    #[error("{place} is no manifest and no index")]
    NotADocument {
        /// Which one, where.
        place: String,
    },
    /// Something that only the network has.
    #[error("{what} is not in the cache, and the network is not asked when offline")]
    Offline {
        /// The reference or digest.
        what: String,
    },
    /// A directory or an archive that is no OCI layout.
    #[error("{place} is not an OCI image layout: {reason}")]
    NotALayout {
        /// The directory or archive.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// A layout without what was asked for.
    #[error("{place} has no image {wanted}; there is {available}")]
    NotInLayout {
        /// The directory or archive.
        place: String,
        /// The tag or digest.
        wanted: String,
        /// The tags there are.
        available: String,
    },
    /// A layout with several images and no word which.
    #[error("{place} has more than one image, name one of them: {available}")]
    Ambiguous {
        /// The directory or archive.
        place: String,
        /// The tags (or digests) there are.
        available: String,
    },
    /// An archive that holds no images, or not in a way in which they can be read.
    #[error("{place}: {reason}")]
    Archive {
        /// The archive.
        place: String,
        /// What is wrong with it.
        reason: String,
        /// Who is wrong.
        fault: Fault,
    },
    /// The bytes of an archive that could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file that could not be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SourceError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            SourceError::Registry(error) => error.fault(),
            SourceError::Document { source, .. } => source.fault(),
            SourceError::Offline { .. } => Fault::Unavailable,
            SourceError::NotALayout { .. } => Fault::Malformed,
            SourceError::NotInLayout { .. } | SourceError::NotADocument { .. } => Fault::NotFound,
            SourceError::Ambiguous { .. } => Fault::Usage,
            SourceError::Archive { fault, .. } => *fault,
            SourceError::Read(error) => error.fault(),
            SourceError::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Fault::NotFound,
                std::io::ErrorKind::PermissionDenied => Fault::Denied,
                _ => Fault::Io,
            },
        }
    }
}
