//! Errors of the library API.

use crate::image::ImageError;
use crate::io::{FaultClass, ReadError};
use crate::oci::OciError;
use crate::view::ViewError;

/// Why an open or a read failed. The source chain has the details.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reference, a platform or a pattern is invalid.
    #[error(transparent)]
    Name(#[from] OciError),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The name does not exist, or its content is unavailable.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Bytes are unavailable.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The working directory does not exist any more.
    #[error("finding the working directory")]
    Directory {
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    pub(super) fn directory(source: std::io::Error) -> Self {
        Error::Directory { source }
    }

    /// The party at fault: the caller, the author of the bytes, the registry, the network, or this machine.
    pub fn fault(&self) -> FaultClass {
        match self {
            Error::Name(error) => error.fault(),
            Error::Image(error) => error.fault(),
            Error::View(error) => error.fault(),
            Error::Read(error) => error.fault(),
            Error::Directory { .. } => FaultClass::Io,
        }
    }
}
