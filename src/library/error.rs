//! Why something could not be opened or read.

use crate::image::ImageError;
use crate::io::{Fault, ReadError};
use crate::oci::OciError;
use crate::view::ViewError;

/// Why something could not be opened or read. The whole story is in the chain of sources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reference, a platform or a pattern is none.
    #[error(transparent)]
    Name(#[from] OciError),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no such name, or what it stands for cannot be had.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Bytes cannot be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The working directory is gone.
    #[error("finding the working directory")]
    Directory {
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(super) fn directory(source: std::io::Error) -> Self {
        Error::Directory { source }
    }

    /// Who is wrong: the caller, the author of the bytes, the registry, the network, or this machine.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Name(error) => error.fault(),
            Error::Image(error) => error.fault(),
            Error::View(error) => error.fault(),
            Error::Read(error) => error.fault(),
            Error::Directory { .. } => Fault::Io,
        }
    }
}
