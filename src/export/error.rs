//! Errors of exports.

use std::path::{Path, PathBuf};

use crate::io::{FaultClass, ReadError};
use crate::view::ViewError;

/// A failed export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The path does not exist or cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Bytes could not be read, or are wrong.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An output stream could not be written.
    #[error("writing {what}")]
    Write {
        /// The content that was written, as in "the archive".
        what: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A file could not be created or written.
    #[error("writing {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A destination that cannot be written to.
    #[error("{} {reason}", path.display())]
    Place {
        /// The destination.
        path: PathBuf,
        /// The reason, which follows the path in the message.
        reason: String,
    },
}

impl ExportError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            ExportError::View(error) => error.fault(),
            ExportError::Read(error) => error.fault(),
            ExportError::Write { .. } | ExportError::File { .. } => FaultClass::Io,
            ExportError::Place { .. } => FaultClass::Usage,
        }
    }

    /// Whether the reader of the output closed its end.
    pub fn is_closed_pipe(&self) -> bool {
        match self {
            ExportError::Write { source, .. } | ExportError::File { source, .. } => {
                source.kind() == std::io::ErrorKind::BrokenPipe
            }
            _ => false,
        }
    }

    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| ExportError::File { path, source }
    }

    pub(super) fn place(path: &Path, reason: impl Into<String>) -> Self {
        ExportError::Place { path: path.to_owned(), reason: reason.into() }
    }
}
