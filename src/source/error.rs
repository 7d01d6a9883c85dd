//! Errors of a source.

use std::path::PathBuf;

use crate::io::{FaultClass, ReadError};
use crate::oci::OciError;
use crate::registry::RegistryError;

/// A failed request to a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The error of the registry client.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document from a source is not the requested one.
    #[error("{place}")]
    Document {
        /// The document and its location.
        place: String,
        /// The defect.
        source: OciError,
    },
    /// A blob that is neither a manifest nor an index.
    #[error("{place} is no manifest and no index")]
    NotADocument {
        /// The document and its location.
        place: String,
    },
    /// A request that only the network can answer.
    #[error("{what} is not in the cache, and no request is made offline")]
    Offline {
        /// The reference or digest.
        what: String,
    },
    /// A directory or an archive that is not an OCI layout.
    #[error("{place} is not an OCI image layout: {reason}")]
    NotALayout {
        /// The directory or archive.
        place: String,
        /// The missing part.
        reason: String,
    },
    /// A layout without the requested image.
    #[error("{place} has no image {wanted}; available: {available}")]
    NotInLayout {
        /// The directory or archive.
        place: String,
        /// The tag or digest.
        wanted: String,
        /// The available tags.
        available: String,
    },
    /// A layout with several images of the requested name, or without a requested name.
    #[error("{place} has more than one image, name one of them: {available}")]
    Ambiguous {
        /// The directory or archive.
        place: String,
        /// The available tags, or digests.
        available: String,
    },
    /// An archive without images, or in an unreadable form.
    #[error("{place}: {reason}")]
    Archive {
        /// The archive.
        place: String,
        /// The defect.
        reason: String,
        /// The class of the error.
        fault: FaultClass,
    },
    /// The bytes of an archive that could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file that could not be read.
    #[error("reading {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl SourceError {
    /// The class of the error.
    pub fn fault(&self) -> FaultClass {
        match self {
            SourceError::Registry(error) => error.fault(),
            SourceError::Document { source, .. } => source.fault(),
            SourceError::Offline { .. } => FaultClass::Unavailable,
            SourceError::NotALayout { .. } => FaultClass::Malformed,
            SourceError::NotInLayout { .. } | SourceError::NotADocument { .. } => FaultClass::NotFound,
            SourceError::Ambiguous { .. } => FaultClass::Usage,
            SourceError::Archive { fault, .. } => *fault,
            SourceError::Read(error) => error.fault(),
            SourceError::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => FaultClass::NotFound,
                std::io::ErrorKind::PermissionDenied => FaultClass::Denied,
                _ => FaultClass::Io,
            },
        }
    }
}
